r"""Kills runs at random moments, goes on with them, and compares how they end.

Two runs are left alone: the first compiles everything; the second must end as the first did, bit
for bit, and says how long a run takes. Then runs are killed, at moments drawn evenly from that time
(set-up, compiling, both stages, evaluation, writing), and started again until they are done, as
many as it takes for all kills. A share of the kills waits for a checkpoint that is being written.
All runs share one compilation cache, that of JAX_COMPILATION_CACHE_DIR if it is set; with --cold
the killed ones have another, empty at first, so that many of the kills hit the compiler.

Every run must end as the first did: the arrays of semantic_ids.npz and ranks.npz, the best and the
newest checkpoint of each stage, results.json, the validation lines of metrics.jsonl (ends.py).
What a kill costs is counted in steps: from the newest one reported in metrics.jsonl when it came to
the one from which the next start goes on. That must be at most the interval between checkpoints
(while one is being written, at most two). SIGTERM must end with status 143 and cost nothing.

Exit status 0 only if all of that holds.

python benchmarks/kill_resume.py --kills=50 --terms=10 --out=results/kill_resume.json
"""

import argparse
import collections
import contextlib
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

import numpy as np
from lib import ends, harness, workload

from bbqrec_jax import main
from bbqrec_jax.errors import UserError

# Small models, but several checkpoints a stage, and about as long in steps as in everything else.
CONFIG = (
  "--config=configs/quickstart.py",
  "--config.data.num_users=300",
  "--config.max_history=4",
  "--config.codebook_size=16",
  "--config.latent_dim=8",
  "--config.tokenizer.model.sequence_kwargs.width=16",
  "--config.tokenizer.length_groups=1",
  "--config.tokenizer.batch_size=16",
  "--config.tokenizer.num_epochs=12",
  "--config.tokenizer.eval_epochs=3",
  "--config.tokenizer.log_steps=10",
  "--config.generator.model.model_dim=16",
  "--config.generator.model.num_encoder_layers=1",
  "--config.generator.model.num_decoder_layers=1",
  "--config.generator.length_groups=1",
  "--config.generator.batch_size=16",
  "--config.generator.num_epochs=12",
  "--config.generator.eval_epochs=3",
  "--config.generator.log_steps=10",
  "--config.generator.num_beams=10",
  "--config.parallel.num_devices=1",
)
SIGTERM_STATUS = 128 + signal.SIGTERM
_NUM_SHOWN = 20  # One wrong bit soon is in everything.
_POLL_SECONDS = 0.002  # A small checkpoint is written in a tenth of a second.
_WRITE_SECONDS = 0.1


class Kill(NamedTuple):
  signum: signal.Signals
  at_write: bool  # Waits, from the moment drawn, until a checkpoint begins to be written.


class Steps(NamedTuple):
  """Of a stage."""

  interval: int  # Between checkpoints.
  last: int


class Seen(NamedTuple):
  """What a start left behind when it ended."""

  began: bool  # It got beyond importing.
  resumed: dict[str, int]  # Stage -> the step that it said it went on from.
  reached: dict[str, int]  # Stage -> the newest step that it reported itself.
  done: tuple[str, ...]  # Stages that are finished, whoever finished them.
  writing: bool  # A checkpoint was being written.
  all_done: bool


def add_options(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--kills", type=int, default=10, help="how many (default: 10)")
  parser.add_argument("--terms", type=int, default=0, help="of them by SIGTERM (default: 0)")
  parser.add_argument(
    "--writes",
    type=float,
    default=0.25,
    help="the share of kills that waits for a checkpoint to be written (default: 0.25)",
  )
  parser.add_argument(
    "--cold", action="store_true", help="killed runs find nothing compiled at first"
  )
  parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
  parser.add_argument(
    "--config", help="run this config, such as configs/quickstart.py (default: a smaller one)"
  )
  parser.add_argument(
    "--folder",
    type=pathlib.Path,
    help="where the runs are made and kept (default: a temporary one)",
  )


def run(args: argparse.Namespace) -> dict:
  if args.quick:
    args.kills, args.terms = min(args.kills, 2), min(args.terms, 1)
  if args.kills < 1 or not 0 <= args.terms <= args.kills or not 0 <= args.writes <= 1:
    raise UserError("--kills must be at least 1, --terms within it, and --writes within 0 and 1.")
  if args.folder and args.folder.exists():
    raise UserError(f"--folder={args.folder} exists; give a new one.")
  folder = args.folder or pathlib.Path(tempfile.mkdtemp(prefix="bbqrec_jax_kills_"))
  config = CONFIG if args.config is None else (f"--config={args.config}",)
  result, problems = measure(folder, config, args)
  if problems:
    for problem in problems[:_NUM_SHOWN]:
      print(f"  {problem[:300]}", file=sys.stderr)
    raise UserError(f"{len(problems)} things are not as they must be; the runs are in {folder}.")
  if not args.folder:
    shutil.rmtree(folder)
  return result


def measure(folder: pathlib.Path, config: tuple[str, ...], args) -> tuple[dict, list[str]]:
  """(what `run` of a benchmark returns, what is not as it must be)."""
  cache = pathlib.Path(os.environ.get("JAX_COMPILATION_CACHE_DIR") or folder / "compiled")
  whole, seconds = folder / "alone_1", []
  for workdir in (whole, folder / "alone_2"):
    seconds.append(run_alone(Starter(workdir, config, cache)))
    print(f"{workdir.name}: {seconds[-1]:.1f} s without a kill", flush=True)
  problems = [f"without a kill: {text}" for text in ends.differences(whole, workdir)]
  mismatches = len(problems)

  if args.cold:
    cache = folder / "compiled_by_killed"
  rng = np.random.default_rng(args.seed)
  kills = plan(rng, args.kills, args.terms, args.writes)
  stages, records = read_steps(whole), []
  num_runs = num_starts = num_resumed = 0
  while kills:
    num_runs += 1
    starter = Starter(folder / f"killed_{num_runs}", config, cache)
    ledger = Ledger(stages)
    while not punish(starter, kills, ledger, rng, seconds):
      pass
    num_starts += starter.count
    num_resumed += ledger.num_resumed
    records += ledger.records
    problems += ledger.problems()
    different = ends.differences(whole, starter.workdir)
    problems += [f"{starter.workdir.name}: {text}" for text in different]
    mismatches += len(different)
    print(f"{starter.workdir.name}: done, {len(different)} differences", flush=True)

  lost = [record["lost_steps"] / record["interval"] for record in records if record["interval"]]
  return dict(
    ratios=dict(
      kills_survived=len(records), mismatches=mismatches, most_lost_vs_interval=max(lost, default=0)
    ),
    details=dict(
      config=config,
      num_runs=num_runs,
      num_starts=num_starts,
      num_resumed=num_resumed,
      seconds_alone=seconds,
      stages={name: steps._asdict() for name, steps in stages.items()},
      killed_in=collections.Counter(record["where"] for record in records),
      while_writing=sum(record["writing"] for record in records),
      kills=records,
    ),
  ), problems


def plan(rng: np.random.Generator, num_kills: int, num_terms: int, writes: float) -> list[Kill]:
  """The kills in random order; SIGTERM never waits for a write."""
  num_writes = round(writes * (num_kills - num_terms))
  kills = [Kill(signal.SIGTERM, False)] * num_terms
  kills += [Kill(signal.SIGKILL, n < num_writes) for n in range(num_kills - num_terms)]
  return [kills[n] for n in rng.permutation(num_kills)]


def read_steps(workdir: pathlib.Path) -> dict[str, Steps]:
  """Stage -> the steps of a finished run: every evaluation ends with a checkpoint."""
  evaluated = collections.defaultdict(list)
  for stage, step, _ in ends.read_validation(workdir).values():
    evaluated[stage].append(step)
  return {stage: Steps(min(steps), max(steps)) for stage, steps in evaluated.items()}


class Starter:
  """Starts the command of one workdir, again and again."""

  def __init__(self, workdir: pathlib.Path, config: tuple[str, ...], cache: pathlib.Path):
    self.workdir, self.count = workdir, 0
    self._command = [sys.executable, "-m", "bbqrec_jax.main", *config, f"--workdir={workdir}"]
    self._environment = os.environ | dict(  # As compile_cache.enable() has them.
      JAX_COMPILATION_CACHE_DIR=str(cache),
      JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
      JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES="-1",
    )

  @contextlib.contextmanager
  def start(self):
    """The process of a further start; it does not outlive the context."""
    self.count += 1
    self.workdir.parent.mkdir(parents=True, exist_ok=True)
    self.began = time.time()
    with self._log("out").open("wb") as out, self._log("err").open("wb") as err:
      process = subprocess.Popen(
        self._command, cwd=workload.ROOT, env=self._environment, stdout=out, stderr=err
      )
    try:
      yield process
    finally:
      process.kill()
      process.wait()

  def output(self) -> str:
    return self._log("out").read_text(encoding="utf-8")

  def failed(self, what: str) -> UserError:
    """The end of a start that must not have ended so."""
    said = self._log("err").read_text(encoding="utf-8").strip()[-1000:]
    return UserError(f"Start {self.count} in {self.workdir} {what}: {said or 'it said nothing'}")

  def _log(self, name: str) -> pathlib.Path:
    return self.workdir.with_name(f"{self.workdir.name}_{self.count}.{name}")

  def seen(self) -> Seen:
    return look(self.workdir, self.began, self.output())


def look(workdir: pathlib.Path, began: float, output: str) -> Seen:
  """What a start left behind.

  Args:
    began: when it did, Unix seconds; lines of metrics.jsonl before that are of earlier ones.
    output: what it printed to stdout.
  """
  reached = {}
  for line in ends.read_lines(workdir):
    if line["time"] >= began:
      reached[line["stage"]] = line["step"]
  resumed = re.findall(r"^(\w+): going on from step (\d+) of", output, re.MULTILINE)
  return Seen(
    began=bool(output),
    resumed={stage: int(step) for stage, step in resumed},
    reached=reached,
    done=tuple(path.stem for path in (workdir / "stages").glob("*.json")),
    # What an earlier kill left lies there until a start gets so far as to remove it.
    writing=any(os.path.getmtime(path) >= began for path in unfinished_writes(workdir)),
    all_done=(workdir / main.RESULTS_FILE).exists(),
  )


def unfinished_writes(workdir: pathlib.Path) -> set[str]:
  """Checkpoints that are being written, or were when the process that wrote them was killed."""
  return {str(path) for path in workdir.glob("checkpoints/*/*.orbax-checkpoint-tmp*")}


class Ledger:
  """What was killed in one workdir, and what each kill cost."""

  def __init__(self, stages: dict[str, Steps]):
    """stages: by name, in order."""
    self._stages = stages
    self._open = {}  # Stage -> the record of a kill whose cost the next start in it will tell.
    self._problems = []
    self.records = []  # JSON-able, in the order of the kills.
    self.num_resumed = 0  # Starts that went on from a checkpoint.

  def add(self, kill: Kill | None, seconds: float, seen: Seen, status: int = 0) -> None:
    """Takes what a start left behind: one that a kill ended, or, with None, that came to its end.

    Args:
      seconds: from its start to the kill.
      status: its exit status, negative where a signal ended it.
    """
    self.num_resumed += bool(seen.resumed)
    for stage in [stage for stage in self._open if stage in seen.resumed | seen.reached]:
      record = self._open.pop(stage)
      record["lost_steps"] = record["step"] - seen.resumed.get(stage, 0)
    if kill is None:
      return
    stage = next((stage for stage in self._stages if stage not in seen.done), None)
    record = dict(
      signal=kill.signum.name,
      seconds=round(seconds, 3),
      where=place(stage, seen, self._stages),
      step=seen.reached.get(stage, seen.resumed.get(stage)),
      writing=seen.writing,
      interval=self._stages[stage].interval if stage else 0,
      lost_steps=0,
    )
    self.records.append(record)
    if stage in seen.reached:  # Else it did no step that could be lost.
      self._open[stage] = record
    # Before the command has begun, and behind its end, Python ends as a process does by default.
    by_default = status == -kill.signum and (not seen.began or seen.all_done)
    if kill.signum == signal.SIGTERM and status != SIGTERM_STATUS and not by_default:
      self._problems.append(f"SIGTERM ended with status {status}: {record}")

  def problems(self) -> list[str]:
    """What is not as it must be, once the run is done."""
    found = [f"no later start said where it went on: {record}" for record in self._open.values()]
    for record in self.records:
      # Killed while a checkpoint is written, a run goes back to the one before.
      bound = record["interval"] * (2 if record["writing"] else 1)
      if record["signal"] == "SIGTERM":
        bound = 0
      if not 0 <= record["lost_steps"] <= bound:
        found.append(f"a kill cost {record['lost_steps']} steps, not 0 to {bound}: {record}")
    return self._problems + found


def place(stage: str | None, seen: Seen, stages: dict[str, Steps]) -> str:
  """What a start was doing when it was killed, in words; `stage` is the first unfinished one."""
  if not seen.began:
    return "importing"
  if stage is None:
    return "results"
  step = seen.reached.get(stage, seen.resumed.get(stage))
  if step is None:
    return f"{stage}, set-up"
  return f"{stage}, " + ("last evaluation" if step == stages[stage].last else "steps")


def run_alone(starter: Starter) -> float:
  """Seconds of a run without a kill; raises UserError if it fails."""
  with starter.start() as process:
    if process.wait():
      raise starter.failed(f"failed with status {process.returncode}")
  return time.time() - starter.began


def punish(
  starter: Starter,
  kills: list[Kill],
  ledger: Ledger,
  rng: np.random.Generator,
  seconds: list[float],
) -> bool:
  """One start, with the last of the kills, which is taken off if it hits; True if the run is done.

  Args:
    seconds: of the runs without a kill, the last one for the moments; this may be a further one.

  Raises UserError if it fails otherwise, or does not end.
  """
  patience = 60 + 10 * max(seconds)  # So long a run or an orderly stop does not take.
  with starter.start() as process:
    kill = kills[-1] if kills else None
    must_stop = False
    if kill and wait_for_moment(process, starter.workdir, kill, rng, seconds[-1]):
      after = time.time() - starter.began
      must_stop = not (starter.workdir / main.RESULTS_FILE).exists()
      process.send_signal(kill.signum)
    try:
      status = process.wait(patience)
    except subprocess.TimeoutExpired:
      raise starter.failed(f"did not end within {patience:.0f} s") from None
  seen = starter.seen()
  if status == 0:
    if must_stop and kill.signum == signal.SIGTERM:
      raise starter.failed("went on in spite of SIGTERM")
    ledger.add(None, 0.0, seen)
    if starter.count == 1:  # Not killed at all: how long a run takes now.
      seconds.append(time.time() - starter.began)
    return True
  if not kill or status not in (-kill.signum, SIGTERM_STATUS):
    raise starter.failed(f"failed with status {status}")
  kills.pop()
  ledger.add(kill, after, seen, status)
  record = ledger.records[-1]
  step = "" if record["step"] is None else f", step {record['step']}"
  writing = ", a checkpoint half-written" if record["writing"] else ""
  print(
    f"{starter.workdir.name}, start {starter.count}: {record['signal']} after {after:.1f} s, "
    f"{record['where']}{step}{writing}; {len(kills)} to go",
    flush=True,
  )
  return False


def wait_for_moment(
  process: subprocess.Popen,
  workdir: pathlib.Path,
  kill: Kill,
  rng: np.random.Generator,
  seconds: float,
) -> bool:
  """Returns at a random moment of `seconds`: True, or False if the process ended before."""
  with contextlib.suppress(subprocess.TimeoutExpired):
    process.wait(rng.uniform(0, seconds))
    return False
  if kill.at_write:
    before = unfinished_writes(workdir)
    while not (now := unfinished_writes(workdir)) - before:
      before &= now  # What an earlier kill left is removed, and may come back under its name.
      if process.poll() is not None:
        return False
      time.sleep(_POLL_SECONDS)
    time.sleep(rng.uniform(0, _WRITE_SECONDS))
  return process.poll() is None


if __name__ == "__main__":
  sys.exit(harness.main(run, __doc__, add_options))

"""Starts the runs that a table lacks, each a process of its own, and tells how they end."""

import contextlib
import os
import pathlib
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from bbqrec_jax import errors
from bbqrec_jax.errors import Stopped, UserError
from bbqrec_jax.signals import Deferred
from bbqrec_jax.tables import systems
from bbqrec_jax.tables.systems import System
from bbqrec_jax.tables.watch import Watch, last_line

PYTHON = (sys.executable, "-m")  # In front of a module's name.
_POLL_SECONDS = 0.2
_SIGNALLED = (130, 143)  # Exit status of a run that SIGINT or SIGTERM has stopped.


class Job(NamedTuple):
  """One run.

  Attributes:
    name: in the line of status.
    commands: command lines that are run one after the other; what follows one that fails is not.
    log: the file that takes what they say.
  """

  name: str
  commands: tuple[tuple[str, ...], ...]
  log: pathlib.Path


class Outcome(NamedTuple):
  job: Job
  status: int  # 0: done.
  seconds: float
  said: str  # The last line that the run said.


def main_command(
  system: System,
  data: Sequence[str],
  tuned: Sequence[str],
  changes: Sequence[str],
  seed: int,
  workdir: pathlib.Path,
  stage_cache: pathlib.Path | None = None,
) -> tuple[str, ...]:
  """`python -m bbqrec_jax.main` for a run. Of a field that is set twice, the later value counts.

  Args:
    data: what data_of() gives: the name for the config's `data`, then overrides.
    tuned: what was chosen for the system's config, "field=value".
    changes: switches and "field=value", behind the system's own.
    stage_cache: the folder in which runs share their first stages; see bbqrec_jax/stage_cache.py.
  """
  switches = [*system.switches, *(change for change in changes if "=" not in change)]
  fields = [*data[1:], *tuned, *systems.as_text(system.overrides)]
  fields += [change for change in changes if "=" in change]
  config = os.path.relpath(systems.config_path(system.config))
  return (
    *PYTHON,
    "bbqrec_jax.main",
    f"--config={config}:{systems.arg_of(data[0], tuple(switches))}",
    f"--config.seed={seed}",
    *(f"--config.{field}" for field in fields),
    f"--workdir={workdir}",
    *([f"--stage_cache={stage_cache}"] if stage_cache else []),
  )


def data_of(dataset: str, root: pathlib.Path | None) -> tuple[str, ...]:
  """The config's argument `data`, and overrides of its section.

  Args:
    root: a folder with DATASET/DATASET.inter, and beside it DATASET.item, text*.npy and image*.npy;
      None: what the configs know by this name. They know "synthetic" whatever the root.

  Raises UserError if the files are not there, or it is not clear which to take.
  """
  if root is None or dataset == "synthetic":
    return (dataset,)
  folder = root / dataset
  if not (folder / f"{dataset}.inter").is_file():
    raise UserError(f"{folder / dataset}.inter does not exist; give another --root.")
  fields = [f"data.root={folder}", f"data.name={dataset}"]
  for modality in ("text", "image"):
    files = sorted(folder.glob(f"{modality}*.npy"))
    if len(files) > 1:
      names = ", ".join(path.name for path in files)
      raise UserError(f"{folder} has several files of {modality} features: {names}; leave one.")
    fields += [f"data.features.{modality}={path}" for path in files]
  return ("atomic", *fields)


def applicable(system: System, data: str, changes: Sequence[str]) -> list[str]:
  """Those of the user's changes that fit a system.

  Args:
    changes: "switch" and "field=value" for every system whose config knows them; with "NAME:" in
      front for that system alone.

  Raises UserError if there is no such config.
  """
  fitting = []
  for change in changes:
    head, colon, rest = change.partition(":")
    if colon and "=" not in head:
      if head == system.name:
        fitting.append(rest)
    elif _knows(system, data, change):
      fitting.append(change)
  return fitting


def _knows(system: System, data: str, change: str) -> bool:
  field, equals, _ = change.partition("=")
  try:
    arg = systems.arg_of(data, (*system.switches, *(() if equals else (change,))))
    config = systems.load_config(system.config, arg)
  except ValueError:  # It is an unknown switch.
    return False
  if not equals:
    return True
  for part in field.split("."):
    if not hasattr(config, "keys") or part not in config:
      return False
    config = config[part]
  return True


def check_changes(changes: Sequence[str], data: str, chosen: Sequence[System]) -> None:
  """Raises UserError for data that no config knows, or a change that fits no system.

  So it does for a change of what the runs of a system are told apart by.
  """
  for system in chosen:
    try:
      systems.load_config(system.config, systems.arg_of(data, system.switches))
    except ValueError as error:
      raise UserError(str(error)) from error
    except UserError:  # It is named when it would run.
      continue
  for change in changes:
    fits = False
    for system in chosen:
      fitting = []
      with contextlib.suppress(UserError):  # Of a system without a config.
        fitting = applicable(system, data, [change])
      for field in (found.partition("=")[0] for found in fitting):
        if field in ("seed", *system.overrides):
          raise UserError(f"--overrides: {field} of {system.name} is not to be changed.")
      fits = fits or bool(fitting)
    if not fits:
      raise UserError(f"--overrides: {change!r} fits none of {', '.join(s.name for s in chosen)}.")


def devices() -> list[str]:
  """Values of CUDA_VISIBLE_DEVICES that give a run a GPU of its own; [] where there is none."""
  visible = os.environ.get("CUDA_VISIBLE_DEVICES")
  if visible is not None:
    return [name for name in visible.split(",") if name]
  try:
    listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True)
  except OSError:
    return []
  lines = listed.stdout.splitlines() if listed.returncode == 0 else []
  return [str(n) for n in range(len([line for line in lines if line.startswith("GPU")]))]


def execute(jobs: Sequence[Job], at_once: int | None = None) -> Iterator[Outcome]:
  """Runs the jobs and gives how each ended, as soon as it has; shows how they go on, on stderr.

  Args:
    at_once: how many run at the same time, each with a GPU of its own as far as there are; a run
      alone has all devices. None: one for each GPU, or one.

  Raises Stopped at SIGINT or SIGTERM, and when a run was stopped by one, after all that run have
  saved. A second SIGINT does not wait.
  """
  gpus = devices()
  at_once = at_once or max(len(gpus), 1)
  shares = gpus if gpus and at_once > 1 else [None]
  free = [shares[n % len(shares)] for n in range(at_once)]
  waiting, running = list(jobs), []
  message = "Stopping all runs; Ctrl-C does not wait for them."
  with Watch() as watch, Deferred(message) as signals:
    try:
      while waiting or running:
        while waiting and free and not signals.signum:
          running.append(_Running(waiting.pop(0), free.pop(0)))
        time.sleep(_POLL_SECONDS)
        if signals.signum:
          watch.leave()
        else:
          watch.show({run.job.name: run.job.log for run in running})
        for run in list(running):
          if signals.signum:
            run.stop()
          if not run.ended(starts_next=not signals.signum):
            continue
          running.remove(run)
          free.append(run.gpu)
          outcome = run.outcome()
          if outcome.status in _SIGNALLED and not signals.signum:
            signals.signum = outcome.status - 128
          if not signals.signum:
            watch.clear()
            yield outcome
        if signals.signum and not running:
          raise Stopped("all runs are saved", signals.signum)
    finally:  # Something else went wrong, or the caller has enough.
      for run in running:
        run.kill()


class _Running:
  """A job that has been started."""

  def __init__(self, job: Job, gpu: str | None):
    self.job, self.gpu = job, gpu
    self._commands, self._stopped = list(job.commands), False
    self._started = time.perf_counter()
    job.log.parent.mkdir(parents=True, exist_ok=True)
    self._start()

  def _start(self) -> None:
    environment = (
      os.environ if self.gpu is None else os.environ | {"CUDA_VISIBLE_DEVICES": self.gpu}
    )
    with open(self.job.log, "a", encoding="utf-8") as log:
      command = self._commands.pop(0)
      log.write(f"$ {shlex.join(command)}\n")
      log.flush()
      # In a session of its own: a Ctrl-C reaches it once, from here.
      self._process = subprocess.Popen(
        command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment,
        start_new_session=True,
      )  # fmt: skip

  def ended(self, starts_next: bool) -> bool:
    """Whether it is over; where a command is done, starts the next one."""
    status = self._process.poll()
    if status is None:
      return False
    if status == 0 and self._commands and starts_next:
      self._start()
      return False
    return True

  def outcome(self) -> Outcome:
    status = self._process.returncode
    said = last_line(self.job.log) if status >= 0 else f"killed by signal {-status}"
    return Outcome(self.job, status, time.perf_counter() - self._started, said)

  def stop(self) -> None:
    if not self._stopped:
      self._stopped = True
      self._process.terminate()

  def kill(self) -> None:
    if self._process.poll() is None:
      self._process.kill()
      self._process.wait()


def show(outcomes: Iterator[Outcome], total: int, first: int, tell: Callable[[Outcome], str]):
  """Prints a line for each outcome as it comes; returns those that failed.

  Args:
    total: how many runs there are, with those before `first` that needed none.
    tell: an outcome with status 0 -> what to say of it; raises UserError where that fails.
  """
  failed = []
  for n, outcome in enumerate(outcomes, start=first):
    after = f"after {outcome.seconds:.0f} s"
    try:
      if outcome.status:
        raise UserError(f"{outcome.said} (all of it: {outcome.job.log})")
      line = f"done {after}; {tell(outcome)}"
    except UserError as error:
      line = f"FAILED {after}: {error}"
      failed.append(outcome)
    print(f"[{n}/{total}] {outcome.job.name}: {line}", flush=True)
  return failed


def exit_status(command: Callable[[], list[Outcome]]) -> int:
  """Calls what runs jobs and returns those that failed; says how it ended; a process's status."""
  failed = []
  try:
    # Ctrl-C that comes through is a second one, or one that nothing has to be kept of.
    status = errors.exit_status(
      lambda: failed.extend(command()), "Stopped at once. The same command goes on."
    )
  except Stopped as stopped:
    print(f"\nStopped: {stopped}. The same command goes on.", file=sys.stderr)
    return stopped.status
  for outcome in failed:
    print(f"Failed: {outcome.job.name}; see {outcome.job.log}.", file=sys.stderr)
  return 1 if failed else status

"""What a start costs: the first, which compiles everything, and the second, which finds it cached.

Both train configs/quickstart.py for an epoch of few users, each in a process of its own and a new
workdir, with one compilation cache: empty for the first, filled by it for the second. Then both
recommend, again from an empty and from a filled cache.

`first_vs_second_start` is the wall-clock seconds of the first start, from the command until the
first step of the last stage has ended, over those of the second. The details have each stage's, the
seconds in the compiler, those until the first recommendation, and those of importing
bbqrec_jax.recommend.

python benchmarks/startup.py --out=results/benchmarks/startup.json
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from lib import harness, workload

from bbqrec_jax.data import semantic_ids
from bbqrec_jax.errors import UserError

STAGES = ("tokenizer", "generator")
TRAINING = [
  f"--config.{stage}.{field}=1" for stage in STAGES for field in ("num_epochs", "log_steps")
]
CONFIG = ["--config=configs/quickstart.py", "--config.data.num_users=400"]
QUICK_CONFIG = ["--config=configs/quickstart.py:smoke"]
STARTS = ("first", "second")


def add_options(parser: argparse.ArgumentParser) -> None:
  harness.add_rounds(parser, default=3)


def run(args: argparse.Namespace) -> dict:
  config = QUICK_CONFIG if args.quick else CONFIG
  pairs = []
  for _ in range(args.rounds):
    with tempfile.TemporaryDirectory() as folder:
      pairs.append(pair_of_starts(pathlib.Path(folder), [*config, *TRAINING]))
  until_trained = {
    name: [pair["train"][name]["first_step_ended_s"][STAGES[-1]] for pair in pairs]
    for name in STARTS
  }
  return dict(
    ratios=dict(first_vs_second_start=harness.ratio(*(until_trained[name] for name in STARTS))),
    details=dict(
      import_recommend_s=statistics.median(import_seconds() for _ in range(args.rounds)),
      rounds=pairs,
    ),
  )


def pair_of_starts(folder: pathlib.Path, config: list[str]) -> dict:
  """{"train", "recommend"} -> {"first", "second"} -> what `start` gives."""
  results = dict(train={}, recommend={})
  for name in STARTS:
    workdir = folder / name
    arguments = [*config, f"--workdir={workdir}"]
    began = time.time()
    results["train"][name] = start("bbqrec_jax.main", arguments, folder / "trained")
    results["train"][name]["first_step_ended_s"] = {
      stage: at - began for stage, at in first_lines(workdir / "metrics.jsonl").items()
    }
  item = semantic_ids.load(workdir).item_ids[0]
  for name in STARTS:
    arguments = [f"--workdir={workdir}", f"--history={item}"]
    results["recommend"][name] = start("bbqrec_jax.recommend", arguments, folder / "recommended")
  return results


def start(module: str, arguments: list[str], cache: pathlib.Path) -> dict[str, float]:
  """Runs a module to its end with this compilation cache.

  Returns the whole process's wall-clock seconds as "seconds", and what watch_compiles writes.

  Raises UserError, with the end of what it printed, if it fails.
  """
  program = pathlib.Path(__file__).parent / "lib" / "watch_compiles.py"
  out = cache.with_suffix(".json")
  settings = dict(  # As compile_cache.enable() has them.
    JAX_COMPILATION_CACHE_DIR=str(cache),
    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
    JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES="-1",
  )
  began = time.perf_counter()
  done = subprocess.run(
    [sys.executable, program, out, module, *arguments],
    cwd=workload.ROOT, env=os.environ | settings, capture_output=True, text=True,
  )  # fmt: skip
  seconds = time.perf_counter() - began
  if done.returncode:
    raise UserError(f"python -m {module} failed: {done.stderr.strip()[-1000:]}")
  return dict(seconds=seconds) | json.loads(out.read_text(encoding="utf-8"))


def first_lines(path: pathlib.Path) -> dict[str, float]:
  """Stage -> Unix seconds of its first line in a metrics.jsonl, its first step's."""
  times = {}
  for line in path.read_text(encoding="utf-8").splitlines():
    record = json.loads(line)
    times.setdefault(record["stage"], record["time"])
  return times


def import_seconds() -> float:
  """Of bbqrec_jax.recommend, in a new interpreter."""
  code = "import time; began = time.perf_counter(); import bbqrec_jax.recommend; "
  code += "print(time.perf_counter() - began)"
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  return float(done.stdout)


if __name__ == "__main__":
  sys.exit(harness.main(run, __doc__, add_options))

"""What the benchmarks share: interleaved timing in one process, and the record they write.

A benchmark is a file with `run(args) -> {"ratios": {figure: float}, "details": {...}}` that ends in

  if __name__ == "__main__":
    sys.exit(harness.main(run, __doc__, add_options))

and is run as `python benchmarks/NAME.py --out=FILE.json`; without --out it only prints. What needs
the extra `[bench]` is imported inside `run`, so that its absence is told in a sentence.
"""

import argparse
import contextlib
import os
import pathlib
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any

import jax

from bbqrec_jax import paths, run_record
from bbqrec_jax.errors import UserError, exit_status

_EXTRA = ("torch", "transformers")  # The extra [bench].
# OpenMP's threads spin for a while behind a call, and would take a core from whoever comes next.
_SETTLE_SECONDS = 0.1
_ENVIRONMENT = ("GLIBC_TUNABLES", "XLA_FLAGS", "OMP_NUM_THREADS")  # They change speeds.


def rounds(candidates: Mapping[str, Callable[[], Any]], num_rounds: int) -> dict[str, list[float]]:
  """Times callables one after another, round by round, in this process.

  A shared machine drifts by the minute; candidates of one round meet the same machine, so that
  their ratios hold where their seconds do not. In every round each is called once untimed before
  its timed call, since the one before it has emptied the caches, which whoever runs alone finds
  filled. It is waited for: whatever JAX arrays it returns are ready when the clock stops.

  Args:
    candidates: name -> callable without arguments.
    num_rounds: at least 1.

  Returns:
    name -> num_rounds seconds, in the order of the rounds.
  """
  if num_rounds < 1:
    raise ValueError(f"num_rounds must be at least 1, got {num_rounds}.")
  for candidate in candidates.values():  # Compiles.
    jax.block_until_ready(candidate())
  seconds = {name: [] for name in candidates}
  for _ in range(num_rounds):
    for name, candidate in candidates.items():
      time.sleep(_SETTLE_SECONDS)
      jax.block_until_ready(candidate())
      started = time.perf_counter()
      jax.block_until_ready(candidate())
      seconds[name].append(time.perf_counter() - started)
  return seconds


def over_calls(call_fn: Callable, calls: Sequence) -> Callable[[], list]:
  """A candidate for `rounds`: one call after the other, each waited for, as a request is."""
  return lambda: [jax.block_until_ready(call_fn(call)) for call in calls]


def summary(seconds: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
  """name -> {"median_s", "min_s", "num_rounds"} of what `rounds` gives."""
  return {
    name: dict(median_s=statistics.median(s), min_s=min(s), num_rounds=len(s))
    for name, s in seconds.items()
  }


def ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
  """How many times faster `fast` is: the median over rounds of each round's own slow / fast.

  Raises:
    ValueError: the two do not have the same number of rounds, or none.
  """
  if len(slow) != len(fast) or not slow:
    raise ValueError(f"Need as many rounds of one as of the other, got {len(slow)}, {len(fast)}.")
  return statistics.median(s / f for s, f in zip(slow, fast))


def main(
  run: Callable[[argparse.Namespace], dict[str, Any]],
  doc: str,
  add_options: Callable[[argparse.ArgumentParser], None] = lambda parser: None,
  argv: Sequence[str] | None = None,
) -> int:
  """The command of a benchmark; returns its exit status.

  Writes {"ratios", "details", "quick", "provenance"} to --out, if that is given; nothing is left
  there by a run that fails. What the user can mend ends in one sentence and status 1: an absent
  output folder, a missing extra, a UserError.

  Args:
    run: gets the parsed options, `quick` (bool) among them; returns "ratios", a flat map of figure
      to number, and "details", JSON-able.
    doc: the benchmark's docstring; what --help prints.
    add_options: adds the benchmark's own options to the parser.
    argv: the options; None for the command line's.
  """
  parser = argparse.ArgumentParser(
    description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--out", type=paths.file, help="the JSON file to write (default: none)")
  parser.add_argument(
    "--quick", action="store_true", help="small sizes, to see that it runs; no figure means much"
  )
  add_options(parser)
  args = parser.parse_args(argv)
  return exit_status(lambda: _run(run, args, argv))


def _run(run, args: argparse.Namespace, argv: Sequence[str] | None) -> None:
  if args.out:
    paths.check_writable(args.out)
  # Before the run: the checkout may change while it lasts.
  made_by = provenance(sys.argv[1:] if argv is None else argv)
  try:
    result = run(args)
  except ModuleNotFoundError as error:
    if error.name not in _EXTRA:
      raise
    raise UserError(
      f"this benchmark needs {error.name}; install it with pip install -e '.[bench]'."
    ) from error
  record = dict(
    ratios={name: float(value) for name, value in result["ratios"].items()},
    details=result["details"],
    quick=args.quick,
    provenance=made_by,
  )
  if args.out:
    run_record.write_json(args.out, record)
  print(format_ratios(record["ratios"]))


def add_rounds(parser: argparse.ArgumentParser, default: int) -> None:
  """--rounds, how many rounds are timed; at least 1."""

  def at_least_one(text: str) -> int:
    if int(text) < 1:
      raise argparse.ArgumentTypeError("must be at least 1")
    return int(text)

  parser.add_argument(
    "--rounds", type=at_least_one, default=default, help=f"timed rounds (default: {default})"
  )


def provenance(argv: Sequence[str]) -> dict[str, Any]:
  """run_record's provenance, with what a speed depends on beside it.

  Adds the versions of the extra's packages, and those environment variables of _ENVIRONMENT that
  are set. The command is as typed in the repository's root.
  """
  record = run_record.provenance()
  for package in _EXTRA:
    with contextlib.suppress(metadata.PackageNotFoundError):
      record["versions"][package] = metadata.version(package)
  program = pathlib.Path(sys.argv[0])
  return record | dict(
    command=shlex.join(["python", f"{program.parent.name}/{program.name}", *argv]),
    environment={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
  )


def format_ratios(ratios: Mapping[str, float]) -> str:
  """One line a figure."""
  width = max(map(len, ratios), default=0)
  return "\n".join(f"{name:<{width}}  {value:10.4g}" for name, value in ratios.items())

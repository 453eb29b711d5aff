"""Seconds of a trained generator for the ten best items of one user, as Table 6 has them.

python -m bbqrec_jax.latency runs/beauty --num_beams 50 100 --out=latency.json

Users are served one at a time, a request each. Their histories are of full length and made up of
random items, since neither changes the work: a program's shapes do not depend on them.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Sequence

import jax
import numpy as np

from bbqrec_jax import compile_cache, paths, run_record
from bbqrec_jax.errors import UserError, exit_status
from bbqrec_jax.recommend import Recommender
from bbqrec_jax.rules import Whole

NUM_RESULTS = 10
NUM_USERS = 50


def measure(
  workdir: str | os.PathLike, num_beams: Sequence[int], num_users: int = NUM_USERS
) -> dict:
  """Times decoding at each beam width; the widths take turns, so that they meet the same machine.

  Returns:
    seconds_per_user: beam width, as text, -> the median over users; JSON-able. With it num_users,
    num_results and the kind of device.

  Raises UserError if the workdir holds no finished run with a generator.
  """
  recommenders = {width: Recommender.load(workdir, num_beams=width) for width in num_beams}
  seconds = {width: [] for width in num_beams}
  rng = np.random.default_rng(0)
  for n in range(num_users + 1):
    for width, recommender in recommenders.items():
      history = rng.choice(recommender.item_ids, recommender.max_history).tolist()
      started = time.perf_counter()
      recommender.recommend([history], NUM_RESULTS)
      if n:  # The first user's compiles.
        seconds[width].append(time.perf_counter() - started)
  return dict(
    seconds_per_user={str(width): statistics.median(taken) for width, taken in seconds.items()},
    num_users=num_users,
    num_results=NUM_RESULTS,
    device_kind=jax.devices()[0].device_kind,
  )


def main(argv: Sequence[str] | None = None) -> int:
  """The command; returns its exit status."""
  parser = argparse.ArgumentParser(
    prog="python -m bbqrec_jax.latency",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("workdir", type=paths.folder, help="of a finished run")
  parser.add_argument("--num_beams", type=int, nargs="+", default=[50, 100], help="beam widths")
  parser.add_argument("--out", type=paths.file, help="a JSON file to write it to as well")
  args = parser.parse_args(argv)
  return exit_status(lambda: _run(args))


def _run(args: argparse.Namespace) -> None:
  compile_cache.enable()
  if not all(map(Whole(1, 10_000).allows, args.num_beams)):
    raise UserError(f"--num_beams={args.num_beams} must be from 1 to 10,000.")
  if args.out:
    paths.check_writable(args.out)
  measured = measure(args.workdir, args.num_beams)
  if args.out:
    run_record.write_output(args.out, measured)
  for width, seconds in measured["seconds_per_user"].items():
    print(f"beam {width}: {seconds:.4f} s a user")


if __name__ == "__main__":
  sys.exit(main())

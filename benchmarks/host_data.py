"""What data cost the host: reading a log of interactions, and dealing an epoch of it.

A log of ten interactions a user is written as atomic files and read, and its epochs are dealt, each
in a process of its own. `ratios` hold bytes of the peak beyond what the process had before, and
microseconds, an interaction or an example.

python benchmarks/host_data.py --out=results/benchmarks/host_data.json
"""

import argparse
import functools
import pathlib
import sys
import tempfile
import time

import numpy as np
from lib import harness, workload

from bbqrec_jax import run_record
from bbqrec_jax.data import atomic, batches
from bbqrec_jax.data.dataset import Dataset

MAX_HISTORY = 20
ITEMS_OF_A_USER = 10
NAME = "log"


def run(args: argparse.Namespace) -> dict:
  num_users = 200 if args.quick else 500_000
  figures = {}
  with tempfile.TemporaryDirectory() as folder:
    write(pathlib.Path(folder), num_users)
    for name, fn in dict(reading=reading, prefixes=prefixes, windows=windows).items():
      found = workload.in_own_process(fn, folder=folder)
      figures[f"{name}_bytes"], figures[f"{name}_us"] = found
  sizes = dict(num_users=num_users, num_interactions=num_users * ITEMS_OF_A_USER)
  return dict(ratios=figures, details=sizes | dict(max_history=MAX_HISTORY))


def write(folder: pathlib.Path, num_users: int) -> None:
  """A log of random items, as many as there are users."""
  items = np.random.default_rng(0).integers(0, num_users, (num_users, ITEMS_OF_A_USER))
  with (folder / f"{NAME}.inter").open("w") as file:
    file.write("user_id:token\titem_id:token\ttimestamp:float\n")
    for user, row in enumerate(items):
      file.writelines(f"user{user}\titem{item}\t{time}\n" for time, item in enumerate(row))


def load(folder: str) -> Dataset:
  return atomic.load(root=folder, name=NAME, modalities=(), min_interactions=0, cache_dir=folder)


def reading(folder: str) -> tuple[float, float]:
  """(bytes, microseconds) an interaction, and keeps what is read for the other cases."""
  dataset, *cost = _measured(functools.partial(load, folder))
  return _each(cost, len(dataset.items))


def prefixes(folder: str) -> tuple[float, float]:
  """(bytes, microseconds) an example of stage two's epochs; a prefix is an example."""
  return _dealing(folder, batches.prefixes, every_target=False)


def windows(folder: str) -> tuple[float, float]:
  """The same for stage one and the causal encoder, where a sequence is an example."""
  return _dealing(folder, batches.windows, every_target=True)


def _dealing(folder: str, examples, every_target: bool) -> tuple[float, float]:
  dataset = load(folder)

  def deal():
    data = batches.Batches(
      dataset.items,
      *examples(dataset, MAX_HISTORY),
      batch_size=256,
      lengths=batches.group_lengths(MAX_HISTORY, 4),
      seed=0,
      every_target=every_target,
    )
    return data, data.epoch(0)

  (data, _), *cost = _measured(deal)
  return _each(cost, data.num_examples)


def _measured(fn):
  """(what fn() returns, bytes of the peak beyond the one before, seconds)."""
  before, started = run_record.peak_memory_mb(), time.perf_counter()
  result = fn()
  seconds = time.perf_counter() - started
  return result, (run_record.peak_memory_mb() - before) * 2**20, seconds


def _each(cost, count: int) -> tuple[float, float]:
  num_bytes, seconds = cost
  return num_bytes / count, 1e6 * seconds / count


if __name__ == "__main__":
  sys.exit(harness.main(run, __doc__))

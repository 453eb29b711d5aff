"""What several seeds of a system say together, and whether one system beats another."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bbqrec_jax import compare, ranks
from bbqrec_jax.tables import records


class Value(NamedTuple):
  """A figure over seeds."""

  mean: float
  std: float | None  # Of the sample, over seeds; None for a single one.
  count: int


def over_seeds(values: Sequence[float | None]) -> Value | None:
  """The mean and standard deviation of the figures that are there; None if none is."""
  there = [value for value in values if value is not None]
  if not there:
    return None
  std = float(np.std(there, ddof=1)) if len(there) > 1 else None
  return Value(float(np.mean(there)), std, len(there))


class Test(NamedTuple):
  """A system against the best of the others, by one metric."""

  against: str  # The label of the other.
  gain: float  # Relative: 0.05 for 5 % more.
  p: float | None  # Over users; None where these are not the same.
  p_seeds: float | None  # Over seeds; None, too, where one of the two has a single seed.


def test(ours: Sequence[dict], theirs: Sequence[dict], metric: str, against: str) -> Test:
  """Whether `ours` is better, by the tests of bbqrec_jax/compare.py.

  Args:
    ours, theirs: records, at least one of each.
    metric: of the test split, as records.quantity() knows it.
    against: what to call `theirs`.

  Raises UserError if a record's ranks are damaged.
  """
  of_ours, of_theirs = (
    [records.quantity(record, metric) for record in found] for found in (ours, theirs)
  )
  best = np.mean(of_theirs)
  gain = float(np.mean(of_ours) / best - 1) if best else float("inf")
  if len({_users(record) for record in (*ours, *theirs)}) > 1:
    return Test(against, gain, None, None)
  *unseen, name = metric.split()
  key = "test_unseen_ranks" if unseen else "test_ranks"
  unpacked = ([ranks.unpack(record[key]["packed"]) for record in found] for found in (theirs, ours))
  compared = compare.compare_ranks(*unpacked, name)
  return Test(against, gain, compared.p, compared.p_seeds)


def _users(found: dict) -> tuple:
  """What must be the same where users are paired. The data's hash would know the features too."""
  table1 = found["data"]["table1"]
  return found["test_ranks"]["users"], table1["items"], table1["interactions"]

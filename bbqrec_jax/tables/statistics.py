"""What several seeds of a system say together, and whether one system beats another."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bbqrec_jax import metrics, ranks


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
  p: float | None  # None where the users are not the same.


def per_user(found: Sequence[dict], metric: str) -> np.ndarray:
  """[U] float64: a metric ("recall@5") of every user, the mean over the records' seeds."""
  name, k = metric.split("@")
  of_ranks = dict(recall=metrics.recall_per_user, ndcg=metrics.ndcg_per_user)[name]
  of_runs = [ranks.unpack(record["test_ranks"]["packed"]) for record in found]
  return np.mean([of_ranks(x, int(k)) for x in of_runs], axis=0)


def test(ours: Sequence[dict], theirs: Sequence[dict], metric: str, against: str) -> Test:
  """Whether `ours` is better: a two-sided t-test paired by user, of means over seeds.

  Args:
    ours, theirs: records, at least one of each.
    against: what to call `theirs`.

  Raises UserError if a record's ranks are damaged.
  """
  means = [np.mean([record["test"][metric] for record in found]) for found in (ours, theirs)]
  gain = float(means[0] / means[1] - 1) if means[1] else float("inf")
  if len({_users(record) for record in (*ours, *theirs)}) > 1:
    return Test(against, gain, None)
  a, b = per_user(theirs, metric), per_user(ours, metric)
  return Test(against, gain, metrics.paired_t_test(a, b).p)


def _users(found: dict) -> tuple:
  """What must be the same where users are paired. The data's hash would know the features too."""
  table1 = found["data"]["table1"]
  return found["test_ranks"]["users"], table1["items"], table1["interactions"]

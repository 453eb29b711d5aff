"""Ranking metrics over the whole catalogue, their comparison between runs, and code usage.

A rank is where a user's target stands among the candidates, counted from 1. A hit is the target
item itself: an item that merely shares its semantic ID is another item. Candidates are all items,
or all but `seen`, those that the user has had.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

NOT_FOUND = 2**31 - 1  # Rank of a target that was not among the returned items.


def ranks_from_items(
  items: jax.Array, targets: jax.Array, seen: jax.Array | None = None
) -> jax.Array:
  """Ranks of targets in lists of items, best first.

  Args:
    items: [U, k] int32, distinct in a row; -1 where fewer than k items were returned.
    targets: [U] int32.
    seen: [U, S] int32, -1 at padding: what is taken out of the lists.

  Returns:
    [U] int32 in [1, k], or NOT_FOUND.
  """
  if items.ndim != 2 or targets.shape != items.shape[:1]:
    raise ValueError(f"items must be [U, k] and targets [U], got {items.shape}, {targets.shape}.")
  is_candidate = items >= 0
  if seen is not None:
    is_candidate &= ~jnp.any(items[:, :, None] == seen[:, None, :], axis=2)
  is_target = is_candidate & (items == targets[:, None])
  places = jnp.sum(jnp.where(is_target, jnp.cumsum(is_candidate, axis=1), 0), axis=1)
  return jnp.where(places > 0, places, NOT_FOUND).astype(jnp.int32)


def ranks_from_scores(
  scores: jax.Array, targets: jax.Array, seen: jax.Array | None = None
) -> jax.Array:
  """Ranks of targets among all items; ties count against the model.

  1 + the number of items scored higher + the number of other items scored equal, so that constant
  scores earn nothing. A score that is not a number ranks its user last.

  Args:
    scores: [B, I] float; -inf for an item that must not be recommended.
    targets: [B] int32 in [0, I).
    seen: [B, S] int32, distinct in a row, -1 at padding: items that are no candidates.

  Returns:
    [B] int32 in [1, I]; NOT_FOUND where the target has been seen.
  """
  if scores.ndim != 2 or targets.shape != scores.shape[:1]:
    raise ValueError(f"scores must be [B, I] and targets [B], got {scores.shape}, {targets.shape}.")
  target_scores = jnp.take_along_axis(scores, targets[:, None], axis=1)  # [B, 1]
  # "Not lower" counts the target itself, its ties, and whatever cannot be compared.
  ranks = jnp.sum(~(scores < target_scores), axis=1, dtype=jnp.int32)
  if seen is None:
    return ranks
  seen_scores = jnp.take_along_axis(scores, jnp.maximum(seen, 0), axis=1)  # [B, S]
  return without_seen(ranks, ~(seen_scores < target_scores), targets, seen)


def without_seen(
  ranks: jax.Array, is_before: jax.Array, targets: jax.Array, seen: jax.Array
) -> jax.Array:
  """What ranks among all items become where those that a user has seen are no candidates.

  Args:
    ranks: [B] int32.
    is_before: [B, S] bool, whether an item of `seen` was counted into the rank.
    targets: [B] int32.
    seen: [B, S] int32, distinct in a row, -1 at padding.

  Returns:
    [B] int32, NOT_FOUND where the target has been seen.
  """
  has_seen = jnp.any(seen == targets[:, None], axis=1)
  num_before = jnp.sum(is_before & (seen >= 0), axis=1, dtype=jnp.int32)
  return jnp.where(has_seen, NOT_FOUND, ranks - num_before)


def recall_per_user(ranks: np.ndarray, k: int) -> np.ndarray:
  """1.0 for each user whose target is among the first k items, else 0.0: [U] float64."""
  return (_checked(ranks) <= k).astype(np.float64)


def ndcg_per_user(ranks: np.ndarray, k: int) -> np.ndarray:
  """1 / log2(rank + 1) within the first k items, else 0.0: [U] float64.

  Järvelin and Kekäläinen 2002, with one relevant item, whose ideal gain is 1.
  """
  ranks = _checked(ranks)
  return np.where(ranks <= k, 1.0 / np.log2(ranks + 1.0), 0.0)


def recall_at_k(ranks: np.ndarray, k: int) -> float:
  """Mean over users of `recall_per_user`, in float64."""
  return float(recall_per_user(ranks, k).mean())


def ndcg_at_k(ranks: np.ndarray, k: int) -> float:
  """Mean over users of `ndcg_per_user`, in float64."""
  return float(ndcg_per_user(ranks, k).mean())


def summary(ranks: np.ndarray, ks: Sequence[int]) -> dict[str, float]:
  """{"recall@5": ..., "ndcg@5": ...} for each k, in the order of `ks`."""
  results = {}
  for k in ks:
    results[f"recall@{k}"] = recall_at_k(ranks, k)
    results[f"ndcg@{k}"] = ndcg_at_k(ranks, k)
  return results


class PairedTest(NamedTuple):
  """A paired t-test; fields as in `paired_t_test`."""

  mean_difference: float
  t: float
  p: float
  dof: int


def paired_t_test(per_user_a: np.ndarray, per_user_b: np.ndarray) -> PairedTest:
  """Two-sided paired t-test of b - a over users.

  Args:
    per_user_a, per_user_b: [U] float, one metric of the same users in the same order; U > 1.

  Returns:
    The mean of b - a, the t statistic of its sign, the p-value, and U - 1 degrees of freedom.
    Equal inputs give t = 0 and p = 1.
  """
  a, b = np.asarray(per_user_a, np.float64), np.asarray(per_user_b, np.float64)
  if a.shape != b.shape or a.ndim != 1 or len(a) < 2:
    raise ValueError(f"Two [U] arrays with U > 1 are needed, got {a.shape} and {b.shape}.")
  if np.array_equal(a, b):  # SciPy would divide zero by zero.
    return PairedTest(0.0, 0.0, 1.0, len(a) - 1)
  import scipy.stats  # Here, since it takes longer to import than all the rest of the package.

  result = scipy.stats.ttest_rel(b, a)
  return PairedTest(
    float(np.mean(b - a)), float(result.statistic), float(result.pvalue), len(a) - 1
  )


def welch_p(a: Sequence[float], b: Sequence[float]) -> float | None:
  """p of Welch's two-sided t-test for different means, of samples that may vary differently.

  Args:
    a, b: one figure of each seed.

  Returns:
    None where one of them has fewer than two seeds; 1 where all figures are equal.
  """
  if min(len(a), len(b)) < 2:
    return None
  if np.ptp(a) == 0 and np.ptp(b) == 0:  # SciPy would divide by zero.
    return 1.0 if a[0] == b[0] else 0.0
  import scipy.stats  # As above.

  of_a, of_b = ((np.mean(x), np.std(x, ddof=1), len(x)) for x in (a, b))
  return float(scipy.stats.ttest_ind_from_stats(*of_a, *of_b, equal_var=False).pvalue)


class CodeUsage(NamedTuple):
  """How a set of codes uses its codebook; fields as in `code_usage`."""

  coverage: float
  perplexity: float
  dead: int


def code_usage(codes: np.ndarray, codebook_size: int) -> CodeUsage:
  """Usage of one codebook of N codes.

  Args:
    codes: int in [0, N), any shape, not empty.

  Returns:
    coverage: the fraction of the N codes that occur, in (0, 1].
    perplexity: exp of the entropy of their frequencies, in [1, N]; N when all are used alike.
    dead: the number of codes that do not occur.
  """
  codes = np.asarray(codes).ravel()
  if len(codes) == 0 or codes.min() < 0 or codes.max() >= codebook_size:
    raise ValueError(f"codes must be in [0, {codebook_size}) and not empty.")
  counts = np.bincount(codes, minlength=codebook_size)
  frequencies = counts[counts > 0] / len(codes)
  perplexity = float(np.exp(-np.sum(frequencies * np.log(frequencies))))
  return CodeUsage(len(frequencies) / codebook_size, perplexity, int(np.sum(counts == 0)))


def _checked(ranks: np.ndarray) -> np.ndarray:
  """The ranks, on the host; raises ValueError if they cannot be ranks of users."""
  ranks = np.asarray(ranks)
  if ranks.ndim != 1 or len(ranks) == 0 or ranks.min() < 1:
    raise ValueError(f"ranks must be [U], counted from 1, and not empty; got {ranks.shape}.")
  return ranks

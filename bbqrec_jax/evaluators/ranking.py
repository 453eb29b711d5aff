"""Recall and NDCG over the whole catalogue, for every user of a split."""

from collections.abc import Callable

import numpy as np

from bbqrec_jax import metrics
from bbqrec_jax.data import dataset as dataset_lib

KS = (5, 10)
NAMES = tuple(metrics.summary(np.ones(1, np.int32), KS))  # "recall@5" and so on.


class Evaluator:
  """Ranks every user's held-out item among all items.

  Each user counts once: a partial last batch weighs what it holds. Items of the user's history
  stay candidates, as in the paper's protocol.
  """

  def __init__(
    self,
    dataset: dataset_lib.Dataset,
    *,
    split: str,
    max_history: int,
    batch_size: int,
    max_users: int = 0,
  ):
    """split: "valid" or "test". max_users: 0 for all, else a fixed, evenly spaced sample."""
    self._history, self._targets = dataset_lib.histories(dataset, split, max_history)
    if max_users and max_users < dataset.num_users:
      users = np.linspace(0, dataset.num_users - 1, max_users).astype(int)
      self._history, self._targets = self._history[users], self._targets[users]
    self._batch_size = min(batch_size, len(self._targets))

  def run(self, rank_fn: Callable) -> tuple[dict[str, float], np.ndarray]:
    """Evaluates.

    Args:
      rank_fn: (history [B, T] int32, targets [B] int32) -> [B] int32 ranks, 1 for the best;
        metrics.NOT_FOUND where the target was not returned.

    Returns:
      ({"recall@5": ..., ...}, ranks [U] int32 in the order of the dataset's users).
    """
    num_users = len(self._targets)
    ranks, pending = np.empty(num_users, np.int32), []
    for start in range(0, num_users, self._batch_size):
      rows = np.arange(start, start + self._batch_size)
      valid = rows < num_users
      rows = np.minimum(rows, num_users - 1)  # The last batch repeats a user, not counted.
      pending.append((rows, valid, rank_fn(self._history[rows], self._targets[rows])))
      if len(pending) > 1:  # Fetch a batch after the next one is dispatched.
        _store(ranks, *pending.pop(0))
    _store(ranks, *pending.pop())
    return metrics.summary(ranks, KS), ranks


def _store(ranks, rows, valid, batch_ranks):
  ranks[rows[valid]] = np.asarray(batch_ranks)[valid]

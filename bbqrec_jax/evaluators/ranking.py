"""Recall and NDCG over the whole catalogue, for every user of a split."""

import functools
import pathlib
import time
from collections.abc import Callable

import jax
import numpy as np

from bbqrec_jax import metrics
from bbqrec_jax.data import dataset as dataset_lib
from bbqrec_jax.data import npz
from bbqrec_jax.partition import Partition

KS = (5, 10)
RANKS_FILE = "ranks.npz"
BATCHES_AT_ONCE = 4  # C: of users, in one call.
NAMES = tuple(metrics.summary(np.ones(1, np.int32), KS))  # "recall@5" and so on.


class Evaluator:
  """Ranks every user's held-out item among all items.

  Each user counts once: a partial last batch weighs what it holds. Items of the user's history
  stay candidates, as in RecBole, on which the paper's baselines are based; it says nothing of them.
  """

  def __init__(
    self,
    dataset: dataset_lib.Dataset,
    *,
    split: str,
    max_history: int,
    batch_size: int,
    max_users: int = 0,
    row_multiple: int = 1,
  ):
    """Chooses the users.

    Args:
      split: "valid" or "test".
      batch_size: users of a batch, raised to a multiple of row_multiple.
      max_users: 0 for all, else a fixed, evenly spaced sample.
      row_multiple: how many parts the rows of a batch are shared in.
    """
    self._history, self._targets = dataset_lib.histories(dataset, split, max_history)
    if max_users and max_users < dataset.num_users:
      users = np.linspace(0, dataset.num_users - 1, max_users).astype(int)
      self._history, self._targets = self._history[users], self._targets[users]
    batch_size = min(batch_size, len(self._targets))
    self._batch_size = -(-batch_size // row_multiple) * row_multiple

  def run(self, rank_fn: Callable) -> tuple[dict[str, float], np.ndarray]:
    """Evaluates.

    Args:
      rank_fn: (history [C, B, T] int32, targets [C, B] int32) -> [C, B] int32 ranks, 1 for the
        best; metrics.NOT_FOUND where the target was not returned. make_rank_fn() gives one.

    Returns:
      ({"recall@5": ..., ...}, ranks [U] int32 in the order of the dataset's users).
    """
    num_users, shape = len(self._targets), (BATCHES_AT_ONCE, self._batch_size)
    ranks, pending = np.empty(num_users, np.int32), []
    for start in range(0, num_users, shape[0] * shape[1]):
      rows = np.arange(start, start + shape[0] * shape[1])
      valid = rows < num_users
      rows = np.minimum(rows, num_users - 1)  # The last call repeats a user, not counted.
      history, targets = self._history[rows], self._targets[rows]
      found = rank_fn(history.reshape(*shape, -1), targets.reshape(shape))
      pending.append((rows[valid], valid, found))
      if len(pending) > 1:  # Fetch the ranks of a call after the next one is dispatched.
        _store(ranks, *pending.pop(0))
    _store(ranks, *pending.pop())
    return metrics.summary(ranks, KS), ranks


def make_rank_fn(rank_fn: Callable, partition: Partition) -> Callable:
  """Builds (context, history [C, B, T], targets [C, B]) -> ranks [C, B], compiled.

  Args:
    rank_fn: (context, history [B, T], targets [B]) -> ranks [B]; taken over one batch after the
      other in one program. `context` is whatever it reads: parameters, a catalogue.
    partition: how devices share the users of a batch.
  """

  @functools.partial(jax.jit, out_shardings=partition.replicated)
  def over_batches(context, history, targets):
    return jax.lax.map(lambda batch: rank_fn(context, *batch), (history, targets))

  def ranks(context, history, targets):
    place = functools.partial(partition.place_rows, axis=1)
    return over_batches(context, place(history), place(targets))

  return ranks


def evaluate_splits(
  make_evaluator: Callable, rank_fn: Callable
) -> tuple[dict[str, dict[str, float] | float], dict[str, np.ndarray]]:
  """Both splits, at the end of a stage: the only place where the test split is touched.

  Args:
    make_evaluator: split= -> Evaluator.
    rank_fn: as for Evaluator.run().

  Returns:
    (results, ranks): split -> what Evaluator.run() gives. Among the results also test_seconds, what
    the test split took; nothing was compiled in it, the validation split came first.
  """
  results, ranks = {}, {}
  for split in ("valid", "test"):
    evaluator, started = make_evaluator(split=split), time.perf_counter()
    results[split], ranks[split] = evaluator.run(rank_fn)
    results["test_seconds"] = time.perf_counter() - started
  return results, ranks


def save_ranks(
  workdir: pathlib.Path, dataset: dataset_lib.Dataset, ranks: dict[str, np.ndarray]
) -> None:
  """Writes <workdir>/ranks.npz, what paired tests read.

  It has [U] user_ids, split -> [U] ranks, and [] sequences, dataset.sequence_fingerprint().
  """
  sequences = np.array(dataset_lib.sequence_fingerprint(dataset))
  npz.write(workdir / RANKS_FILE, user_ids=dataset.user_ids, sequences=sequences, **ranks)


def _store(ranks, rows, valid, found):
  ranks[rows] = np.asarray(found).reshape(-1)[valid]

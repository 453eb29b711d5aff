"""Recall and NDCG over the whole catalogue, for every user of a split."""

import functools
import pathlib
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from bbqrec_jax import metrics
from bbqrec_jax.data import dataset as dataset_lib
from bbqrec_jax.data import npz
from bbqrec_jax.partition import Partition

KS = (5, 10)
RANKS_FILE = "ranks.npz"
BATCHES_AT_ONCE = 4  # C: of users, in one call.
# What is reported: "unseen" leaves the items of each user's history out of the candidates.
SPLITS = ("valid", "valid_unseen", "test", "test_unseen")
NAMES = tuple(metrics.summary(np.ones(1, np.int32), KS))  # "recall@5" and so on.


class Ranks(NamedTuple):
  """Where users' targets stand, int32 from 1.

  Attributes:
    all: among all items.
    unseen: among those that the user has not had; NOT_FOUND for a target that was had before.
  """

  all: jax.Array | np.ndarray
  unseen: jax.Array | np.ndarray


class Evaluator:
  """Ranks every user's held-out item.

  Each user counts once: a partial last batch weighs what it holds. What selects a model ranks the
  target among all items: those of the user's history stay candidates, as in RecBole, on which the
  paper's baselines are based; it says nothing of them. Ranks without them are taken beside.
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
    self._dataset, self._split = dataset, split
    self._users = np.arange(dataset.num_users)
    if max_users and max_users < dataset.num_users:
      self._users = np.linspace(0, dataset.num_users - 1, max_users).astype(int)
    self._history, self._targets = dataset_lib.histories(dataset, split, max_history, self._users)
    # Before a test target; of both splits, so that one program serves them.
    self._longest = int(np.diff(dataset.offsets).max()) - dataset_lib.HELD_OUT["test"]
    batch_size = min(batch_size, len(self._targets))
    self._batch_size = -(-batch_size // row_multiple) * row_multiple

  def run(self, rank_fn: Callable) -> tuple[dict[str, float], Ranks]:
    """Evaluates.

    Args:
      rank_fn: (history [C, B, T] int32, seen [C, B, S] int32, targets [C, B] int32) -> Ranks of
        [C, B], metrics.NOT_FOUND where the target was not returned. `seen` has all items of each
        user's history, distinct, -1 at padding. make_rank_fn() gives one.

    Returns:
      ({"recall@5": ..., ...} among all items, Ranks of [U] in the order of the dataset's users).
    """
    num_users, shape = len(self._targets), (BATCHES_AT_ONCE, self._batch_size)
    ranks, pending = Ranks(*np.empty((2, num_users), np.int32)), []
    for start in range(0, num_users, shape[0] * shape[1]):
      rows = np.arange(start, start + shape[0] * shape[1])
      valid = rows < num_users
      rows = np.minimum(rows, num_users - 1)  # The last call repeats a user, not counted.
      history, targets = self._history[rows], self._targets[rows]
      seen = self._seen(rows)
      found = rank_fn(history.reshape(*shape, -1), seen.reshape(*shape, -1), targets.reshape(shape))
      pending.append((rows[valid], valid, found))
      if len(pending) > 1:  # Fetch the ranks of a call after the next one is dispatched.
        _store(ranks, *pending.pop(0))
    _store(ranks, *pending.pop())
    return metrics.summary(ranks.all, KS), ranks

  def _seen(self, rows: np.ndarray) -> np.ndarray:
    """All items of each user's history, each once: [n, S] int32, -1 at padding."""
    users = self._users[rows]
    seen, _ = dataset_lib.histories(self._dataset, self._split, self._longest, users)
    seen.sort(axis=1)
    seen[:, 1:][seen[:, 1:] == seen[:, :-1]] = -1
    return seen


def by_scores(scores: jax.Array, seen: jax.Array, targets: jax.Array) -> Ranks:
  """Both ranks of targets [B] by scores [B, I]; arguments as in metrics.ranks_from_scores()."""
  ranked = (metrics.ranks_from_scores(scores, targets, without) for without in (None, seen))
  return Ranks(*ranked)


def by_lists(items: jax.Array, seen: jax.Array, targets: jax.Array) -> Ranks:
  """Both ranks of targets [B] in lists [B, k]; arguments as in metrics.ranks_from_items().

  Beyond the list nothing is known: where a user has seen more than k - n of it, what ranks n-th
  among the others may be missed.
  """
  ranked = (metrics.ranks_from_items(items, targets, without) for without in (None, seen))
  return Ranks(*ranked)


def make_rank_fn(rank_fn: Callable, partition: Partition) -> Callable:
  """Builds (context, history [C, B, T], seen [C, B, S], targets [C, B]) -> Ranks of [C, B].

  Args:
    rank_fn: (context, history [B, T], seen [B, S], targets [B]) -> Ranks of [B]; taken over one
      batch after the other in one program. `context` is whatever it reads: parameters, a catalogue.
    partition: how devices share the users of a batch.
  """

  @functools.partial(jax.jit, out_shardings=partition.replicated)
  def over_batches(context, batches):
    return jax.lax.map(lambda batch: rank_fn(context, *batch), batches)

  def ranks(context, *batches):
    return over_batches(context, [partition.place_rows(array, axis=1) for array in batches])

  return ranks


def evaluate_splits(
  make_evaluator: Callable, rank_fn: Callable
) -> tuple[dict[str, dict[str, float] | float], dict[str, np.ndarray]]:
  """All SPLITS, at the end of a stage: the only place where the test split is touched.

  Args:
    make_evaluator: split= -> Evaluator.
    rank_fn: as for Evaluator.run().

  Returns:
    (results, ranks): split -> {"recall@5": ..., ...}, and split -> [U] int32. Among the results
    also test_seconds, what the test split took; nothing was compiled in it, the validation split
    came first.
  """
  results, ranks = {}, {}
  for split in ("valid", "test"):
    evaluator, started = make_evaluator(split=split), time.perf_counter()
    results[split], found = evaluator.run(rank_fn)
    results["test_seconds"] = time.perf_counter() - started
    ranks |= {split: found.all, f"{split}_unseen": found.unseen}
    results[f"{split}_unseen"] = metrics.summary(found.unseen, KS)
  return results, ranks


def save_ranks(
  workdir: pathlib.Path, dataset: dataset_lib.Dataset, ranks: dict[str, np.ndarray]
) -> None:
  """Writes <workdir>/ranks.npz, what paired tests read.

  It has [U] user_ids, split -> [U] ranks, and [] sequences, dataset.sequence_fingerprint().
  """
  sequences = np.array(dataset_lib.sequence_fingerprint(dataset))
  npz.write(workdir / RANKS_FILE, user_ids=dataset.user_ids, sequences=sequences, **ranks)


def _store(ranks: Ranks, rows: np.ndarray, valid: np.ndarray, found: Ranks) -> None:
  for kind, values in zip(ranks, found):
    kind[rows] = np.asarray(values).reshape(-1)[valid]

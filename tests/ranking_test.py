"""The evaluator's averages count every user once."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from bbqrec_jax import metrics, partition
from bbqrec_jax.data.dataset import make_dataset
from bbqrec_jax.evaluators import ranking

U, I, T = 11, 13, 5


def _dataset():
  rng = np.random.default_rng(0)
  offsets = np.concatenate([[0], np.cumsum(rng.integers(3, 9, U))])
  return make_dataset(
    "toy",
    user_ids=np.arange(U).astype(str),
    item_ids=np.arange(I).astype(str),
    items=rng.integers(0, I, offsets[-1]).astype(np.int32),
    offsets=offsets,
    features={},
    titles=np.full(I, ""),
  )


def _rank(history, target):
  """Some rank that depends on everything a user brings along."""
  rank = 1 + (7 * sum((t + 1) * item for t, item in enumerate(history)) + target) % 12
  return metrics.NOT_FOUND if rank == 12 else rank


def _rank_fn(calls):
  """Ranks by what a user brings along; as unseen ones, by everything that the user has had."""

  def rank_fn(history, seen, targets):
    calls.append((history.shape, seen.shape))
    assert targets.shape == history.shape[:2] == seen.shape[:2]
    there = lambda items: [[item for item in row if item >= 0] for row in items.tolist()]
    given = there(history.reshape(-1, T)), there(seen.reshape(-1, seen.shape[-1]))
    ranks = [[_rank(items, t) for items, t in zip(rows, targets.ravel())] for rows in given]
    return ranking.Ranks(*(jnp.array(of_kind).reshape(targets.shape) for of_kind in ranks))

  return rank_fn


def _expected(dataset, split, users):
  held_out = dict(valid=2, test=1)[split]
  ranks, unseen = [], []
  for user in users:
    *had, target = dataset.sequence(user).tolist()[: 1 - held_out or None]
    ranks.append(_rank(had[-T:], target))
    unseen.append(_rank(sorted(set(had)), target))
  return ranks, unseen


def _summary(ranks, k):
  hits = [rank for rank in ranks if rank <= k]
  return len(hits) / len(ranks), sum(1 / math.log2(rank + 1) for rank in hits) / len(ranks)


@pytest.mark.parametrize("split", ["valid", "test"])
@pytest.mark.parametrize("batch_size", [1, 4, U, 100])
def test_every_user_counts_once_whatever_the_batch_size(split, batch_size):
  dataset, calls = _dataset(), []
  evaluator = ranking.Evaluator(dataset, split=split, max_history=T, batch_size=batch_size)
  results, ranks = evaluator.run(_rank_fn(calls))
  expected, unseen = _expected(dataset, split, range(U))
  assert ranks.all.tolist() == expected and ranks.unseen.tolist() == unseen
  assert list(results) == ["recall@5", "ndcg@5", "recall@10", "ndcg@10"]
  for k in (5, 10):
    np.testing.assert_allclose(
      (results[f"recall@{k}"], results[f"ndcg@{k}"]), _summary(expected, k), rtol=1e-12
    )
  # One shape, so that one program serves all, and both splits.
  shape = (ranking.BATCHES_AT_ONCE, min(batch_size, U))
  longest = max(len(dataset.sequence(user)) for user in range(U)) - 1
  assert set(calls) == {((*shape, T), (*shape, longest))}


@pytest.mark.parametrize(("max_users", "users"), [
  (1, [0]), (3, [0, 5, 10]), (4, [0, 3, 6, 10]), (10, [0, 1, 2, 3, 4, 5, 6, 7, 8, 10]),
  (11, range(U)), (12, range(U)), (0, range(U)),
])  # fmt: skip
def test_a_sample_is_evenly_spaced(max_users, users):
  dataset = _dataset()
  evaluator = ranking.Evaluator(
    dataset, split="valid", max_history=T, batch_size=3, max_users=max_users
  )
  _, ranks = evaluator.run(_rank_fn([]))
  expected, unseen = _expected(dataset, "valid", users)
  assert ranks.all.tolist() == expected and ranks.unseen.tolist() == unseen


def test_a_rank_fn_is_taken_over_batches_in_one_program():
  def rank_fn(context, history, seen, targets):
    assert history.shape == (3, T) and seen.shape == (3, 2)
    ranks = context["offset"] + jnp.sum(history, axis=1) * targets
    return ranking.Ranks(ranks, ranks - jnp.sum(seen, axis=1))

  rng = np.random.default_rng(0)
  history, targets = rng.integers(0, I, (4, 3, T)), rng.integers(0, I, (4, 3))
  seen = rng.integers(0, I, (4, 3, 2))
  ranks = ranking.make_rank_fn(rank_fn, partition.Partition(num_devices=1))(
    dict(offset=7), history, seen, targets
  )
  expected = 7 + history.sum(axis=2) * targets
  np.testing.assert_array_equal(ranks.all, expected)
  np.testing.assert_array_equal(ranks.unseen, expected - seen.sum(axis=2))

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
  def rank_fn(history, targets):
    calls.append(history.shape)
    assert targets.shape == history.shape[:2]
    pairs = zip(history.reshape(-1, T).tolist(), targets.ravel().tolist())
    ranks = [_rank([item for item in row if item >= 0], t) for row, t in pairs]
    return jnp.array(ranks).reshape(targets.shape)

  return rank_fn


def _expected(dataset, split, users):
  held_out = dict(valid=2, test=1)[split]
  ranks = []
  for user in users:
    sequence = dataset.sequence(user).tolist()
    ranks.append(_rank(sequence[:-held_out][-T:], sequence[-held_out]))
  return ranks


def _summary(ranks, k):
  hits = [rank for rank in ranks if rank <= k]
  return len(hits) / len(ranks), sum(1 / math.log2(rank + 1) for rank in hits) / len(ranks)


@pytest.mark.parametrize("split", ["valid", "test"])
@pytest.mark.parametrize("batch_size", [1, 4, U, 100])
def test_every_user_counts_once_whatever_the_batch_size(split, batch_size):
  dataset, calls = _dataset(), []
  evaluator = ranking.Evaluator(dataset, split=split, max_history=T, batch_size=batch_size)
  results, ranks = evaluator.run(_rank_fn(calls))
  expected = _expected(dataset, split, range(U))
  assert ranks.tolist() == expected
  assert list(results) == ["recall@5", "ndcg@5", "recall@10", "ndcg@10"]
  for k in (5, 10):
    np.testing.assert_allclose(
      (results[f"recall@{k}"], results[f"ndcg@{k}"]), _summary(expected, k), rtol=1e-12
    )
  # One shape, so that one program serves all.
  assert set(calls) == {(ranking.BATCHES_AT_ONCE, min(batch_size, U), T)}


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
  assert ranks.tolist() == _expected(dataset, "valid", users)


def test_a_rank_fn_is_taken_over_batches_in_one_program():
  def rank_fn(context, history, targets):
    assert history.shape == (3, T)
    return context["offset"] + jnp.sum(history, axis=1) * targets

  rng = np.random.default_rng(0)
  history, targets = rng.integers(0, I, (4, 3, T)), rng.integers(0, I, (4, 3))
  ranks = ranking.make_rank_fn(rank_fn, partition.Partition(num_devices=1))(
    dict(offset=7), history, targets
  )
  np.testing.assert_array_equal(ranks, 7 + history.sum(axis=2) * targets)

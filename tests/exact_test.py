"""Widening beams until the result is proven: against scoring every item."""

import chex
import jax.numpy as jnp
import numpy as np
import pytest

from bbqrec_jax.decoding import beam, exact
from bbqrec_jax.decoding import trie as trie_lib
from tests import generate_test as real
from tests.reference import decoding as oracle

ITEMS, L, M, N, B, K = 43, 3, 2, 5, 11, 2


def make_catalogue():
  codes = np.random.default_rng(0).integers(0, N, (ITEMS, L, M))
  codes[::5] = codes[1]  # Collisions.
  return codes, np.random.default_rng(1).integers(0, 3, ITEMS)


def make_model(seed, favourite, strength, is_rounded=False):
  """log_prob_fn of a model whose every prefix has its own random distributions.

  The semantic ID `favourite`, [L, M], has logits higher by `strength`.
  """

  def log_prob_fn(prefix):
    rng = np.random.default_rng([seed, *np.ravel(prefix).astype(int)])
    logits = rng.normal(size=(M, N))
    if np.array_equal(prefix, favourite[: len(prefix)]):
      logits[np.arange(M), favourite[len(prefix)]] += strength
    log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return (np.round(log_probs) if is_rounded else log_probs).astype(np.float32)

  return log_prob_fn


class SlowSearch:
  """search_fn over models, by the slow beam search; remembers what it was asked."""

  def __init__(self, models, codes, popularity, num_results):
    self.models, self.catalogue, self.num_results = models, (codes, popularity), num_results
    self.asked = []

  def __call__(self, num_beams, users):
    self.asked.append((num_beams, users.tolist()))
    items = np.full((len(users), self.num_results), -1, np.int32)
    scores = np.full(items.shape, -np.inf, np.float32)
    bounds = np.zeros(len(users), np.float32)
    for row, user in enumerate(users):
      found, bounds[row] = oracle.beam_items(
        self.models[user], *self.catalogue, self.num_results, num_beams
      )
      items[row, : len(found)] = [item for item, _ in found]
      scores[row, : len(found)] = [score for _, score in found]
    return beam.Beams(*map(jnp.asarray, (items, scores, bounds)))


def check(found, models, codes, popularity, num_results):
  for b, model in enumerate(models):
    expected = oracle.best_items(model, codes, popularity, num_results)
    missing = [-1] * (num_results - len(expected))
    assert found.items[b].tolist() == [item for item, _ in expected] + missing
    np.testing.assert_array_equal(found.scores[b][: len(expected)], [s for _, s in expected])


@pytest.mark.parametrize("is_rounded", [False, True])  # True: with ties.
def test_finds_the_true_best_items_of_every_user(monkeypatch, is_rounded):
  codes, popularity = make_catalogue()
  trie = trie_lib.build(codes, N, popularity)
  # The more a model prefers items 0, 5, 10, ..., which collide, the fewer beams it takes.
  models = [make_model(seed, codes[0], seed / 2, is_rounded) for seed in range(B)]
  search = SlowSearch(models, codes, popularity, K)
  monkeypatch.setattr(exact, "_BEAMS_AT_ONCE", 24)
  found = exact.widen_until_proven(search, np.arange(B), trie, num_beams=3)
  check(found, models, codes, popularity, K)
  chex.assert_shape(tuple(found), ((B, K), (B, K), (B,), (B,)))

  # Wider beams search the users that were not proven, and nobody else, in batches of one size.
  narrow = search(3, np.arange(B))
  search.asked.pop()
  proven = np.asarray((narrow.scores[:, -1] > narrow.bound) | (narrow.bound == -np.inf))
  np.testing.assert_array_equal(found.num_beams == 3, proven)
  assert proven.any() and len(set(found.num_beams)) == 3
  for width in (3, 12, trie.num_nodes[-1]):
    batches = [users for asked, users in search.asked if asked == width]
    assert {len(users) for users in batches} == {max(1, 24 // width)}
    np.testing.assert_array_equal(np.unique(batches), np.flatnonzero(found.num_beams >= width))


def test_a_greedy_trap():
  """The best first code leads to poor items only, and one beam follows it."""
  tables = np.log([[[0.6, 0.4]], [[0.1, 0.9]], [[0.9, 0.1]]]).astype(np.float32)
  model = lambda prefix: tables[0 if not len(prefix) else 1 + int(np.ravel(prefix)[0])]
  codes = np.array([[[0], [0]], [[1], [0]], [[1], [1]]])  # 0.06, 0.36, 0.04; (0, 1) is no item.
  trie = trie_lib.build(codes, 2, np.zeros(3))
  search = SlowSearch([model], codes, np.zeros(3), 1)
  assert search(1, np.zeros(1, int)).items.tolist() == [[0]]
  found = exact.widen_until_proven(search, np.zeros(1, int), trie, num_beams=1)
  assert (found.items.tolist(), found.num_beams.tolist()) == ([[1]], [3])


def test_more_results_than_possible_items():
  codes, popularity = make_catalogue()

  def certain(prefix):  # Of each level only code 1 is possible.
    return np.where(np.arange(N) == 1, 0.0, -np.inf) * np.ones((M, 1))

  models = [make_model(0, codes[0], 1.0), certain]
  trie = trie_lib.build(codes, N, popularity)
  num_results = ITEMS + 5
  search = SlowSearch(models, codes, popularity, num_results)
  found = exact.widen_until_proven(search, np.arange(2), trie, num_beams=3)
  check(found, models, codes, popularity, num_results)
  # One prefix of each length at most: nothing was dropped.
  assert found.num_beams.tolist() == [trie.num_nodes[-1], 3]
  assert (found.bound == -np.inf).all()


def test_over_the_real_generator():
  model, params, catalogue, trie, _ = real.setup()
  expected = real.all_scores(model, params, catalogue)
  search = exact.make_exact(model, num_beams=6, num_results=2)
  found = search(params, catalogue, trie, jnp.asarray(real.HISTORY))
  best = -np.sort(-expected, axis=1)[:, :2]
  np.testing.assert_allclose(found.scores, best, atol=1e-4)
  np.testing.assert_allclose(np.take_along_axis(expected, found.items, axis=1), best, atol=1e-4)
  assert set(found.num_beams) <= {6, trie.num_nodes[-1]}

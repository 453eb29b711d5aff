"""Beam search against a toy with known paths, exhaustive scoring, and a slow beam search."""

import functools
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bbqrec_jax.decoding import beam
from bbqrec_jax.decoding import trie as trie_lib
from tests.reference import decoding as oracle

B, ITEMS, L, N = 2, 61, 3, 7
STATES = 11  # A prefix's log-probabilities hang on all its tokens through a number below this.
FACTORS = (3, 5, 2)


def next_state(state, token):
  """State after a token, [..., M]: depends on the order of tokens and on the signal of a code."""
  codes = (token[..., signal] for signal in range(token.shape[-1]))
  return (4 * state + 1 + sum(f * code for f, code in zip(FACTORS, codes))) % STATES


def step_fn(level, tokens, cache):
  states, tables = cache  # [B, W]; [B, L, STATES, M, N].
  if tokens is not None:
    states = next_state(states, tokens)
  log_probs = jax.vmap(lambda table, state: table[level, state])(tables, states)
  return log_probs, (states, tables)


def reorder_fn(cache, parents):
  states, tables = cache
  return jnp.take_along_axis(states, parents, axis=1), tables


def log_prob_fn(table):
  """The same model for the oracle: a prefix [l, M] -> [M, N]."""

  def of_prefix(prefix):
    state = 0
    for token in prefix:
      state = next_state(state, token)
    return table[len(prefix), state]

  return of_prefix


def make_tables(key, num_signals):
  logits = 2.0 * jax.random.normal(key, (B, L, STATES, num_signals, N))
  return jax.nn.log_softmax(logits)


def make_catalogue(seed, num_signals):
  rng = np.random.default_rng(seed)
  codes = rng.integers(0, N, (ITEMS, L, num_signals))
  codes[:30, 0] = codes[0, 0]  # A skewed first level.
  codes[::6] = codes[1]  # Collisions.
  return codes, rng.integers(0, 4, ITEMS)


def search(tables, trie, *, num_beams, num_results):
  cache = (jnp.zeros((tables.shape[0], 1), jnp.int32), tables)
  return beam.beam_search(
    step_fn, reorder_fn, cache, trie, num_beams=num_beams, num_results=num_results
  )


jitted_search = jax.jit(search, static_argnames=("num_beams", "num_results"))


def check(found, expected):
  """One user's items and scores against [(item, score)], padded."""
  items, scores = (np.asarray(x) for x in found)
  missing = len(items) - len(expected)
  np.testing.assert_array_equal(items, [item for item, _ in expected] + [-1] * missing)
  np.testing.assert_allclose(
    scores, [score for _, score in expected] + [-np.inf] * missing, rtol=1e-6
  )


class BeamSearchTest(chex.TestCase):
  def test_wide_beam_equals_scoring_every_item(self):
    for num_signals in (1, 2, 3):
      codes, popularity = make_catalogue(num_signals, num_signals)
      tables = make_tables(jax.random.key(num_signals), num_signals)
      trie = trie_lib.build(codes, N, popularity)
      k = ITEMS + 9  # More than there are.
      found = jitted_search(tables, trie, num_beams=ITEMS, num_results=k)
      for b in range(B):
        expected = oracle.best_items(log_prob_fn(np.asarray(tables[b])), codes, popularity, k)
        self.assertLen(expected, ITEMS)
        check((found.items[b], found.scores[b]), expected)

  def test_jit_changes_nothing(self):
    codes, popularity = make_catalogue(1, 3)
    tables = make_tables(jax.random.key(1), 3)
    trie = trie_lib.build(codes, N, popularity)
    plain = search(tables, trie, num_beams=5, num_results=7)
    jitted = jitted_search(tables, trie, num_beams=5, num_results=7)
    np.testing.assert_array_equal(plain.items, jitted.items)
    chex.assert_trees_all_close(plain.scores, jitted.scores, rtol=1e-6)

  def test_narrow_beam_equals_slow_beam_search(self):
    codes, popularity = make_catalogue(4, 2)
    tables = make_tables(jax.random.key(5), 2)
    trie = trie_lib.build(codes, N, popularity)
    pruned = 0
    for num_beams in (1, 2, 5):
      found = jitted_search(tables, trie, num_beams=num_beams, num_results=13)
      for b in range(B):
        model = log_prob_fn(np.asarray(tables[b]))
        expected = oracle.beam_items(model, codes, popularity, 13, num_beams)
        check((found.items[b], found.scores[b]), expected)
        pruned += expected != oracle.best_items(model, codes, popularity, 13)
    self.assertGreater(pruned, 0)  # Otherwise the widths would not have mattered.

  def test_toy_whose_best_paths_are_known(self):
    # Level 0: code 0 with 0.6, code 1 with 0.4. Then 0 -> {0: 0.5, 1: 0.5}, 1 -> {0: 0.9, 1: 0.1}.
    first, second = np.log([[0.6, 0.4]]), np.log([[0.5, 0.5], [0.9, 0.1]])

    def toy_step(level, tokens, cache):
      table = first[0][None] if level == 0 else second[np.asarray(tokens)[0, :, 0]]
      return jnp.asarray(table, jnp.float32)[None, :, None, :], cache  # [1, W, 1, 2]

    catalogue = np.array([[[0], [0]], [[0], [1]], [[1], [0]]])  # (1, 1) is no item.
    trie = trie_lib.build(catalogue, 2, np.zeros(3))
    run = functools.partial(
      beam.beam_search, toy_step, lambda cache, parents: cache, None, trie, num_results=3
    )
    # The greedy path misses the best item, 0.4 * 0.9, and two beams find it.
    check([x[0] for x in run(num_beams=1)], [(0, np.log(0.3))])
    check([x[0] for x in run(num_beams=2)], [(2, np.log(0.36)), (0, np.log(0.3))])
    check([x[0] for x in run(num_beams=4)], [(2, np.log(0.36)), (0, np.log(0.3)), (1, np.log(0.3))])

  def test_items_of_one_leaf_come_by_popularity_then_index(self):
    codes = np.zeros((5, L, 3), int)
    tables = make_tables(jax.random.key(0), 3)
    trie = trie_lib.build(codes, N, np.array([1, 4, 4, 0, 9]))
    found = jitted_search(tables, trie, num_beams=2, num_results=4)
    np.testing.assert_array_equal(found.items, [[4, 1, 2, 0]] * B)
    np.testing.assert_array_equal(found.scores, np.repeat(found.scores[:, :1], 4, axis=1))

  def test_impossible_codes_are_never_returned(self):
    codes, popularity = make_catalogue(7, 2)
    tables = make_tables(jax.random.key(8), 2)
    tables = tables.at[0, :, :, 1, :4].set(-jnp.inf)  # User 0 only: the second signal's codes 0-3.
    tables = tables.at[1, 1].set(jnp.nan)  # User 1: a broken model.
    trie = trie_lib.build(codes, N, popularity)
    found = jitted_search(tables, trie, num_beams=ITEMS, num_results=ITEMS)
    expected = oracle.best_items(log_prob_fn(np.asarray(tables[0])), codes, popularity, ITEMS)
    self.assertBetween(len(expected), 1, ITEMS - 1)
    check((found.items[0], found.scores[0]), expected)
    check((found.items[1], found.scores[1]), [])

  def test_second_call_compiles_nothing_and_no_candidates_are_sorted(self):
    codes, popularity = make_catalogue(9, 3)
    codes[:, 1:] = np.random.default_rng(0).integers(0, N, codes[:, 1:].shape)
    trie = trie_lib.build(codes, N, popularity)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(tables, trie):
      return search(tables, trie, num_beams=5, num_results=4)

    for seed in range(2):
      run(make_tables(jax.random.key(seed), 3), trie)
    program = run.lower(make_tables(jax.random.key(0), 3), trie).compile().as_text()
    self.assertEqual(program.count('custom_call_target="TopK"'), L + 1)
    self.assertNotIn(" sort(", program)

  def test_users_are_searched_in_turn_on_a_cpu_only_and_to_the_same_end(self):
    codes, popularity = make_catalogue(2, 2)
    tables = make_tables(jax.random.key(3), 2)
    trie = trie_lib.build(codes, N, popularity)
    traced = jitted_search.trace(tables, trie, num_beams=4, num_results=7)
    loops = {
      platform: traced.lower(lowering_platforms=(platform,)).as_text().count("stablehlo.while")
      for platform in ("cpu", "cuda")
    }
    self.assertEqual(loops["cpu"] - loops["cuda"], L + 1)
    in_turn = search(tables, trie, num_beams=4, num_results=7)
    with mock.patch.object(
      jax.lax, "platform_dependent", lambda *args, cpu, default: default(*args)
    ):
      chex.assert_trees_all_close(search(tables, trie, num_beams=4, num_results=7), in_turn)

  def test_wrong_arguments_raise(self):
    codes, popularity = make_catalogue(0, 2)
    trie = trie_lib.build(codes, N, popularity)
    with self.assertRaisesRegex(ValueError, "positive"):
      search(make_tables(jax.random.key(0), 2), trie, num_beams=0, num_results=1)
    tables = make_tables(jax.random.key(0), 2)
    for wrong in (make_tables(jax.random.key(0), 3), tables[..., 1:]):  # M, N.
      with self.assertRaisesRegex(ValueError, "log_probs must be"):
        search(wrong, trie, num_beams=2, num_results=1)


@pytest.mark.parametrize("num_beams", [1, 3, 20])
def test_every_result_is_distinct_and_scored_as_its_semantic_id(num_beams):
  codes, popularity = make_catalogue(3, 3)
  tables = make_tables(jax.random.key(6), 3)
  found = jitted_search(
    tables, trie_lib.build(codes, N, popularity), num_beams=num_beams, num_results=23
  )
  for b in range(B):
    items = np.asarray(found.items[b])
    items = items[items >= 0]
    assert len(set(items)) == len(items) > 0
    scores = [oracle.score(log_prob_fn(np.asarray(tables[b])), codes[item]) for item in items]
    np.testing.assert_allclose(found.scores[b, : len(items)], scores, rtol=1e-6)
    assert np.all(np.diff(scores) <= 1e-5)

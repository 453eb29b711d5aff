"""Beam search against a toy with known paths, exhaustive scoring, and a slow beam search."""

import functools
import re
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bbqrec_jax.decoding import beam, walk
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


def make_catalogue(seed, num_signals, num_levels=L):
  """Codes and popularity. Fewer levels compile faster, and two have all kinds of parents."""
  rng = np.random.default_rng(seed)
  codes = rng.integers(0, N, (ITEMS, L, num_signals))
  codes[:30, 0] = codes[0, 0]  # A skewed first level.
  codes[::6] = codes[1]  # Collisions.
  return codes[:, :num_levels], rng.integers(0, 4, ITEMS)


def search(tables, trie, *, num_beams, num_results):
  cache = (jnp.zeros((tables.shape[0], 1), jnp.int32), tables)
  return beam.beam_search(
    step_fn, reorder_fn, cache, trie, num_beams=num_beams, num_results=num_results
  )


jitted_search = jax.jit(search, static_argnames=("num_beams", "num_results"))


@functools.cache
def narrow(num_beams):
  """Searches that drop prefixes: (tables, codes, popularity, at most 23 items of each user)."""
  codes, popularity = make_catalogue(4, 2)
  tables = make_tables(jax.random.key(5), 2)
  trie = trie_lib.build(codes, N, popularity)
  found = jitted_search(tables, trie, num_beams=num_beams, num_results=23)
  return np.asarray(tables), codes, popularity, found


NARROW = (1, 3, 20)


def check(found, b, expected, bound=-np.inf):
  """User b's items and scores against [(item, score)], padded, and their bound."""
  items, scores = np.asarray(found.items[b]), np.asarray(found.scores[b])
  missing = len(items) - len(expected)
  np.testing.assert_array_equal(items, [item for item, _ in expected] + [-1] * missing)
  np.testing.assert_allclose(
    scores, [score for _, score in expected] + [-np.inf] * missing, rtol=1e-6
  )
  np.testing.assert_allclose(found.bound[b], bound, rtol=1e-6)


class BeamSearchTest(chex.TestCase):
  def test_wide_beam_equals_scoring_every_item(self):
    for num_signals, num_levels in ((1, 1), (2, L), (3, 2)):
      codes, popularity = make_catalogue(num_signals, num_signals, num_levels)
      tables = make_tables(jax.random.key(num_signals), num_signals)
      trie = trie_lib.build(codes, N, popularity)
      k = ITEMS + 9  # More than there are.
      found = jitted_search(tables, trie, num_beams=ITEMS, num_results=k)
      for b in range(B):
        expected = oracle.best_items(log_prob_fn(np.asarray(tables[b])), codes, popularity, k)
        self.assertLen(expected, ITEMS)
        check(found, b, expected)

  def test_jit_changes_nothing(self):
    codes, popularity = make_catalogue(1, 1, num_levels=2)
    tables = make_tables(jax.random.key(1), 1)
    trie = trie_lib.build(codes, N, popularity)
    plain = search(tables, trie, num_beams=5, num_results=7)
    jitted = jitted_search(tables, trie, num_beams=5, num_results=7)
    np.testing.assert_array_equal(plain.items, jitted.items)
    chex.assert_trees_all_close(plain.scores, jitted.scores, rtol=1e-6)

  def test_narrow_beam_equals_slow_beam_search(self):
    pruned = 0
    for num_beams in NARROW:
      tables, codes, popularity, found = narrow(num_beams)
      for b in range(B):
        model = log_prob_fn(tables[b])
        expected, bound = oracle.beam_items(model, codes, popularity, 23, num_beams)
        check(found, b, expected, bound)
        pruned += expected != oracle.best_items(model, codes, popularity, 23)
    self.assertGreater(pruned, 0)  # Otherwise the widths would not have mattered.

  def test_no_item_that_was_missed_scores_above_the_bound(self):
    num_proven = num_missed = 0
    for num_beams in NARROW:
      tables, codes, popularity, found = narrow(num_beams)
      for b in range(B):
        best = oracle.best_items(log_prob_fn(tables[b]), codes, popularity, 23)
        proven = [item for item, score in best if score > found.bound[b]]
        self.assertEqual(found.items[b, : len(proven)].tolist(), proven)
        missed = [score for item, score in best if item not in found.items[b]]
        self.assertLessEqual(max(missed, default=-np.inf), found.bound[b])
        num_proven, num_missed = num_proven + len(proven), num_missed + len(missed)
    self.assertGreater(min(num_proven, num_missed), 0)

  def test_every_way_to_search_finds_the_same_ties_and_bound_included(self):
    codes, popularity = make_catalogue(11, 2, num_levels=2)
    tables = np.round(np.asarray(make_tables(jax.random.key(12), 2)))  # Sums are exact, and tie.
    cases = (  # How the root is searched, children a block, slots a turn, beams.
      ("all", 1, 2, 3),  # Many turns.
      ("all", 5, 2048, 17),
      ("all", 64, 2048, 17),  # No turns: every parent fits one block.
      ("rank", 3, 8, 3),
      ("rank", 16, 2048, 17),
    )
    num_ties = 0
    for root_search, block_size, slots, num_beams in cases:
      trie = trie_lib.build(codes, N, popularity, root_search=root_search, block_size=block_size)
      with mock.patch.object(walk, "_CHUNK_SLOTS", slots):
        found = jitted_search(jnp.asarray(tables), trie, num_beams=num_beams, num_results=13)
      for b in range(B):
        expected, bound = oracle.beam_items(
          log_prob_fn(tables[b]), codes, popularity, 13, num_beams
        )
        check(found, b, expected, bound)
        num_ties += len(expected) - len({score for _, score in expected})
    self.assertGreater(num_ties, 5)

  def test_toy_whose_best_paths_are_known(self):
    # Level 0: code 0 with 0.6, code 1 with 0.4. Then 0 -> {0: 0.5, 1: 0.5}, 1 -> {0: 0.9, 1: 0.1}.
    first, second = jnp.log(jnp.array([[0.6, 0.4]])), jnp.log(jnp.array([[0.5, 0.5], [0.9, 0.1]]))

    def toy_step(level, tokens, cache):
      table = first if level == 0 else second[tokens[0, :, 0]]
      return table[None, :, None, :], cache  # [1, W, 1, 2]

    catalogue = np.array([[[0], [0]], [[0], [1]], [[1], [0]]])  # (1, 1) is no item.
    trie = trie_lib.build(catalogue, 2, np.zeros(3))

    @functools.partial(jax.jit, static_argnames="num_beams")
    def run(num_beams):
      reorder = lambda cache, parents: cache
      return beam.beam_search(toy_step, reorder, None, trie, num_beams=num_beams, num_results=3)

    # The greedy path misses the best item, 0.4 * 0.9, and two beams find it.
    check(run(num_beams=1), 0, [(0, np.log(0.3))], np.log(0.4))
    check(run(num_beams=2), 0, [(2, np.log(0.36)), (0, np.log(0.3))], np.log(0.3))
    check(run(num_beams=4), 0, [(2, np.log(0.36)), (0, np.log(0.3)), (1, np.log(0.3))])

  def test_items_of_one_leaf_come_by_popularity_then_index(self):
    codes = np.zeros((5, 1, 3), int)
    tables = make_tables(jax.random.key(0), 3)
    trie = trie_lib.build(codes, N, np.array([1, 4, 4, 0, 9]))
    found = jitted_search(tables, trie, num_beams=2, num_results=4)
    np.testing.assert_array_equal(found.items, [[4, 1, 2, 0]] * B)
    np.testing.assert_array_equal(found.scores, np.repeat(found.scores[:, :1], 4, axis=1))

  def test_impossible_codes_are_never_returned(self):
    codes, popularity = make_catalogue(2, 2)
    tables = make_tables(jax.random.key(8), 2)
    tables = tables.at[0, :, :, 1, :4].set(-jnp.inf)  # User 0 only: the second signal's codes 0-3.
    tables = tables.at[1, 1].set(jnp.nan)  # User 1: a broken model.
    trie = trie_lib.build(codes, N, popularity)
    found = jitted_search(tables, trie, num_beams=ITEMS, num_results=ITEMS + 9)
    expected = oracle.best_items(log_prob_fn(np.asarray(tables[0])), codes, popularity, ITEMS)
    self.assertBetween(len(expected), 1, ITEMS - 1)
    check(found, 0, expected)
    check(found, 1, [])

  def test_second_call_compiles_nothing_and_no_candidates_are_sorted(self):
    codes, popularity = make_catalogue(9, 3, num_levels=2)

    @jax.jit
    @chex.assert_max_traces(n=2)
    def run(tables, trie):
      return search(tables, trie, num_beams=5, num_results=4)

    for root_search in ("all", "rank"):
      trie = trie_lib.build(codes, N, popularity, root_search=root_search)
      for seed in range(2):
        run(make_tables(jax.random.key(seed), 3), trie)
      program = run.lower(make_tables(jax.random.key(0), 3), trie).compile().as_text()
      self.assertGreaterEqual(program.count('custom_call_target="TopK"'), 2)
      # Where XLA does not know a top_k as one, it sorts all candidates.
      sorted_sizes = re.findall(r" = \(?\w+\[([\d,]+)\].* sort\(", program)
      self.assertLessEqual(set(sorted_sizes), {"5"} if root_search == "rank" else set())

  def test_users_are_searched_in_turn_on_a_cpu_only_and_to_the_same_end(self):
    codes, popularity = make_catalogue(4, 2)
    tables = make_tables(jax.random.key(5), 2)
    trie = trie_lib.build(codes, N, popularity)
    self.assertGreater(trie.max_children[1], trie.block_size)  # A loop inside the search.
    traced = jitted_search.trace(tables, trie, num_beams=3, num_results=23)
    loops = {
      platform: traced.lower(lowering_platforms=(platform,)).as_text().count("stablehlo.while")
      for platform in ("cpu", "cuda")
    }
    self.assertEqual(loops["cpu"] - loops["cuda"], L)
    with mock.patch.object(
      jax.lax, "platform_dependent", lambda *args, cpu, default: default(*args)
    ):
      at_once = jax.jit(functools.partial(search, num_beams=3, num_results=23))(tables, trie)
    chex.assert_trees_all_close(at_once, narrow(3)[-1])

  def test_wrong_arguments_raise(self):
    codes, popularity = make_catalogue(0, 2)
    trie = trie_lib.build(codes, N, popularity)
    with self.assertRaisesRegex(ValueError, "positive"):
      search(make_tables(jax.random.key(0), 2), trie, num_beams=0, num_results=1)
    tables = make_tables(jax.random.key(0), 2)
    for wrong in (make_tables(jax.random.key(0), 3), tables[..., 1:]):  # M, N.
      with self.assertRaisesRegex(ValueError, "log_probs must be"):
        search(wrong, trie, num_beams=2, num_results=1)


@pytest.mark.parametrize("num_beams", NARROW)
def test_every_result_is_distinct_and_scored_as_its_semantic_id(num_beams):
  tables, codes, _, found = narrow(num_beams)
  for b in range(B):
    items = np.asarray(found.items[b])
    items = items[items >= 0]
    assert len(set(items)) == len(items) > 0
    scores = [oracle.score(log_prob_fn(tables[b]), codes[item]) for item in items]
    np.testing.assert_allclose(found.scores[b, : len(items)], scores, rtol=1e-6)
    assert np.all(np.diff(scores) <= 1e-5)

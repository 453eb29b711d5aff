"""Rank enumeration against scoring every first token."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bbqrec_jax.decoding import rank, walk
from bbqrec_jax.decoding import trie as trie_lib

N, M, ROOTS, K = 13, 3, 503, 7


def make_trie(root_search, codebook_size=N, num_signals=M, num_roots=ROOTS):
  rng = np.random.default_rng(0)
  tokens = rng.choice(codebook_size**num_signals, num_roots, replace=False)
  codes = np.stack(np.unravel_index(tokens, (codebook_size,) * num_signals), axis=-1)[:, None]
  return trie_lib.build(codes, codebook_size, np.zeros(num_roots), root_search=root_search)


@functools.partial(jax.jit, static_argnames="num_chosen")
def score_all(trie, log_probs, num_chosen):
  root = jnp.zeros(1, jnp.int32), jnp.zeros(1)
  best = lambda user: walk.best_children(trie, 0, num_chosen, *root, user[None])
  return jax.lax.map(best, log_probs)


@functools.partial(jax.jit, static_argnames="num_chosen")
def enumerate_ranks(trie, log_probs, num_chosen):
  return jax.lax.map(functools.partial(rank.best_roots, trie, num_chosen), log_probs)


def make_log_probs(num_signals=M, codebook_size=N):
  """Users of all kinds, [B, M, N]."""
  normal = np.random.default_rng(1).normal(size=(30, num_signals, codebook_size))
  users = [*normal[:20], *(3 * normal[20:])]  # Even and peaked.
  users += list(np.round(2 * normal[:5]))  # With many equal scores.
  users += [np.where(x < 0.5, -np.inf, x) for x in normal[:5]]  # Few codes possible.
  users += [np.full_like(normal[0], -np.inf), np.zeros_like(normal[0])]
  return jax.nn.log_softmax(jnp.asarray(np.array(users), jnp.float32))


def assert_same(found, expected):
  for name in walk.Chosen._fields:
    np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), name)


def test_enumeration_finds_what_scoring_all_finds_ties_and_bound_included():
  log_probs = make_log_probs().at[-2].set(-jnp.inf)  # log_softmax made it NaN.
  expected = score_all(make_trie("all"), log_probs, K)
  assert_same(enumerate_ranks(make_trie("rank"), log_probs, K), expected)
  assert (expected.scores[-2] == -jnp.inf).all() and expected.bound[-1] == expected.scores[-1, 0]


@pytest.mark.parametrize("num_signals", [1, 2])
def test_with_one_or_two_signals(num_signals):
  size = dict(codebook_size=29, num_signals=num_signals, num_roots=17)
  log_probs = make_log_probs(num_signals, 29)[:30]
  expected = score_all(make_trie("all", **size), log_probs, K)
  assert_same(enumerate_ranks(make_trie("rank", **size), log_probs, K), expected)


@pytest.mark.parametrize("num_signals", [1, 2])
def test_the_single_best_where_every_token_is_there(num_signals):
  size = dict(codebook_size=5, num_signals=num_signals, num_roots=5**num_signals)
  log_probs = make_log_probs(num_signals, 5)[:30]
  expected = score_all(make_trie("all", **size), log_probs, 1)
  assert_same(enumerate_ranks(make_trie("rank", **size), log_probs, 1), expected)


def test_each_list_is_needed_by_somebody_and_a_proven_one_is_right():
  trie, log_probs = make_trie("rank"), make_log_probs()[:35]
  expected = score_all(make_trie("all"), log_probs, K)
  products = rank._ladder(trie, K)
  assert len(products) == 2
  are_proven = []
  for max_product in products:
    search = functools.partial(rank._best_listed, trie, K, max_product=max_product)
    found = jax.jit(lambda log_probs: jax.lax.map(search, log_probs))(log_probs)  # noqa: B023
    nodes = trie.roots.rank(found.tokens)
    proven = np.asarray(found.is_proven)
    np.testing.assert_array_equal(nodes[proven], expected.children[proven])
    np.testing.assert_array_equal(found.bound[proven], expected.bound[proven])
    are_proven.append(proven)
  first, second = are_proven
  assert first.any() and (second & ~first).any() and (~first & ~second).any()


def test_lists_hold_the_products_and_the_frontier_bounds_the_others():
  for max_product, codebook_size, num_signals in ((1, 5, 3), (6, 11, 2), (40, 7, 3), (9, 5, 1)):
    listed, frontier = rank._rank_lists(max_product, codebook_size, num_signals)
    ranks = np.zeros((1, 0), int)
    for prefixes, last in listed:
      ranks = np.concatenate([ranks[prefixes], last[:, None]], axis=1)
    everything = list(np.ndindex(*(codebook_size,) * num_signals))
    inside = {t for t in everything if np.prod(np.array(t) + 1) <= max_product}
    assert sorted(map(tuple, ranks.tolist())) == sorted(inside)
    assert len(ranks) == rank._num_listed(max_product, codebook_size, num_signals)
    for t in set(everything) - inside:  # Some tuple of the frontier has no higher rank anywhere.
      assert (frontier <= np.array(t)).all(axis=1).any()
    assert not inside & set(map(tuple, frontier.tolist()))


def test_a_further_search_is_not_run_beside_a_proven_one():
  """XLA must not move it out of the loop that guards it: it would cost more than all the rest."""
  trie, log_probs = make_trie("rank"), make_log_probs()[0]
  program = (
    jax.jit(functools.partial(rank.best_roots, trie, K)).lower(log_probs).compile().as_text()
  )
  main = program[program.index("\nENTRY ") :]
  top_k = 'custom_call_target="TopK"'
  assert main.count(top_k) == 2 and program.count(top_k) == 5  # Of 2 lists, two each; of all.
  assert not re.search(r"\[\d*\d\d\d\].* sort\(", program)

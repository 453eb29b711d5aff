"""Beam search along the valid semantic IDs; it knows no model, and no catalogue but the trie."""

import functools
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from bbqrec_jax.decoding import bits, rank, walk
from bbqrec_jax.decoding import trie as trie_lib

Cache = TypeVar("Cache")


class Beams(NamedTuple):
  """The items found for each user, best first.

  Attributes:
    items: [B, k] int32, distinct; -1 where fewer than k items were reached.
    scores: [B, k] float32 log-probability of the item's semantic ID; -inf where items is -1.
    bound: [B] float32, the best score of a prefix that the search dropped, -inf if it dropped none
      that is possible. As no item scores more than its prefixes, no item that was missed scores
      more than this: what scores more is proven to be in its true place.
  """

  items: jax.Array
  scores: jax.Array
  bound: jax.Array


def beam_search(
  step_fn: Callable[[int, jax.Array | None, Cache], tuple[jax.Array, Cache]],
  reorder_fn: Callable[[Cache, jax.Array], Cache],
  cache: Cache,
  trie: trie_lib.Trie,
  *,
  num_beams: int,
  num_results: int,
) -> Beams:
  """Finds the items with the most probable semantic IDs, along valid prefixes only.

  The score of a prefix is the sum, over its levels and their signals, of log-probabilities under
  the full softmax over N codes. They are not renormalised over the valid children, which would be
  another ranking. Items of one leaf share its score and come by popularity; of equal scores
  elsewhere, the child of the better beam comes first, then that of the lower token. The result is
  exact when num_beams is at least the number of distinct semantic IDs, and as far as its bound
  proves it.

  The loop over levels is unrolled, since each level has its own nodes; call this inside jit. Every
  shape is static. W below is the number of beams at a level: 1 at level 0, at most num_beams after.

  Args:
    step_fn: (level, tokens, cache) -> (log_probs [B, W, M, N] float32, cache). tokens
      [B, W, M] int32 are what the previous level chose, None at level 0. A code with
      log-probability -inf or NaN is never chosen.
    reorder_fn: (cache, parents) -> cache, called between two levels. parents [B, W] int32 tell
      for each new beam which one of the old beams it continues; what the cache holds for each
      beam must follow, and what it holds for each user may stay.
    cache: what step_fn needs, for a first call with one beam for each user.
    trie: the catalogue.
    num_beams: the largest number of prefixes kept after each level.
    num_results: k.

  Raises:
    ValueError: num_beams or num_results below 1, or log_probs of a wrong shape.
  """
  if num_beams < 1 or num_results < 1:
    raise ValueError(f"num_beams and num_results must be positive: {num_beams}, {num_results}.")
  tokens, num_parents = None, 1  # Of level 0, whose only parent is the root.
  for level in range(trie.num_levels):
    log_probs, cache = step_fn(level, tokens, cache)
    if level == 0:
      nodes = jnp.zeros((log_probs.shape[0], 1), jnp.int32)
      scores = jnp.zeros(nodes.shape, jnp.float32)
      bound = jnp.full(log_probs.shape[0], -jnp.inf)
    # Checked, since a code beyond the softmax would silently read another one's probability.
    expected = (num_parents, trie.num_signals, trie.codebook_size)
    if log_probs.ndim != 4 or log_probs.shape[1:] != expected:
      raise ValueError(f"log_probs must be [B, *{expected}], got {log_probs.shape}.")
    choose = functools.partial(_choose, trie, level, num_beams)
    chosen, tokens = _for_each_user(choose, nodes, scores, log_probs)
    nodes, scores, num_parents = chosen.children, chosen.scores, tokens.shape[1]
    bound = jnp.maximum(bound, chosen.bound)
    if level + 1 < trie.num_levels:
      cache = reorder_fn(cache, chosen.parents)

  items, scores = jax.vmap(functools.partial(_first_items, trie, num_results))(nodes, scores)
  return Beams(items, scores, bound)


def _for_each_user(fn, *args: jax.Array):
  """Applies a function of one user to [B, ...] arrays.

  One user after another on a CPU, where the candidates of one stay in cache and those of a batch
  do not (2 to 3 times faster at 12,000 items, 32 to 256 users); all users at once elsewhere.
  """
  return jax.lax.platform_dependent(
    *args, cpu=lambda *args: jax.lax.map(lambda user: fn(*user), args), default=jax.vmap(fn)
  )


def _choose(
  trie: trie_lib.Trie,
  level: int,
  num_beams: int,
  nodes: jax.Array,
  scores: jax.Array,
  log_probs: jax.Array,
) -> tuple[walk.Chosen, jax.Array]:
  """The best children of one user's beams, and their tokens [k, M].

  Tokens are read here, in a loop over users on a CPU, since outside of it XLA makes their reading a
  part of the embedding's lookup and repeats it for every dimension.

  Args:
    nodes, scores, log_probs: [W], [W] and [W, M, N], of the beams.
  """
  num_chosen = min(num_beams, trie.num_nodes[level], len(nodes) * trie.max_children[level])
  log_probs = jnp.where(log_probs > -jnp.inf, log_probs, -jnp.inf)  # No NaN.
  if level == 0 and trie.roots is not None:
    chosen = rank.best_roots(trie, num_chosen, log_probs[0])
  else:
    chosen = walk.best_children(trie, level, num_chosen, nodes, scores, log_probs)
  return chosen, trie.codes(level, chosen.children)


def _first_items(
  trie: trie_lib.Trie, num_results: int, leaves: jax.Array, scores: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Items and scores, [k] each, of one user's leaves [W], which come best first.

  The items of all leaves, laid end to end, are in order already.
  """
  first, counts = trie.children(trie.num_levels, leaves)
  counts = jnp.where(scores > -jnp.inf, counts, 0)
  ends = jnp.cumsum(counts)  # [W] one past each leaf's last item.
  places = jnp.arange(num_results, dtype=jnp.int32)
  owners = bits.count_at_most(ends, places)
  owners = jnp.minimum(owners, len(leaves) - 1)
  is_found = places < ends[-1]
  children = jnp.where(is_found, first[owners] + places - (ends - counts)[owners], 0)
  items = jnp.where(is_found, trie.items(children), -1)
  return items, jnp.where(is_found, scores[owners], -jnp.inf)

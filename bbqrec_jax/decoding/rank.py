"""The best first tokens of one user, found at a cost that does not grow with the catalogue.

Rank-product enumeration: with each signal's codes sorted by probability, a token is M ranks. At
least r_1 * ... * r_M tokens are as probable as the one of ranks r_1, ..., r_M (those whose ranks
are nowhere higher), so that the R most probable tokens are among those whose product of ranks is at
most R. A static list of these is scored, and a bitmap tells which of them begin a semantic ID. The
tokens just outside the list bound all others, and thereby prove that none was missed.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bbqrec_jax.decoding import trie as trie_lib
from bbqrec_jax.decoding import walk

_MAX_LISTED = 2**17  # A list longer than this is not tried.


class _Found(NamedTuple):
  """The best k first tokens, best first; of equal scores, the lowest token first.

  Attributes:
    scores: [k] float32, -inf where there were fewer.
    tokens: [k] int32, the M codes as the digits of a number in base N; 0 if score is -inf.
    bound: [] float32, the best score of a valid token that was left out.
    is_proven: [] bool, whether no valid token can be missing.
  """

  scores: jax.Array
  tokens: jax.Array
  bound: jax.Array
  is_proven: jax.Array


def best_roots(trie: trie_lib.Trie, num_chosen: int, log_probs: jax.Array) -> walk.Chosen:
  """The best nodes of level 0: what walk.best_children() gives for the root, bound included.

  Lists of growing length are tried until one proves its result; if none does, all valid tokens are
  scored.

  Args:
    trie: with a bitmap of first tokens.
    num_chosen: k, at most the number of nodes.
    log_probs: [M, N] float32 in [-inf, 0].
  """
  searches = [
    functools.partial(_best_listed, max_product=max_product)
    for max_product in _ladder(trie, num_chosen)
  ]
  found = None
  for search in (*searches, _best_of_all):
    run = functools.partial(search, trie, num_chosen)
    found = run(log_probs) if found is None else _unless_proven(run, found, log_probs)
  nodes = jnp.where(found.scores > -jnp.inf, trie.roots.rank(found.tokens), 0)
  return walk.Chosen(nodes, jnp.zeros_like(nodes), found.scores, found.bound)


def _unless_proven(
  search: Callable[[jax.Array], _Found], found: _Found, log_probs: jax.Array
) -> _Found:
  """What has been found if it is proven, or else what a further search finds.

  A loop of one turn or none, since that is skipped if nobody in a batch needs it; lax.cond would
  run for everybody.
  """

  def step(_, found):
    # The search must hang on the loop's state, or else XLA moves it out of the loop, where it runs
    # whether it is needed or not.
    return search(jnp.where(found.is_proven, -jnp.inf, log_probs))

  return jax.lax.fori_loop(0, 1 - found.is_proven.astype(jnp.int32), step, found)


def _ladder(trie: trie_lib.Trie, num_chosen: int) -> list[int]:
  """The largest products of ranks to try, in turn; those of short lists only."""
  # If valid tokens were spread evenly, so many must be enumerated to meet enough of them. A
  # trained model prefers valid ones and needs fewer.
  num_tokens = trie.codebook_size**trie.num_signals
  needed = math.ceil((num_chosen + 1) * num_tokens / trie.num_nodes[0])
  return [
    max_product
    for max_product in (max(needed // 3, 1), needed)  # A list of none would prove anything.
    if _num_listed(max_product, trie.codebook_size, trie.num_signals) <= _MAX_LISTED
  ]


def _best_listed(
  trie: trie_lib.Trie, num_chosen: int, log_probs: jax.Array, max_product: int
) -> _Found:
  """The best of the valid tokens whose product of ranks is at most max_product."""
  num_signals, codebook_size = log_probs.shape
  listed, frontier = _rank_lists(max_product, codebook_size, num_signals)
  # One more than there are, since XLA sorts where all are wanted, at twice the cost.
  padded = jnp.pad(log_probs, ((0, 0), (0, 1)), constant_values=-jnp.inf)
  ranked, codes = walk.top_k(padded, min(max_product + 1, codebook_size))
  sums, tokens = jnp.zeros(1), jnp.zeros(1, jnp.int32)
  for signal, (prefixes, ranks) in enumerate(listed):
    sums = sums[prefixes] + ranked[signal][ranks]
    tokens = tokens[prefixes] * codebook_size + codes[signal][ranks]
  sums = jnp.where(trie.roots.get(tokens), sums, -jnp.inf)
  best, slots = walk.top_k(jnp.append(sums, jnp.full(num_chosen + 1, -jnp.inf)), num_chosen + 1)
  limits = functools.reduce(jnp.add, (ranked[m][frontier[:, m]] for m in range(num_signals)))
  limit = jnp.max(limits, initial=-jnp.inf)
  # A token as good as the last one may be missing, or have been dropped, though it is lower.
  is_complete = (best[-1] > limit) | (limit == -jnp.inf)
  is_proven = is_complete & ((best[-2] > best[-1]) | (best[-1] == -jnp.inf))
  tokens = jnp.append(tokens, jnp.zeros(num_chosen + 1, jnp.int32))[slots]
  tokens = jnp.where(best > -jnp.inf, tokens, 0)
  negated, tokens = jax.lax.sort((-best[:-1], tokens[:-1]), num_keys=2)
  return _Found(-negated, tokens, best[-1], is_proven)


def _best_of_all(trie: trie_lib.Trie, num_chosen: int, log_probs: jax.Array) -> _Found:
  """The best of all valid tokens, those of one first code at a time.

  First codes none of whose tokens could be kept are passed by.
  """
  num_signals, codebook_size = log_probs.shape
  num_tokens = codebook_size ** (num_signals - 1)  # Of one first code.
  limits = log_probs[0]
  for signal in range(1, num_signals):
    limits = limits + jnp.max(log_probs[signal])

  def next_code(current, best):
    codes = jnp.arange(codebook_size, dtype=jnp.int32)
    is_open = (limits > jnp.min(best)) & (codes >= current)
    return jnp.min(jnp.where(is_open, codes, codebook_size))

  def step(state):
    code, best, tokens = state
    sums = log_probs[0][code][None]
    for signal in range(1, num_signals):
      sums = (sums[:, None] + log_probs[signal][None]).reshape(-1)
    new = code * num_tokens + jnp.arange(num_tokens, dtype=jnp.int32)
    sums = jnp.where(trie.roots.get(new), sums, -jnp.inf)
    best, slots = walk.top_k(jnp.append(best, sums), num_chosen + 1)
    return next_code(code + 1, best), best, jnp.append(tokens, new)[slots]

  best = jnp.full(num_chosen + 1, -jnp.inf)
  start = (next_code(0, best), best, jnp.zeros(num_chosen + 1, jnp.int32))
  _, best, tokens = jax.lax.while_loop(lambda state: state[0] < codebook_size, step, start)
  return _Found(best[:-1], tokens[:-1], best[-1], jnp.bool_(True))


def _num_listed(max_product: int, codebook_size: int, num_signals: int) -> int:
  """How many tuples of ranks have a product of at most max_product."""
  if num_signals == 1:
    return min(max_product, codebook_size)
  first = range(1, min(max_product, codebook_size) + 1)
  return sum(_num_listed(max_product // r, codebook_size, num_signals - 1) for r in first)


@functools.lru_cache(maxsize=16)
def _rank_lists(
  max_product: int, codebook_size: int, num_signals: int
) -> tuple[list[tuple[np.ndarray, np.ndarray]], np.ndarray]:
  """Tuples of ranks with a product of at most max_product, and those just outside. 0-based.

  Returns:
    (for each signal the tuples of ranks up to it, [n] each: which of the tuples before it each
    continues, and by which rank; [F, M] tuples outside, all of whose predecessors are inside).
  """
  listed, ranks, products = [], np.zeros((1, 0), np.int64), np.ones(1, np.int64)
  for _ in range(num_signals):
    counts = np.minimum(max_product // products, codebook_size)
    prefixes = np.repeat(np.arange(len(products)), counts)
    new = np.arange(len(prefixes)) - np.repeat(np.cumsum(counts) - counts, counts)
    ranks = np.concatenate([ranks[prefixes], new[:, None]], axis=1)
    products = products[prefixes] * (new + 1)
    listed.append((prefixes.astype(np.int32), new.astype(np.int32)))
  outside = (ranks[:, None] + np.eye(num_signals, dtype=np.int64)).reshape(-1, num_signals)
  products = np.prod(outside + 1, axis=1)
  is_next = (outside < codebook_size).all(axis=1) & (products > max_product)
  # Those with one rank lowered are inside, or have a rank below the first.
  is_next &= (products[:, None] // (outside + 1) * outside <= max_product).all(axis=1)
  return listed, np.unique(outside[is_next], axis=0)

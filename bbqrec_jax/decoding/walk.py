"""The best children of one user's beams, found by walking over all of them in blocks."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from bbqrec_jax.decoding import bits
from bbqrec_jax.decoding import trie as trie_lib

_CHUNK_SLOTS = 4096  # Children scored in one step of a walk; those of a few beams stay in cache.
_ROOT_SLOTS = 2**18  # The same where there is one parent.
# Where a parent has so many children, blocks are larger by this factor: most of them are passed by.
_MANY_CHILDREN, _LARGER = 2**13, 16
_WINDOW = 8  # For each block that is scored in a step, so many are looked at.


class Chosen(NamedTuple):
  """The best children of one user's beams, best first.

  Attributes:
    children: [k] int32 index into the next level; 0 if score is -inf.
    parents: [k] int32 in [0, W), the beam that each continues; 0 if score is -inf.
    scores: [k] float32, -inf where there were fewer children.
    bound: [] float32, the best score of a child that was not chosen; -inf if there is none.
  """

  children: jax.Array
  parents: jax.Array
  scores: jax.Array
  bound: jax.Array


def best_children(
  trie: trie_lib.Trie,
  depth: int,
  num_chosen: int,
  nodes: jax.Array,
  scores: jax.Array,
  log_probs: jax.Array,
) -> Chosen:
  """Scores the children of one user's beams and keeps the best.

  The children of a beam are read in blocks of slots, the last of which may be partly empty. If no
  parent has more children than one block, every beam gets one and all are scored at once.
  Otherwise a loop walks over the blocks of all beams, a chunk of them at a time, and passes by
  beams and blocks whose best conceivable child is worse than what it has. As children are in order,
  those of a block mostly share their first code, and its log-probability tells of all of them.
  Either way the cost hangs on how many children the beams have, not on the largest number that a
  node of the catalogue has.

  Of equal scores the child of the better beam comes first, then that of the lower index.

  Args:
    depth: of the parents in the trie, 0 for the root.
    num_chosen: k, how many children to keep; at most W times the most children of a parent.
    nodes: [W] int32 parents; distinct, except where the score is -inf.
    scores: [W] float32, best first; a beam with score -inf has no children.
    log_probs: [W, M, N] float32 in [-inf, 0], those of the children's tokens.
  """
  num_parents = len(nodes)
  most = trie.max_children[depth]
  if num_parents == 1:
    block = min(most, _ROOT_SLOTS)
  else:
    block = min(most, trie.block_size * (_LARGER if most >= _MANY_CHILDREN else 1))
  first, counts = trie.children(depth, nodes)
  counts = jnp.where(scores > -jnp.inf, counts, 0)

  num_signals, flat = trie.num_signals, log_probs.reshape(-1)

  def score(parents, starts):
    """Scores and children, [P * block] each, of P blocks that start `starts` slots into parents."""
    offsets = starts[:, None] + jnp.arange(block, dtype=jnp.int32)[None]  # [P, block]
    is_filled = offsets < counts[parents][:, None]
    children = jnp.where(is_filled, first[parents][:, None] + offsets, 0)
    codes = trie.codes(depth, children)  # [P, block, M]
    sums = scores[parents][:, None]
    for signal in range(num_signals):
      place = (parents * num_signals + signal)[:, None] * trie.codebook_size + codes[..., signal]
      sums = sums + flat.at[place].get(mode="promise_in_bounds", wrap_negative_indices=False)
    return jnp.where(is_filled, sums, -jnp.inf).reshape(-1), children.reshape(-1)

  if most <= block:  # As slots are in order, those of equal scores come as they should.
    parents = jnp.arange(num_parents, dtype=jnp.int32)
    sums, children = score(parents, jnp.zeros_like(parents))
    best, slots = top_k(jnp.append(sums, -jnp.inf), num_chosen + 1)
    return _chosen(best, jnp.append(children, 0)[slots], slots // block)

  num_blocks = -(-counts // block)
  ends = jnp.cumsum(num_blocks)  # [W] one past each beam's last block.
  begins = ends - num_blocks
  # No child scores more than its limit, since rounding keeps the order of sums.
  highest = jnp.max(log_probs, axis=-1)  # [W, M]

  def limit(parents, of_first_code):
    """The best conceivable score of a child of [P] parents, given its first code's share [P]."""
    sums = scores[parents] + of_first_code
    for signal in range(1, num_signals):
      sums = sums + highest[parents, signal]
    return sums

  beam_limits = limit(jnp.arange(num_parents), highest[:, 0])
  blocks_at_once = -(-max(_CHUNK_SLOTS, 2 * num_chosen) // block)

  def next_block(current, best):
    """The first block from `current` on whose beam may have a child to be kept."""
    # The child that would be dropped next precedes later ones of the same score.
    is_open = (beam_limits > jnp.min(best)) & (ends > current)
    return jnp.min(jnp.where(is_open, jnp.maximum(begins, current), ends[-1]))

  def open_blocks(current, best):
    """The first blocks from `current` on that may have a child to be kept, [blocks_at_once].

    Others, of which nothing is kept, follow where there are not enough in the window.

    Returns:
      (parents, where the blocks start among their children, the first block behind them).
    """
    ids = current + jnp.arange(_WINDOW * blocks_at_once, dtype=jnp.int32)
    owners = jnp.minimum(bits.count_at_most(ends, ids), num_parents - 1)
    starts = (ids - begins[owners]) * block
    last = jnp.clip(counts[owners] - 1, 0, starts + block - 1)
    low, high = (
      trie.codes(depth, first[owners] + place)[:, 0] for place in (jnp.minimum(starts, last), last)
    )
    shares = jnp.where(low == high, log_probs[owners, 0, low], highest[owners, 0])
    is_open = (limit(owners, shares) > jnp.min(best)) & (ids < ends[-1])
    # The first ones, as floats: of integers XLA makes a full sort.
    order = jnp.where(is_open, -jnp.arange(len(ids), dtype=jnp.float32), -jnp.inf)
    order, places = top_k(order, blocks_at_once)
    behind = jnp.where(order[-1] > -jnp.inf, places[-1] + 1, len(ids))
    return owners[places], starts[places], current + behind

  def step(state):
    current, best, children, parents = state
    owners, starts, current = open_blocks(current, best)
    sums, found = score(owners, starts)
    best, slots = top_k(jnp.append(best, sums), num_chosen + 1)
    children = jnp.append(children, found)[slots]
    parents = jnp.append(parents, jnp.repeat(owners, block))[slots]
    return next_block(current, best), best, children, parents

  best = jnp.full(num_chosen + 1, -jnp.inf)
  empty = jnp.zeros(num_chosen + 1, jnp.int32)
  start = (next_block(jnp.int32(0), best), best, empty, empty)
  _, best, children, parents = jax.lax.while_loop(lambda state: state[0] < ends[-1], step, start)
  return _chosen(best, children, parents)


def top_k(values: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
  """jax.lax.top_k, whose results may be sliced.

  Without the barrier XLA merges a slice into the search, does not know it any more, and sorts all
  values instead. Each result has its own: with one for both, XLA fails where devices share rows.
  """
  best, places = map(jax.lax.optimization_barrier, jax.lax.top_k(values, k))
  return best, places


def _chosen(best: jax.Array, children: jax.Array, parents: jax.Array) -> Chosen:
  """Of [k + 1] candidates, best first, all but the last."""
  is_found = best > -jnp.inf
  children, parents = jnp.where(is_found, children, 0), jnp.where(is_found, parents, 0)
  return Chosen(children[:-1], parents[:-1], best[:-1], best[-1])

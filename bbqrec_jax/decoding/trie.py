"""The valid prefixes of a catalogue's semantic IDs, as arrays that a jitted search can read."""

import itertools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np


@flax.struct.dataclass
class Trie:
  """All prefixes of the catalogue's semantic IDs; the children of a node lie side by side.

  The n_l nodes of level l are the distinct prefixes of l + 1 tokens. Depth 0 is the root, the only
  parent of level 0; depth l + 1 are the nodes of level l as parents, and at depth L the parents are
  the leaves, whose children are items. With l for either count:

  Attributes:
    codes: L arrays [n_l, M] int32 in [0, N), the last token of each node of level l.
    first_child: L + 1 arrays [number of parents + 1] int32. The children of parent p of depth l are
      first_child[l][p] to first_child[l][p + 1], as indices into level l, or into `items` for
      l = L.
    items: [I] int32, every item once; those of one leaf by popularity, the most popular first.
    max_children: L + 1 ints, the largest number of children of one parent. Static under jit, as
      they bound the shapes of the search.
    codebook_size: N. Static.
  """

  codes: tuple[jax.Array, ...]
  first_child: tuple[jax.Array, ...]
  items: jax.Array
  max_children: tuple[int, ...] = flax.struct.field(pytree_node=False)
  codebook_size: int = flax.struct.field(pytree_node=False)

  @property
  def num_levels(self) -> int:
    return len(self.codes)

  def num_children(self, depth: int) -> int:
    """How many children all parents of a depth have together."""
    return len(self.codes[depth]) if depth < self.num_levels else len(self.items)


def build(codes: np.ndarray, codebook_size: int, popularity: np.ndarray) -> Trie:
  """Builds the trie of a catalogue. Runs in NumPy, in O(I log I).

  Args:
    codes: [I, L, M] int in [0, N), the items' semantic IDs. Items may collide.
    codebook_size: N.
    popularity: [I] training count of each item; it orders items that share a leaf, and equal counts
      go by item index.

  Raises:
    ValueError: codes are not [I, L, M] with I > 0, or out of range; or popularity is not [I].
  """
  codes, popularity = np.asarray(codes), np.asarray(popularity)
  if codes.ndim != 3 or codes.size == 0:
    raise ValueError(f"codes must be [I, L, M] and not empty, got {codes.shape}.")
  if codes.min() < 0 or codes.max() >= codebook_size:
    raise ValueError(f"codes must be in [0, {codebook_size}), got {codes.min()} to {codes.max()}.")
  num_items, num_levels, num_signals = codes.shape
  if popularity.shape != (num_items,):
    raise ValueError(f"popularity must be [{num_items}], got {popularity.shape}.")

  # One integer for each token: its M codes as the digits of a number in base N.  [I, L]
  tokens = np.ravel_multi_index(tuple(np.moveaxis(codes, -1, 0)), (codebook_size,) * num_signals)
  # lexsort is stable and its last key leads: level 0 first, ..., popularity, then item index.
  order = np.lexsort((-popularity, *tokens.T[::-1]))
  tokens = tokens[order]
  # A node begins where its own token changes, or that of any level above.
  is_first = np.ones((num_items, num_levels), bool)
  is_first[1:] = np.logical_or.accumulate(tokens[1:] != tokens[:-1], axis=1)

  # The first row, in sorted order, of every parent at depths 0 to L, then of every item.
  rows = [np.zeros(1, np.int64)]
  rows += [np.flatnonzero(is_first[:, level]) for level in range(num_levels)]
  rows += [np.arange(num_items)]
  first_child = [
    np.append(np.searchsorted(children, parents), len(children))
    for parents, children in itertools.pairwise(rows)
  ]
  return Trie(
    codes=tuple(
      jnp.asarray(codes[order[first], level], jnp.int32) for level, first in enumerate(rows[1:-1])
    ),
    first_child=tuple(jnp.asarray(offsets, jnp.int32) for offsets in first_child),
    items=jnp.asarray(order, jnp.int32),
    max_children=tuple(int(np.diff(offsets).max()) for offsets in first_child),
    codebook_size=int(codebook_size),
  )

"""The valid prefixes of a catalogue's semantic IDs, as arrays that a jitted search can read."""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from bbqrec_jax.decoding import bits

ROOT_SEARCHES = ("auto", "all", "rank")
# From so many first tokens on, enumerating the most probable ones is cheaper than scoring all.
RANK_FROM = 200_000
# A bitmap of all first tokens, valid or not, must not be larger than 16 MiB.
_MAX_ROOT_BITS = 2**27


@flax.struct.dataclass
class Trie:
  """All prefixes of the catalogue's semantic IDs; the children of a node lie side by side.

  The n_l nodes of level l are the distinct prefixes of l + 1 tokens, in lexicographic order. Depth
  0 is the root, the only parent of level 0; depth l + 1 are the nodes of level l as parents, and at
  depth L the parents are the leaves, whose children are items: those of one leaf by popularity, the
  most popular first. With l for either count:

  Attributes:
    tokens: L arrays of n_l rows of M codes, the last token of each node of level l; None for level
      0 where `roots` holds them.
    roots: None, or N**M bits: which tokens begin a semantic ID.
    firsts: L bit vectors. Bit c of number l says whether child c of depth l + 1 is the first one of
      its parent; one more bit ends the last parent's children.
    order: the items as children of the leaves, I rows of one number.
    num_nodes: n_l of each level. Static.
    max_children: L + 1 ints, the largest number of children of one parent. Static, as the shapes
      of the search hang on it.
    block_size: how many children of one parent the search reads at once. Static.
    codebook_size, num_signals: N and M. Static.
  """

  tokens: tuple[bits.PackedRows | None, ...]
  roots: bits.BitVector | None
  firsts: tuple[bits.BitVector, ...]
  order: bits.PackedRows
  num_nodes: tuple[int, ...] = flax.struct.field(pytree_node=False)
  max_children: tuple[int, ...] = flax.struct.field(pytree_node=False)
  block_size: int = flax.struct.field(pytree_node=False)
  codebook_size: int = flax.struct.field(pytree_node=False)
  num_signals: int = flax.struct.field(pytree_node=False)

  @property
  def num_levels(self) -> int:
    return len(self.tokens)

  @property
  def num_items(self) -> int:
    return self.order.num_rows

  @property
  def num_bytes(self) -> int:
    """What the arrays take."""
    return sum(x.nbytes for x in jax.tree.leaves(self))

  def codes(self, level: int, nodes: jax.Array) -> jax.Array:
    """[..., M] int32 in [0, N): the last tokens of [...] int32 nodes of a level."""
    if level == 0 and self.roots is not None:
      shape = (self.codebook_size,) * self.num_signals
      return jnp.stack(jnp.unravel_index(self.roots.select(nodes), shape), axis=-1)
    return self.tokens[level].take(nodes)

  def children(self, depth: int, parents: jax.Array) -> tuple[jax.Array, jax.Array]:
    """First child and number of children of [...] int32 parents of a depth, [...] int32 each."""
    if depth == 0:
      return jnp.zeros_like(parents), jnp.full_like(parents, self.num_nodes[0])
    first, end = self.firsts[depth - 1].select(jnp.stack([parents, parents + 1]))
    return first, end - first

  def items(self, children: jax.Array) -> jax.Array:
    """[...] int32 items, of [...] int32 children of leaves."""
    return self.order.take(children)[..., 0]


def build(
  codes: np.ndarray,
  codebook_size: int,
  popularity: np.ndarray,
  *,
  root_search: str = "auto",
  block_size: int = 16,
) -> Trie:
  """Builds the trie of a catalogue. Runs in NumPy, in O(I log I).

  Args:
    codes: [I, L, M] int in [0, N), the items' semantic IDs. Items may collide.
    codebook_size: N.
    popularity: [I] training count of each item; it orders items that share a leaf, and equal counts
      go by item index.
    root_search: how the first tokens are searched. "all" scores each one; "rank" enumerates the
      most probable tokens, valid or not, at a cost that does not grow with the catalogue; "auto"
      takes "rank" from 200,000 first tokens on, if N**M bits are few enough to hold.
    block_size: how many children of one parent the search reads at once; it bounds what padding
      costs where most parents have few.

  Raises:
    ValueError: codes are not [I, L, M] with I > 0, or out of range; popularity is not [I];
      root_search is unknown, or "rank" with N**M above 2**27; or block_size is below 1.
  """
  codes, popularity = np.asarray(codes), np.asarray(popularity)
  if codes.ndim != 3 or codes.size == 0:
    raise ValueError(f"codes must be [I, L, M] and not empty, got {codes.shape}.")
  if codes.min() < 0 or codes.max() >= codebook_size:
    raise ValueError(f"codes must be in [0, {codebook_size}), got {codes.min()} to {codes.max()}.")
  num_items, num_levels, num_signals = codes.shape
  if popularity.shape != (num_items,):
    raise ValueError(f"popularity must be [{num_items}], got {popularity.shape}.")
  if root_search not in ROOT_SEARCHES:
    raise ValueError(f"root_search must be one of {ROOT_SEARCHES}, got {root_search!r}.")
  if block_size < 1:
    raise ValueError(f"block_size must be positive, got {block_size}.")

  code_bits = max(1, (int(codebook_size) - 1).bit_length())
  words = _pack(codes.reshape(num_items, -1), code_bits)
  order = _sorted_order(words, popularity)
  words = [word[order] for word in words]
  is_first = _first_rows(words, num_levels, num_signals, code_bits)
  # The first row, in sorted order, of every node of each level, then of every item.
  rows = [*map(np.flatnonzero, is_first), np.arange(num_items)]
  num_nodes = tuple(len(level_rows) for level_rows in rows[:-1])
  use_bitmap = _use_bitmap(root_search, num_nodes[0], codebook_size**num_signals)

  roots, tokens = None, []
  for level, level_rows in enumerate(rows[:-1]):
    fields = range(level * num_signals, (level + 1) * num_signals)
    columns = [_field(words, field, code_bits, level_rows) for field in fields]
    if level == 0 and use_bitmap:
      present = np.zeros(codebook_size**num_signals, bool)
      present[np.ravel_multi_index(columns, (codebook_size,) * num_signals)] = True
      roots = bits.bit_vector(present)
      tokens.append(None)
    else:
      tokens.append(bits.packed_rows(columns, code_bits))
  # Of the children of each depth from 1 on, those that come first under their parent.
  firsts = [
    np.append(is_parent_first[children], True)
    for is_parent_first, children in zip(is_first, rows[1:])
  ]
  return Trie(
    tokens=tuple(tokens),
    roots=roots,
    firsts=tuple(map(bits.bit_vector, firsts)),
    order=bits.packed_rows([order], max(1, (num_items - 1).bit_length())),
    num_nodes=num_nodes,
    max_children=(num_nodes[0], *(int(np.diff(np.flatnonzero(x)).max()) for x in firsts)),
    block_size=int(block_size),
    codebook_size=int(codebook_size),
    num_signals=num_signals,
  )


def _use_bitmap(root_search: str, num_roots: int, num_bits: int) -> bool:
  """Whether first tokens are found by rank enumeration, which needs them as a bitmap."""
  if root_search == "rank" and num_bits > _MAX_ROOT_BITS:
    raise ValueError(f"Rank enumeration needs N**M up to {_MAX_ROOT_BITS}, got {num_bits}.")
  few_bits = num_bits <= _MAX_ROOT_BITS
  return root_search == "rank" or (root_search == "auto" and num_roots >= RANK_FROM and few_bits)


def _pack(codes: np.ndarray, code_bits: int) -> list[np.ndarray]:
  """[I, F] codes as a few [I] uint64 that sort alike; the first one leads, as does its top."""
  fields_per_word = 64 // code_bits
  words = []
  for first in range(0, codes.shape[1], fields_per_word):
    word = np.zeros(len(codes), np.uint64)
    for field in range(first, min(first + fields_per_word, codes.shape[1])):
      word |= codes[:, field].astype(np.uint64) << _place(field, code_bits)[1]
    words.append(word)
  return words


def _place(field: int, code_bits: int) -> tuple[int, np.uint64]:
  """The word of _pack() that a field is in, and the shift that brings it to the lowest bits."""
  word, position = divmod(field, 64 // code_bits)
  return word, np.uint64(code_bits * (64 // code_bits - 1 - position))


def _field(words: list[np.ndarray], field: int, code_bits: int, rows: np.ndarray) -> np.ndarray:
  """[n] codes of one field in some rows."""
  word, shift = _place(field, code_bits)
  mask = np.uint64((1 << code_bits) - 1)
  return (words[word][rows] >> shift & mask).astype(np.uint32)


def _sorted_order(words: list[np.ndarray], popularity: np.ndarray) -> np.ndarray:
  """[I] items by their words, then by popularity, the highest first, then by index."""
  order = np.argsort(words[0])
  leading = words[0][order]
  # Most items differ in the first word. A fast sort that need not be stable, and a slow one for
  # the others, take half as long as one sort by all keys.
  is_same = leading[1:] == leading[:-1]
  rows = np.flatnonzero(np.append(is_same, False) | np.append(False, is_same))
  tied = order[rows]
  others = [word[tied] for word in reversed(words[1:])]
  # The last key leads.
  order[rows] = tied[np.lexsort((tied, -popularity[tied], *others, leading[rows]))]
  return order


def _first_rows(
  words: list[np.ndarray], num_levels: int, num_signals: int, code_bits: int
) -> list[np.ndarray]:
  """For each level, [I] bool: the sorted rows whose tokens up to it are not those of the last."""
  differences = [word[1:] ^ word[:-1] for word in words]
  is_first, num_whole = [], 0
  differs = np.zeros(len(words[0]) - 1, bool)  # In one of the words before `num_whole`.
  for level in range(num_levels):
    word, shift = _place((level + 1) * num_signals - 1, code_bits)
    for whole in range(num_whole, word):
      differs |= differences[whole] != 0
    num_whole = word
    is_first.append(np.append(True, differs | (differences[word] >> shift != 0)))
  return is_first

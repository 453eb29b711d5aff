"""Compact arrays that a jitted search can read: bits with rank and select, integers of few bits.

Both are built in NumPy. Jacobson 1989 (Space-efficient static trees and graphs) for the counts
that make rank and select fast.
"""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

_WORD_SHIFT = 5
_WORD = 1 << _WORD_SHIFT  # Bits.
_BLOCK_SHIFT = 7
_BLOCK = 1 << _BLOCK_SHIFT  # Bits between two counts: the counts add a quarter to the bits.
_BLOCK_WORDS = _BLOCK // _WORD
# Divisions by these sizes are written as shifts and masks, since those of signed integers take
# several instructions each, which is much beside one read.


@flax.struct.dataclass
class BitVector:
  """Bits that are counted and found without reading them all.

  Attributes:
    words: [n] uint32, the bits, lowest first; at least one zero bit is behind the last one.
    counts: [n / 4] int32, the ones before each block of 4 words.
  """

  words: jax.Array
  counts: jax.Array

  def get(self, index: jax.Array) -> jax.Array:
    """[...] bool: the bits at [...] int32 indices."""
    shift = (index & (_WORD - 1)).astype(jnp.uint32)
    return (_read(self.words, index >> _WORD_SHIFT) >> shift) & 1 == 1

  def rank(self, index: jax.Array) -> jax.Array:
    """[...] int32: how many ones stand before [...] int32 indices, which may be the length."""
    block, bit = index >> _BLOCK_SHIFT, index & (_BLOCK - 1)
    ones = _read(self.counts, block)
    for n in range(_BLOCK_WORDS):
      word = _read(self.words, block * _BLOCK_WORDS + n)
      ones += _num_ones(word & _low_bits(jnp.maximum(bit - n * _WORD, 0)))
    return ones

  def select(self, order: jax.Array) -> jax.Array:
    """[...] int32: where the ones stand that [...] int32 others stand before.

    `order` must be in [0, number of ones).
    """
    block = count_at_most(self.counts, order) - 1
    order = order - _read(self.counts, block)  # Among the ones of the block, from here on.
    start = block * _BLOCK_WORDS
    word, before, ones = jnp.zeros_like(order), jnp.zeros_like(order), jnp.zeros_like(order)
    for n in range(_BLOCK_WORDS - 1):
      ones += _num_ones(_read(self.words, start + n))
      is_behind = ones <= order
      word, before = jnp.where(is_behind, n + 1, word), jnp.where(is_behind, ones, before)
    order -= before  # Among the ones of the word.
    bits = _read(self.words, start + word)
    bit = jnp.zeros_like(order)
    for width in (16, 8, 4, 2, 1):  # Binary search: skip `width` bits if they hold too few ones.
      ones = _num_ones(bits >> bit.astype(jnp.uint32) & jnp.uint32((1 << width) - 1))
      is_behind = ones <= order
      order = jnp.where(is_behind, order - ones, order)
      bit = jnp.where(is_behind, bit + width, bit)
    return (start + word) * _WORD + bit


@flax.struct.dataclass
class PackedRows:
  """Rows of small integers, laid end to end without unused bits.

  Attributes:
    words: [n] uint32; 32 rows fill a whole number of words.
    num_rows, num_fields, field_bits: shape, and the bits of one integer, at most 32. Static.
  """

  words: jax.Array
  num_rows: int = flax.struct.field(pytree_node=False)
  num_fields: int = flax.struct.field(pytree_node=False)
  field_bits: int = flax.struct.field(pytree_node=False)

  def take(self, rows: jax.Array) -> jax.Array:
    """The rows at [...] int32 indices: [..., F] int32."""
    # As many fields at once as a word holds, since reading is dearer than splitting.
    fields_at_once = _WORD // self.field_bits
    fields = []
    for first in range(0, self.num_fields, fields_at_once):
      bits = self._bits(rows, first * self.field_bits)
      for n in range(min(fields_at_once, self.num_fields - first)):
        field = bits >> jnp.uint32(n * self.field_bits) & _low_bits(jnp.int32(self.field_bits))
        fields.append(field.astype(jnp.int32))
    return jnp.stack(fields, axis=-1)

  def _bits(self, rows: jax.Array, offset: int) -> jax.Array:
    """32 bits of each row from bit `offset` on; beyond its end, those of other rows."""
    row_bits = self.num_fields * self.field_bits
    # Whole groups of 32 rows first: the index of a bit would overflow in a large array.
    bit = (rows & (_WORD - 1)) * row_bits + offset
    word = (rows >> _WORD_SHIFT) * row_bits + (bit >> _WORD_SHIFT)
    shift = (bit & (_WORD - 1)).astype(jnp.uint32)
    # In two steps, since a shift by all 32 bits is not defined.
    high = _read(self.words, word + 1) << 1 << (_WORD - 1 - shift)
    return _read(self.words, word) >> shift | high


def count_at_most(ascending: jax.Array, limits: jax.Array) -> jax.Array:
  """[...] int32: how many of [n] ascending numbers are not above [...] limits.

  Binary search without a loop, whose turns would cost more than their work.
  """
  size = len(ascending)
  found = jnp.zeros(limits.shape, jnp.int32)
  for power in reversed(range(size.bit_length())):
    more = found + (1 << power)
    is_within = _read(ascending, jnp.minimum(more, size) - 1) <= limits
    found = jnp.where(is_within & (more <= size), more, found)
  return found


def bit_vector(values: np.ndarray) -> BitVector:
  """Stores [n] bool."""
  num_blocks = len(values) // _BLOCK + 1
  packed = np.zeros(num_blocks * _BLOCK // 8, np.uint8)
  packed[: -(-len(values) // 8)] = np.packbits(values, bitorder="little")
  words = packed.view("<u4")
  ones = np.bitwise_count(words.reshape(num_blocks, _BLOCK_WORDS)).sum(axis=1)
  counts = np.cumsum(ones) - ones
  return BitVector(jnp.asarray(words, jnp.uint32), jnp.asarray(counts, jnp.int32))


def packed_rows(columns: list[np.ndarray], field_bits: int) -> PackedRows:
  """Stores F columns of [n] unsigned integers below 2**field_bits.

  Raises ValueError if a number does not fit, or field_bits is not in [1, 32].
  """
  if not 1 <= field_bits <= _WORD:
    raise ValueError(f"field_bits must be 1 to {_WORD}, got {field_bits}.")
  num_rows, row_bits = len(columns[0]), len(columns) * field_bits
  num_groups = -(-num_rows // _WORD)
  words = np.zeros(num_groups * row_bits + 1, np.uint32)  # One to spare, for reads of two words.
  by_group = words[:-1].reshape(num_groups, row_bits)
  for f, column in enumerate(columns):
    if num_rows and int(column.max()) >> field_bits:
      raise ValueError(f"{column.max()} does not fit {field_bits} bits.")
    for lane in range(_WORD):  # One row of each group of 32.
      values = column[lane::_WORD].astype(np.uint32)
      word, shift = divmod(lane * row_bits + f * field_bits, _WORD)
      by_group[: len(values), word] |= values << np.uint32(shift)
      if shift + field_bits > _WORD:
        by_group[: len(values), word + 1] |= values >> np.uint32(_WORD - shift)
  return PackedRows(jnp.asarray(words), num_rows, len(columns), field_bits)


def _read(values: jax.Array, index: jax.Array) -> jax.Array:
  """values[index] for indices that are known to be in bounds and not negative, unchecked."""
  return values.at[index].get(mode="promise_in_bounds", wrap_negative_indices=False)


def _num_ones(words: jax.Array) -> jax.Array:
  return jax.lax.population_count(words).astype(jnp.int32)


def _low_bits(num_bits: jax.Array) -> jax.Array:
  """[...] uint32 with the lowest [...] int32 bits set; all 32 of them from 32 on."""
  few = (jnp.uint32(1) << jnp.minimum(num_bits, _WORD - 1).astype(jnp.uint32)) - jnp.uint32(1)
  return jnp.where(num_bits < _WORD, few, jnp.uint32(0xFFFFFFFF))

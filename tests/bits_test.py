"""Bits and packed integers against the plain arrays that they stand for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bbqrec_jax.decoding import bits


@pytest.mark.parametrize("length", [31, 512, 1537])  # Words have 32 bits, blocks 512.
def test_get_rank_and_select_count_and_find_bits(length):
  @jax.jit
  def read(vector):
    index = jnp.arange(length)
    return vector.get(index), vector.rank(jnp.arange(length + 1)), vector.select(index)

  for density in (0.0, 0.003, 0.5, 0.98, 1.0):
    values = np.random.default_rng(length).random(length) < density
    found, ranks, selected = read(bits.bit_vector(values))
    np.testing.assert_array_equal(found, values)
    np.testing.assert_array_equal(ranks, np.append(0, np.cumsum(values)))
    np.testing.assert_array_equal(selected[: values.sum()], np.flatnonzero(values))


def test_queries_keep_their_shape():
  @jax.jit
  def read(vector, query):
    found = vector.select(query)
    return found, vector.rank(found), vector.get(found)

  values = np.random.default_rng(0).random(1999) < 0.3
  queries = np.random.default_rng(1).integers(0, values.sum(), (3, 5, 7))
  for query in (queries, queries[0, 0, 0]):
    found, ranks, are_set = read(bits.bit_vector(values), jnp.asarray(query))
    np.testing.assert_array_equal(found, np.flatnonzero(values)[query])
    np.testing.assert_array_equal(ranks, query)
    np.testing.assert_array_equal(are_set, np.ones(query.shape, bool))


@pytest.mark.parametrize(("num_fields", "field_bits"), [(1, 1), (3, 8), (2, 11), (3, 17), (2, 32)])
def test_packed_rows_are_the_rows(num_fields, field_bits):
  read = jax.jit(lambda packed, index: packed.take(index))
  for num_rows in (1, 97):
    rng = np.random.default_rng(num_rows)
    rows = rng.integers(0, 1 << field_bits, (num_rows, num_fields))
    rows[rng.integers(num_rows)] = (1 << field_bits) - 1
    packed = bits.packed_rows(list(rows.T), field_bits)
    index = rng.permutation(num_rows).reshape(1, -1)
    found = np.asarray(read(packed, jnp.asarray(index))).astype(np.uint32)
    np.testing.assert_array_equal(found, rows[index])
    # Rows fill their bits, but for a group of 32 rows and one word to spare.
    assert packed.words.size <= (num_rows / 32 + 1) * num_fields * field_bits + 1


@pytest.mark.parametrize(
  ("columns", "field_bits", "message"),
  [([[8]], 3, "8 does not fit 3 bits"), ([[0]], 33, "1 to 32, got 33"), ([[0]], 0, "got 0")],
)
def test_numbers_that_do_not_fit_are_refused(columns, field_bits, message):
  with pytest.raises(ValueError, match=message):
    bits.packed_rows([np.array(column, np.uint32) for column in columns], field_bits)

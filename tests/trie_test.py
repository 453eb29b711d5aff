"""The trie holds exactly the catalogue's prefixes and items."""

import chex
import jax
import numpy as np
import pytest

from bbqrec_jax.decoding import trie as trie_lib

ITEMS, L, N = 53, 3, 5


def paths(trie):
  """(semantic ID as nested tuples, items in order) of every leaf, by walking from the root."""

  def walk(depth, parent, prefix):
    first = np.asarray(trie.first_child[depth])
    children = range(first[parent], first[parent + 1])
    if depth == trie.num_levels:
      yield prefix, np.asarray(trie.items)[children].tolist()
      return
    for child in children:
      token = tuple(np.asarray(trie.codes[depth])[child].tolist())
      yield from walk(depth + 1, child, (*prefix, token))

  return list(walk(0, 0, ()))


class TrieTest(chex.TestCase):
  def test_walk_gives_every_semantic_id_once_with_its_items_by_popularity(self):
    for num_signals in (1, 2, 3):
      rng = np.random.default_rng(num_signals)
      codes = rng.integers(0, N, (ITEMS, L, num_signals))
      codes[::4] = codes[0]  # Collisions.
      popularity = rng.integers(0, 3, ITEMS)  # With equal counts among them.
      expected = {}
      for item in sorted(range(ITEMS), key=lambda i: (-popularity[i], i)):
        expected.setdefault(tuple(map(tuple, codes[item].tolist())), []).append(item)
      found = paths(trie_lib.build(codes, N, popularity))
      self.assertEqual(len(found), len(expected))  # No leaf twice.
      self.assertEqual(dict(found), expected)

  def test_nodes_are_distinct_prefixes_and_bounds_are_attained(self):
    codes = np.random.default_rng(0).integers(0, N, (ITEMS, L, 2))
    trie = trie_lib.build(codes, N, np.zeros(ITEMS, int))
    for level in range(L):
      prefixes = np.unique(codes[:, : level + 1].reshape(ITEMS, -1), axis=0)
      chex.assert_shape(trie.codes[level], (len(prefixes), 2))
      self.assertEqual(trie.num_children(level), len(prefixes))
    self.assertEqual(trie.num_children(L), ITEMS)
    for offsets, bound in zip(trie.first_child, trie.max_children):
      self.assertEqual(np.diff(offsets).max(), bound)
    chex.assert_type(jax.tree.leaves(trie), np.int32)

  def test_bounds_are_static_and_arrays_are_leaves(self):
    trie = trie_lib.build(np.zeros((2, L, 1), int), N, np.zeros(2))
    self.assertLen(jax.tree.leaves(trie), L + (L + 1) + 1)
    self.assertEqual(jax.tree.map(lambda x: x, trie).max_children, (1, 1, 1, 2))


@pytest.mark.parametrize(
  ("codes", "popularity", "message"),
  [
    (np.full((3, 2, 1), N), np.zeros(3), "in \\[0, 5\\)"),
    (np.full((3, 2, 1), -1), np.zeros(3), "in \\[0, 5\\)"),
    (np.zeros((3, 2), int), np.zeros(3), "I, L, M"),
    (np.zeros((0, 2, 1), int), np.zeros(0), "not empty"),
    (np.zeros((3, 2, 1), int), np.zeros(4), "popularity"),
  ],
)
def test_wrong_arguments_raise(codes, popularity, message):
  with pytest.raises(ValueError, match=message):
    trie_lib.build(codes, N, popularity)

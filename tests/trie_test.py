"""The trie holds exactly the catalogue's prefixes and items."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bbqrec_jax.decoding import trie as trie_lib

ITEMS, L, N = 53, 3, 5


@jax.jit
def read(trie):
  """(codes of all nodes of each level, (first child, count) of each depth's parents, items)."""
  codes = [trie.codes(level, jnp.arange(n)) for level, n in enumerate(trie.num_nodes)]
  parents = enumerate((1, *trie.num_nodes))
  children = [jnp.stack(trie.children(depth, jnp.arange(n))) for depth, n in parents]
  return codes, children, trie.items(jnp.arange(trie.num_items))


def paths(trie):
  """(semantic ID as nested tuples, items in order) of every leaf, by walking from the root."""
  codes, children, items = jax.tree.map(np.asarray, read(trie))

  def walk(depth, parent, prefix):
    first, count = children[depth][:, parent]
    if depth == trie.num_levels:
      yield prefix, items[first : first + count].tolist()
      return
    for child in range(first, first + count):
      yield from walk(depth + 1, child, (*prefix, tuple(codes[depth][child].tolist())))

  return list(walk(0, 0, ()))


class TrieTest(chex.TestCase):
  def test_walk_gives_every_semantic_id_once_with_its_items_by_popularity(self):
    # Semantic IDs of 9 to 99 bits: keys of one machine word and of several.
    cases = [(N, 1, "auto"), (1999, 3, "auto"), (N, 3, "rank"), (211, 2, "rank")]
    for codebook_size, num_signals, root_search in cases:
      rng = np.random.default_rng(num_signals)
      values = np.array([0, 1, 2, codebook_size - 2, codebook_size - 1])
      codes = values[rng.integers(0, 5, (ITEMS, L, num_signals))]
      codes[::4] = codes[0]  # Collisions.
      codes[2::5, :2] = codes[1, :2]
      popularity = rng.integers(0, 3, ITEMS)  # With equal counts among them.
      expected = {}
      for item in sorted(range(ITEMS), key=lambda i: (-popularity[i], i)):
        expected.setdefault(tuple(map(tuple, codes[item].tolist())), []).append(item)
      trie = trie_lib.build(codes, codebook_size, popularity, root_search=root_search)
      self.assertEqual(trie.roots is not None, root_search == "rank")
      found = paths(trie)
      self.assertEqual([semantic_id for semantic_id, _ in found], sorted(expected))
      self.assertEqual(dict(found), expected)

  def test_nodes_are_distinct_prefixes_and_bounds_are_attained(self):
    codes = np.random.default_rng(0).integers(0, N, (ITEMS, L, 2))
    trie = trie_lib.build(codes, N, np.zeros(ITEMS, int))
    for level in range(L):
      prefixes = np.unique(codes[:, : level + 1].reshape(ITEMS, -1), axis=0)
      self.assertEqual(trie.num_nodes[level], len(prefixes))
    for depth, (_, counts) in enumerate(read(trie)[1]):
      self.assertEqual(counts.max(), trie.max_children[depth])
      self.assertEqual(counts.sum(), (*trie.num_nodes, ITEMS)[depth])

  def test_sizes_are_static_and_arrays_are_leaves(self):
    trie = trie_lib.build(np.zeros((2, L, 1), int), N, np.zeros(2))
    self.assertLen(jax.tree.leaves(trie), L + 2 * L + 1)
    self.assertEqual(jax.tree.map(lambda x: x, trie).max_children, (1, 1, 1, 2))
    self.assertEqual(trie.num_bytes, sum(x.nbytes for x in jax.tree.leaves(trie)))

  def test_an_item_takes_few_bytes(self):
    num_items, codebook_size = 100_000, 256
    rng = np.random.default_rng(0)
    for num_roots in (num_items, 4096):
      codes = rng.integers(0, codebook_size, (num_items, L, 3))
      codes[:, 0] = codes[rng.zipf(1.2, num_items) % num_roots, 0]
      trie = trie_lib.build(codes, codebook_size, np.zeros(num_items))
      self.assertLess(trie.num_bytes / num_items, 12)

  def test_first_tokens_are_enumerated_from_a_threshold_on(self):
    codes = np.arange(300)[:, None, None] // np.array([20, 1]) % 20  # All pairs below (15, 20).
    build = lambda **kwargs: trie_lib.build(codes, 20, np.zeros(300), **kwargs)
    self.assertIsNone(build().roots)
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(trie_lib, "RANK_FROM", 300)
      self.assertIsNotNone(build().roots)
      self.assertIsNone(build(root_search="all").roots)
      patch.setattr(trie_lib, "_MAX_ROOT_BITS", 399)  # Less than 20**2.
      self.assertIsNone(build().roots)
      with pytest.raises(ValueError, match="needs N\\*\\*M up to 399, got 400"):
        build(root_search="rank")


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


@pytest.mark.parametrize(
  ("option", "message"),
  [
    (dict(root_search="none"), "one of .*'auto', 'all', 'rank'.*, got 'none'"),
    (dict(block_size=0), "block_size must be positive, got 0"),
  ],
)
def test_wrong_options_raise(option, message):
  with pytest.raises(ValueError, match=message):
    trie_lib.build(np.zeros((3, 2, 1), int), N, np.zeros(3), **option)

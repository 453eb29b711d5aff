"""The walk over many children finds what sorting all of them finds, and passes most of them by."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bbqrec_jax.decoding import trie as trie_lib
from bbqrec_jax.decoding import walk

N, M, PARENTS, K = 7, 3, 5, 11


def make_trie():
  """PARENTS roots, with 200 to 300 of the N**M possible children each, but one with two."""
  rng = np.random.default_rng(0)
  tokens = np.stack(np.unravel_index(np.arange(N**M), (N,) * M), axis=-1)
  codes = []
  for parent in range(PARENTS):
    count = 2 if parent == 1 else rng.integers(200, 301)
    second = tokens[rng.permutation(N**M)[:count]]
    codes.append(np.stack([np.broadcast_to(tokens[parent], second.shape), second], axis=1))
  codes = np.concatenate(codes)
  return trie_lib.build(codes, N, np.zeros(len(codes), int), block_size=3)


def make_log_probs(sharpness):
  """[PARENTS, M, N]; integers, so that sums are exact and often equal."""
  logits = sharpness * np.random.default_rng(1).standard_normal((PARENTS, M, N))
  return np.minimum(np.round(logits - logits.max(axis=-1, keepdims=True)), 0).astype(np.float32)


def by_sorting(trie, nodes, scores, log_probs):
  """[(score, beam, child)] of the K best, then the next one's score; the obvious way."""
  firsts, counts = (np.asarray(x) for x in trie.children(1, jnp.asarray(nodes)))
  found = []
  for beam, (first, count) in enumerate(zip(firsts, counts)):
    if scores[beam] == -np.inf:
      continue
    children = np.arange(first, first + count)
    codes = np.asarray(trie.codes(1, jnp.asarray(children)))
    for child, code in zip(children, codes):
      found.append((scores[beam] + sum(log_probs[beam, m, code[m]] for m in range(M)), beam, child))
  found.sort(key=lambda row: (-row[0], row[1], row[2]))
  return found[:K], found[K][0]


@pytest.mark.parametrize("sharpness", [0.5, 3.0])  # Many blocks may matter; few do.
@pytest.mark.parametrize(
  ("slots", "many", "window"),
  [(1, 10**9, 1), (6, 10**9, 4), (64, 100, 2), (4096, 100, 8)],
)
def test_a_walk_finds_what_sorting_all_children_finds(slots, many, window, sharpness):
  trie, log_probs = make_trie(), make_log_probs(sharpness)
  nodes = np.random.default_rng(2).permutation(PARENTS).astype(np.int32)
  scores = np.array([-1, -2, -2, -5, -np.inf], np.float32)
  settings = dict(_CHUNK_SLOTS=slots, _MANY_CHILDREN=many, _LARGER=4, _WINDOW=window)
  with mock.patch.multiple(walk, **settings):
    chosen = jax.jit(lambda *args: walk.best_children(trie, 1, K, *args))(nodes, scores, log_probs)
  expected, bound = by_sorting(trie, nodes, scores, log_probs)
  found = zip(chosen.scores.tolist(), chosen.parents.tolist(), chosen.children.tolist())
  assert list(found) == expected
  assert chosen.bound == bound


def test_few_children_are_scored_where_few_can_be_best():
  trie, log_probs = make_trie(), jnp.asarray(make_log_probs(6.0))
  nodes, scores = jnp.arange(PARENTS, dtype=jnp.int32), jnp.zeros(PARENTS)
  scored, codes = set(), trie_lib.Trie.codes

  def counted(self, level, children):
    if children.ndim == 2:  # [P, block]: all children of blocks, not only the ends of some.
      jax.debug.callback(lambda x: scored.update(x.ravel().tolist()), children)
    return codes(self, level, children)

  settings = dict(_CHUNK_SLOTS=24, _MANY_CHILDREN=10**9, _WINDOW=4)
  with mock.patch.multiple(walk, **settings), mock.patch.object(trie_lib.Trie, "codes", counted):
    jax.block_until_ready(walk.best_children(trie, 1, K, nodes, scores, log_probs))
    jax.effects_barrier()
  assert K < len(scored) < trie.num_nodes[1] / 2

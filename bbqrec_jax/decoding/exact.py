"""The true best items over the whole catalogue, with a proof: beams as wide as it takes."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from bbqrec_jax.decoding import beam, generate
from bbqrec_jax.decoding import trie as trie_lib
from bbqrec_jax.models import generator

_GROWTH = 4  # From one width to the next.
# Beams of all users of a batch together: bounds the memory, which grows with them.
_BEAMS_AT_ONCE = 4096


class Proven(NamedTuple):
  """The best items of each user, as beam.Beams has them, and what it took to prove them.

  Attributes:
    items: [B, k] int32, -1 where fewer than k items are possible.
    scores: [B, k] float32.
    bound: [B] float32, less than the k-th score, or -inf.
    num_beams: [B] int32, the width of the search that proved them.
  """

  items: np.ndarray
  scores: np.ndarray
  bound: np.ndarray
  num_beams: np.ndarray


def make_exact(model: generator.Model, *, num_beams: int, num_results: int) -> Callable:
  """Builds (params, catalogue, trie, history [B, T] int32) -> Proven [B, num_results].

  The first search is that of generate.make_generate() with the same arguments. Each width that is
  needed compiles a program, and the first one another for each B of less than 4096 / num_beams.
  """
  programs = {}

  def search(params, catalogue: generate.Catalogue, trie: trie_lib.Trie, history) -> Proven:
    def search_fn(width, rows):
      if width not in programs:
        programs[width] = generate.make_generate(model, num_beams=width, num_results=num_results)
      return programs[width](params, catalogue, trie, rows)

    return widen_until_proven(search_fn, np.asarray(history), trie, num_beams=num_beams)

  return search


def widen_until_proven(
  search_fn: Callable[[int, np.ndarray], beam.Beams],
  users: np.ndarray,
  trie: trie_lib.Trie,
  *,
  num_beams: int,
) -> Proven:
  """Searches again, with four times the beams, for the users whose best items are not yet proven.

  A result is proven once its last score is above the bound, hence above whatever was missed, so
  that a wider search would return the same, ties included. A search that drops nothing proves
  itself, and one with a beam for each distinct semantic ID never does, so that this ends.
  The proof holds for the scores as computed in float32, which differ in the last digits between
  widths.

  Args:
    search_fn: (num_beams, users [n, ...]) -> beam.Beams [n, k], the search of a batch. n is fixed
      for each width, so that their beams together are at most 4096, or one user's; but for the
      first width it is not more than B.
    users: [B, ...] what search_fn needs to know of each user; B > 0.
    trie: the catalogue that is searched.
    num_beams: the first width.
  """
  num_ids = trie.num_nodes[-1]
  width = min(num_beams, num_ids)
  size = max(1, min(len(users), _BEAMS_AT_ONCE // width))
  found = Proven(*_in_batches(search_fn, width, users, size), np.full(len(users), width, np.int32))
  while width < num_ids:
    last = found.scores[:, min(found.scores.shape[1], trie.num_items) - 1]
    open_users = np.flatnonzero((last <= found.bound) & (found.bound > -np.inf))
    if not len(open_users):
      break
    width = min(_GROWTH * width, num_ids)
    size = max(1, _BEAMS_AT_ONCE // width)
    for array, new in zip(found, _in_batches(search_fn, width, users[open_users], size)):
      array[open_users] = new
    found.num_beams[open_users] = width
  return found


def _in_batches(
  search_fn: Callable[[int, np.ndarray], beam.Beams], width: int, users: np.ndarray, size: int
) -> list[np.ndarray]:
  """The fields of beam.Beams of all users, searched `size` at a time.

  The last batch is filled up with its last user, so that one program is enough.
  """
  batches = []
  for start in range(0, len(users), size):
    batch = users[start : start + size]
    unused = [(0, size - len(batch)), *[(0, 0)] * (users.ndim - 1)]
    beams = jax.device_get(search_fn(width, np.pad(batch, unused, mode="edge")))
    batches.append([array[: len(batch)] for array in beams])
  return [np.concatenate(arrays) for arrays in zip(*batches)]

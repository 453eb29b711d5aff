"""Semantic IDs that several items share, told apart behind training."""

from collections.abc import Iterator

import jax
import numpy as np

from bbqrec_jax.models import balanced

_ROWS = 1 << 14  # Items that get codes at once; bounds the memory.
_balanced_codes = jax.jit(jax.vmap(balanced.balanced_codes, in_axes=(0, None, 0, None)))


def separate(
  codes: np.ndarray,
  residuals: np.ndarray,
  codebook: np.ndarray,
  *,
  temperature: float,
  num_rounds: int,
) -> np.ndarray:
  """Gives items that share a semantic ID other codes of the last level.

  As the program of LETTER (Wang et al. 2024, arXiv:2405.07314) does: in every round the items of
  each semantic ID that has several share the last level's codes out among them
  (balanced.balanced_codes); whom they meet there is the next round's concern. Items of equal
  residuals stay together.

  Args:
    codes: [I, L] int32 in [0, N).
    residuals: [I, D] float32, what the last level quantizes.
    codebook: [N, D] float32, the last level's.
    temperature: of balanced_codes().
    num_rounds: at most; it ends before where a round changes nothing.

  Returns:
    [I, L] int32; only the last level's differ.
  """
  codes = codes.copy()
  for _ in range(num_rounds):
    before = codes[:, -1].copy()
    for items, counts in _groups(codes):
      found = _balanced_codes(residuals[items], codebook, counts, temperature)
      codes[items[counts > 0], -1] = np.asarray(found)[counts > 0]
    if np.array_equal(before, codes[:, -1]):
      break
  return codes


def _groups(codes: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Items with one semantic ID, several such groups at once: as they are when this begins.

  Yields (items [G, W] int, counts [G, W] float32 of 1 and 0). A row is a group, filled up with its
  last item, which then does not count; the last row is there again where G would be less. G and W
  are powers of two, so that few shapes are compiled.
  """
  _, group, sizes = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
  order = np.argsort(group.reshape(-1), kind="stable")
  firsts = np.cumsum(sizes) - sizes
  firsts, sizes = firsts[sizes > 1], sizes[sizes > 1]
  widths = 1 << np.ceil(np.log2(sizes)).astype(int)
  for width in np.unique(widths):
    mine = np.flatnonzero(widths == width)
    at_once = max(_ROWS // width, 1)
    for start in range(0, len(mine), at_once):
      rows = mine[start : start + at_once]
      place = np.arange(width)[None, :]
      items = order[firsts[rows, None] + np.minimum(place, sizes[rows, None] - 1)]
      counts = (place < sizes[rows, None]).astype(np.float32)
      fill = (1 << (len(rows) - 1).bit_length()) - len(rows)
      yield tuple(np.pad(x, ((0, fill), (0, 0)), mode="edge") for x in (items, counts))

"""Semantic IDs that several items share, told apart behind training."""

import jax
import numpy as np

from bbqrec_jax.models import balanced

_balanced_codes = jax.jit(balanced.balanced_codes)


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
    _, group, sizes = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
    group = group.reshape(-1)
    order = np.argsort(group, kind="stable")
    ends = np.cumsum(sizes)
    before = codes[:, -1].copy()
    for end, size in zip(ends[sizes > 1], sizes[sizes > 1]):
      items = order[end - size : end]
      # A power of two, so that few shapes are compiled.
      points = np.zeros((1 << int(size - 1).bit_length(), residuals.shape[1]), np.float32)
      points[:size] = residuals[items]
      counts = (np.arange(len(points)) < size).astype(np.float32)
      codes[items, -1] = np.asarray(_balanced_codes(points, codebook, counts, temperature))[:size]
    if np.array_equal(before, codes[:, -1]):
      break
  return codes

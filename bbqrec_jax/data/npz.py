"""NumPy archives: written whole or not at all, read whole or refused in one sentence."""

import os
import pathlib
from collections.abc import Sequence

import numpy as np

from bbqrec_jax.errors import UserError


def write(path: str | os.PathLike, **arrays: np.ndarray) -> None:
  """Writes an .npz file; who reads it meanwhile sees what was there before, or all of it."""
  path = pathlib.Path(path)
  temporary = path.with_suffix(".tmp.npz")
  np.savez(temporary, **arrays)
  os.replace(temporary, path)


def read(path: str | os.PathLike, needed: Sequence[str], remedy: str) -> dict[str, np.ndarray]:
  """All arrays of an .npz file by name; objects, which could run any code, are refused.

  Args:
    needed: names that must be there.
    remedy: what to do about a damaged file, the end of the message.

  Raises UserError if it cannot be read, or lacks a name.
  """
  try:
    with np.load(path, allow_pickle=False) as file:
      arrays = dict(file)
  except Exception as error:  # NumPy, zipfile and zlib each raise kinds of their own.
    reason = " ".join(str(getattr(error, "strerror", None) or error).split())
    raise UserError(f"{path} cannot be read ({reason}); {remedy}.") from error
  for name in needed:
    if name not in arrays:
      raise UserError(f"{path} has no {name!r}; {remedy}.")
  return arrays

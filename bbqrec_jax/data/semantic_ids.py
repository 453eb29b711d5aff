"""What stage one leaves behind: every item's semantic ID and vector, in one file."""

import dataclasses
import os
import pathlib

import numpy as np

from bbqrec_jax.data import npz
from bbqrec_jax.errors import UserError

FILE_NAME = "semantic_ids.npz"


@dataclasses.dataclass(frozen=True)
class SemanticIds:
  """The catalogue as stage two sees it.

  Attributes:
    codes: [I, L, M] int32 in [0, N): the semantic IDs, codes of level l and signal m.
    vectors: [I, M * D] float32, the frozen vectors v of BBQRec Eq. (10).
    item_ids: [I] str, original ids.
    titles: [I] str, "" where unknown.
    popularity: [I] int64, occurrences in the training part of the sequences.
    signals: [M] str, which signals there are, in order.
    codebooks: [G, L, N, D] float32; G = 1 where the signals share them, else M.
  """

  codes: np.ndarray
  vectors: np.ndarray
  item_ids: np.ndarray
  titles: np.ndarray
  popularity: np.ndarray
  signals: np.ndarray
  codebooks: np.ndarray

  @property
  def codebook_size(self) -> int:
    return self.codebooks.shape[2]


def save(workdir: str | os.PathLike, ids: SemanticIds) -> None:
  """Writes <workdir>/semantic_ids.npz; a reader sees the whole file or none."""
  path = pathlib.Path(workdir) / FILE_NAME
  temporary = path.with_suffix(".tmp.npz")
  np.savez(temporary, **vars(ids))
  os.replace(temporary, path)


def load(workdir: str | os.PathLike) -> SemanticIds:
  """Reads what save() wrote.

  Raises UserError if there is none, or it is damaged: unreadable, or arrays that do not fit.
  """
  path = pathlib.Path(workdir) / FILE_NAME
  if not path.exists():
    raise UserError(f"{path} does not exist; run the tokenizer stage in this workdir first.")
  names = [field.name for field in dataclasses.fields(SemanticIds)]
  remedy = "run the tokenizer stage again, in another workdir"
  arrays = npz.read(path, names, remedy)
  ids = SemanticIds(**{name: arrays[name] for name in names})
  if not _fit(ids):
    shapes = ", ".join(f"{name} {array.dtype}{array.shape}" for name, array in vars(ids).items())
    raise UserError(f"{path} holds no semantic IDs ({shapes}); {remedy}.")
  return ids


_KINDS = dict(  # Of the arrays' types.
  codes="iu",
  vectors="f",
  item_ids="U",
  titles="U",
  popularity="iu",
  signals="U",
  codebooks="f",
)


def _fit(ids: SemanticIds) -> bool:
  """Whether types, shapes and ranges are those of SemanticIds."""
  if any(getattr(ids, name).dtype.kind not in kinds for name, kinds in _KINDS.items()):
    return False
  if ids.codes.ndim != 3 or not ids.codes.size or ids.codebooks.ndim != 4:
    return False
  num_items, num_levels, num_signals = ids.codes.shape
  groups, _, codebook_size, dim = ids.codebooks.shape
  return (
    ids.vectors.shape == (num_items, num_signals * dim)
    and ids.item_ids.shape == ids.titles.shape == ids.popularity.shape == (num_items,)
    and ids.signals.shape == (num_signals,)
    and ids.codebooks.shape[1] == num_levels
    and groups in (1, num_signals)
    and 0 <= ids.codes.min() <= ids.codes.max() < codebook_size
    and bool(np.isfinite(ids.vectors).all())
  )

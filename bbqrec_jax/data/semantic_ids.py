"""What stage one leaves behind: every item's semantic ID and vector, in one file."""

import dataclasses
import os
import pathlib

import numpy as np

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

  Raises UserError if there is none.
  """
  path = pathlib.Path(workdir) / FILE_NAME
  if not path.exists():
    raise UserError(f"{path} does not exist; run the tokenizer stage in this workdir first.")
  with np.load(path, allow_pickle=False) as file:
    return SemanticIds(
      **{field.name: file[field.name] for field in dataclasses.fields(SemanticIds)}
    )

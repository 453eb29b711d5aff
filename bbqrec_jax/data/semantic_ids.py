"""What a tokenizer leaves behind: every item's semantic ID and vector, in one file."""

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
    codes: [I, L, M] int32: the semantic IDs, codes of level l and signal m. They are in [0, N),
      except for a last level that no codebook has: running_numbers(), at least 0.
    vectors: [I, M * D] float32, the frozen vectors v of BBQRec Eq. (10).
    item_ids: [I] str, original ids.
    titles: [I] str, "" where unknown.
    popularity: [I] int64, occurrences in the training part of the sequences.
    signals: [M] str, which signals there are, in order.
    codebooks: [G, L or L - 1, N, D] float32; G = 1 where the signals share them, else M.
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
    """How many codes a level may have: N, or more where running numbers go beyond."""
    return max(self.codebooks.shape[2], int(self.codes.max()) + 1)

  @property
  def has_numbers(self) -> bool:
    """Whether the last level is of running numbers."""
    return self.codes.shape[1] > self.codebooks.shape[1]


def running_numbers(codes: np.ndarray, earlier: np.ndarray | None = None) -> np.ndarray:
  """0, 1, 2, ... for the items that share their codes, in order: together they are unique.

  Rajput et al. 2023 (TIGER, arXiv:2305.05065), section 3.1, "handling collisions".

  Args:
    codes: [I, ...] int.
    earlier: [J, ...] int, of items that have their numbers, 0 and up without a gap.

  Returns:
    [I] int32.
  """
  num_earlier = 0 if earlier is None else len(earlier)
  both = codes if earlier is None else np.concatenate([earlier, codes])
  _, group, sizes = np.unique(
    both.reshape(len(both), -1), axis=0, return_inverse=True, return_counts=True
  )
  order = np.argsort(group.ravel(), kind="stable")  # Group after group, each in the items' order.
  numbers = np.empty(len(both), np.int32)
  numbers[order] = np.arange(len(both)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
  return numbers[num_earlier:]


def save(workdir: str | os.PathLike, ids: SemanticIds) -> None:
  """Writes <workdir>/semantic_ids.npz."""
  npz.write(pathlib.Path(workdir) / FILE_NAME, **vars(ids))


def load(workdir: str | os.PathLike) -> SemanticIds:
  """Reads what save() wrote.

  Raises UserError if there is none, or it is damaged: unreadable, or arrays that do not fit.
  """
  path = pathlib.Path(workdir) / FILE_NAME
  if not path.exists():
    raise UserError(
      f"{path} does not exist; run the tokenizer stage in this workdir first (or rqvae)."
    )
  names = [field.name for field in dataclasses.fields(SemanticIds)]
  remedy = "run the stage that made it again, in another workdir"
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
  groups, num_learned, codebook_size, dim = ids.codebooks.shape
  learned = ids.codes[:, :num_learned]
  return (
    ids.vectors.shape == (num_items, num_signals * dim)
    and ids.item_ids.shape == ids.titles.shape == ids.popularity.shape == (num_items,)
    and ids.signals.shape == (num_signals,)
    and 0 <= num_levels - num_learned <= 1
    and num_learned > 0
    and groups in (1, num_signals)
    and 0 <= ids.codes.min()
    and learned.max() < codebook_size
    and ids.codes.max() < max(codebook_size, num_items)  # So far a running number can go.
    and bool(np.isfinite(ids.vectors).all())
  )

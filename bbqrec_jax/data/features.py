"""Feature matrices of the items, from .npy files or from text columns."""

from collections.abc import Mapping, Sequence

import numpy as np
from absl import logging

from bbqrec_jax.data import text
from bbqrec_jax.data.dataset import MODALITIES, Features
from bbqrec_jax.data.items import ItemTable
from bbqrec_jax.data.lines import check_file
from bbqrec_jax.errors import UserError


def check_modalities(modalities: Sequence[str]) -> tuple[str, ...]:
  """The modalities in their fixed order; raises UserError for a name that is none."""
  for modality in modalities:
    if modality not in MODALITIES:
      raise UserError(f"data: unknown modality {modality!r}; known are: {', '.join(MODALITIES)}.")
  return tuple(m for m in MODALITIES if m in modalities)


def feature_paths(
  modalities: Sequence[str], features: Mapping[str, str | None] | None
) -> dict[str, str]:
  """The .npy files of the modalities in use, ~ expanded; modalities without a file are left out.

  Raises UserError if a file is missing or a name is no modality.
  """
  paths = dict(features or {})
  check_modalities(tuple(paths))
  return {m: check_file(paths[m]) for m in modalities if paths.get(m) is not None}


def read_matrix(path: str, num_rows: int, table_path: str) -> np.ndarray:
  """Maps a .npy file of one row per item into memory: [num_rows, F], some real type.

  Raises UserError if it is no matrix of numbers or has another number of rows.
  """
  try:
    with np.errstate(over="ignore"):  # The size that a damaged header tells may overflow.
      values = np.load(path, mmap_mode="r", allow_pickle=False)
  except Exception as error:  # NumPy, and zipfile for an archive, raise kinds of their own.
    # NumPy's own message would suggest to allow pickles, which can run any code.
    raise UserError(
      f"{path}: not a whole .npy file of numbers (objects are refused); "
      "save the matrix with numpy.save as float32 or float16."
    ) from error
  is_matrix = isinstance(values, np.ndarray) and values.ndim == 2 and values.shape[1] > 0
  if not is_matrix or values.dtype.kind not in "fiu":
    raise UserError(f"{path}: expected one matrix of real numbers, a row for each item.")
  if len(values) != num_rows:
    raise UserError(
      f"{path}: {len(values):,} rows, but {table_path} has {num_rows:,} items; "
      "row r of the matrix must belong to item r of the table."
    )
  return values


def take_rows(values: np.ndarray, rows: np.ndarray, path: str) -> Features:
  """The kept items' features; an item whose row is -1, or all zero, is absent.

  Args:
    values: [R, F], real.
    rows: [I] int64 in [-1, R).
    path: where the values come from, for the message.

  Raises UserError if a value is not finite as float32, or every item is absent.
  """
  taken = np.zeros((len(rows), values.shape[1]), np.float32)
  known = rows >= 0
  with np.errstate(over="ignore"):  # A float64 beyond float32 becomes inf, refused below.
    taken[known] = values[rows[known]]
  finite = np.isfinite(taken).all(axis=1)
  if not finite.all():
    row = rows[np.argmin(finite)]
    raise UserError(
      f"{path}: row {row} (counted from 0) holds NaN or infinity; "
      "mend it, or set the whole row to zero to mark the item as absent."
    )
  present = taken.any(axis=1)
  if not present.any():
    raise UserError(
      f"{path}: every row of an item with interactions is zero, so that no item has a vector; "
      "check the file, or leave it out."
    )
  return Features(taken, present)


def make_features(
  modalities: Sequence[str],
  paths: Mapping[str, str],
  table: ItemTable | None,
  rows: np.ndarray,
  *,
  text_model: str,
  text_columns: Sequence[str],
  cache_dir: str,
) -> dict[str, Features]:
  """Features of every modality that something provides: its .npy file, or text columns for text.

  Args:
    modalities: those in use, checked.
    paths: modality -> .npy file, its rows those of the table.
    table: the item table; None if there is none.
    rows: [I] int64, the items' rows in the table, -1 where it has none.
    text_model, cache_dir: see text.encode.
    text_columns: which columns make up an item's text; empty for all of them.

  Raises UserError for a bad matrix, an unknown column, or files without a table.
  """
  if table is None:
    if paths:
      raise UserError(
        f"{next(iter(paths.values()))}: its rows follow an item table, which is missing; "
        "give the table (RecBole: NAME.item; table source: items=FILE)."
      )
    return {}
  if not (rows >= 0).any():
    raise UserError(
      f"{table.path}: none of the items that have interactions is in this table; "
      "check that both files use the same item ids."
    )
  if (rows < 0).any():
    logging.info("%s: %d items have interactions but no row.", table.path, (rows < 0).sum())
  features = {}
  for modality in modalities:
    if modality in paths:
      values = read_matrix(paths[modality], len(table.item_ids), table.path)
      features[modality] = take_rows(values, rows, paths[modality])
    elif modality == "text" and table.columns:
      texts = table.texts(rows, text_columns or tuple(table.columns))
      features[modality] = text.encode_features(texts, text_model, cache_dir)
  return features

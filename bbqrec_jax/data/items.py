"""A table of items: ids and text columns, a row per item."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from bbqrec_jax.data.interactions import check_id
from bbqrec_jax.errors import UserError

# Titles are kept in a fixed-width array, which one long title would blow up.
TITLE_LENGTH = 120


@dataclasses.dataclass(frozen=True)
class ItemTable:
  """Items in the order of their file, which is also the order of feature matrices' rows.

  Attributes:
    path: the file, for messages.
    item_ids: [R] distinct ids.
    columns: text column -> [R] texts, "" where an item has none.
  """

  path: str
  item_ids: list[str]
  columns: dict[str, list[str]]

  def titles(self, rows: np.ndarray) -> np.ndarray:
    """[I] str, the column `title` (or the first whose name holds "title" or "name") of `rows`.

    Args:
      rows: [I] int64, rows of this table; -1 gives "".
    """
    names = sorted(self.columns, key=lambda name: name != "title")  # `title` itself comes first.
    column = next((n for n in names if "title" in n or "name" in n), None)
    if column is None:
      return np.full(len(rows), "")
    texts = self.columns[column]
    return np.array([texts[row][:TITLE_LENGTH] if row >= 0 else "" for row in rows])

  def texts(self, rows: np.ndarray, text_columns: Sequence[str]) -> list[str]:
    """[I] str: the columns' texts joined by spaces, "" where all are empty or the row is -1.

    Raises UserError if a column does not exist.
    """
    for name in text_columns:
      if name not in self.columns:
        have = ", ".join(self.columns) or "none"
        raise UserError(f"{self.path}: no text column {name!r}; the text columns are: {have}.")
    columns = [self.columns[name] for name in text_columns]
    return [
      " ".join(filter(None, (column[row].strip() for column in columns))) if row >= 0 else ""
      for row in rows
    ]


class ItemTableBuilder:
  """Collects an ItemTable row by row and refuses an item that comes twice."""

  def __init__(self, path: str, columns: Sequence[str]):
    self._path = path
    self._lines: dict[str, int] = {}  # Item id -> the line it stands on.
    self._columns: dict[str, list[str]] = {name: [] for name in columns}

  def add(self, line: int, item_id: str, texts: Sequence[str]):
    """Raises UserError if it is no id, or has a row already."""
    check_id(item_id, "item_id", f"{self._path}:{line}")
    first = self._lines.setdefault(item_id, line)
    if first != line:
      raise UserError(
        f"{self._path}:{line}: item {item_id!r} has a row already, at line {first}; "
        "keep one row for each item."
      )
    for column, text in zip(self._columns.values(), texts, strict=True):
      column.append(text)

  def build(self) -> ItemTable:
    return ItemTable(self._path, list(self._lines), self._columns)

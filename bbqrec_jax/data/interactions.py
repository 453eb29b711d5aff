"""From a log of interactions to the users' item sequences: k-core filter, order, numbering."""

import array
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bbqrec_jax.errors import UserError

# One item to learn from, one to validate with, one to test with.
MIN_SEQUENCE = 3

# Ids are kept in arrays of fixed width, which one long id would blow up.
ID_LENGTH = 512


class Log(NamedTuple):
  """Interactions in the order of their file; users and items are numbered by first appearance."""

  user_ids: list[str]
  item_ids: list[str]
  users: np.ndarray  # [X] int32, index into user_ids.
  items: np.ndarray  # [X] int32, index into item_ids.
  times: np.ndarray  # [X] float64, any unit.


class LogBuilder:
  """Collects a Log row by row in 16 bytes a row, beside one string for each distinct id."""

  def __init__(self):
    self._user_codes: dict[str, int] = {}
    self._item_codes: dict[str, int] = {}
    self._users = array.array("i")
    self._items = array.array("i")
    self._times = array.array("d")

  def add(self, user_id: str, item_id: str, time: float):
    self._users.append(self._user_codes.setdefault(user_id, len(self._user_codes)))
    self._items.append(self._item_codes.setdefault(item_id, len(self._item_codes)))
    self._times.append(time)

  def build(self) -> Log:
    return Log(
      user_ids=list(self._user_codes),
      item_ids=list(self._item_codes),
      users=np.array(self._users, np.int32),
      items=np.array(self._items, np.int32),
      times=np.array(self._times, np.float64),
    )


def check_id(value, name: str, where: str) -> str:
  """An id as it stands; raises UserError, starting with `where` (file:line), if it cannot be one.

  Args:
    name: of its column or field.
  """
  if not isinstance(value, str):
    raise UserError(f"{where}: {name} must be text, got {value!r}.")
  if not value:
    raise UserError(f"{where}: {name} is empty.")
  if len(value) > ID_LENGTH:
    raise UserError(f"{where}: {name} has {len(value):,} characters; {ID_LENGTH} are the most.")
  if "\0" in value:  # NumPy would take "a" and "a\0" for one.
    raise UserError(f"{where}: {name} {value!r} holds a NUL character.")
  return value


def parse_time(value, where: str) -> float:
  """A time as a finite number; raises UserError that starts with `where` (file:line) otherwise."""
  try:
    time = math.nan if isinstance(value, bool) else float(value)
  except (TypeError, ValueError, OverflowError):
    time = math.nan
  if not math.isfinite(time):
    raise UserError(f"{where}: timestamp must be a number, got {value!r}.")
  return time


class Sequences(NamedTuple):
  """What the filter keeps, ready for a Dataset, and where each item came from."""

  user_ids: np.ndarray  # [U] str.
  item_ids: np.ndarray  # [I] str.
  items: np.ndarray  # [X] int32 in [0, I).
  offsets: np.ndarray  # [U + 1] int64.
  rows: np.ndarray  # [I] int64, the item's row in the item table; -1 where the table has none.


def k_core(users: np.ndarray, items: np.ndarray, min_user: int, min_item: int) -> np.ndarray:
  """Which interactions stay once every remaining user and item has enough of them.

  Filtering is repeated until nothing more falls, so the result is the largest such set and does
  not depend on whether users or items go first. Repeated (user, item) pairs count as often as
  they occur.

  Args:
    users, items: [X] int32 codes.
    min_user, min_item: fewest interactions of a user and of an item that stays.

  Returns:
    [X] bool.
  """
  keep = np.ones(len(users), bool)
  while True:
    user_counts = np.bincount(users[keep], minlength=users.max(initial=-1) + 1)
    item_counts = np.bincount(items[keep], minlength=items.max(initial=-1) + 1)
    kept = keep & (user_counts[users] >= min_user) & (item_counts[items] >= min_item)
    if np.array_equal(kept, keep):
      return keep
    keep = kept


def make_sequences(
  log: Log, name: str, min_interactions: int, table_ids: Sequence[str] = ()
) -> Sequences:
  """Filters, sorts and numbers a log.

  A user's items are sorted by time; TIES KEEP THE ORDER OF THE FILE (the sort is stable), which
  matters where times are whole days. Users are numbered by first appearance among the rows that
  stay; items by their row in the item table, and those the table lacks, behind, by first
  appearance.

  Args:
    name: what the data are called in an error.
    min_interactions: k of the k-core; users need at least three whatever it says.
    table_ids: distinct item ids in the order of the item table's rows.

  Raises UserError if nothing is left.
  """
  keep = k_core(log.users, log.items, max(min_interactions, MIN_SEQUENCE), min_interactions)
  if not keep.any():
    raise UserError(
      f"{name}: none of the {len(keep):,} interactions is left after the {min_interactions}-core "
      f"filter (users need at least {max(min_interactions, MIN_SEQUENCE)}); "
      "lower min_interactions or bring more data."
    )
  users, items, times = log.users[keep], log.items[keep], log.times[keep]
  user_codes = _by_first_appearance(users)  # [U], new number -> code in the log.
  item_codes = _by_first_appearance(items)  # [I]
  row_of = {item_id: row for row, item_id in enumerate(table_ids)}
  rows = np.array([row_of.get(log.item_ids[code], -1) for code in item_codes], np.int64)
  # Stable, so that items outside the table keep the order of their first appearance.
  order = np.argsort(np.where(rows < 0, len(table_ids), rows), kind="stable")
  item_codes, rows = item_codes[order], rows[order]

  users = _inverse(user_codes, len(log.user_ids))[users]
  items = _inverse(item_codes, len(log.item_ids))[items]
  by_user_and_time = np.lexsort((times, users))  # Stable.
  lengths = np.bincount(users, minlength=len(user_codes))
  return Sequences(
    user_ids=np.array([log.user_ids[code] for code in user_codes]),
    item_ids=np.array([log.item_ids[code] for code in item_codes]),
    items=items[by_user_and_time].astype(np.int32),
    offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
    rows=rows,
  )


def _by_first_appearance(codes: np.ndarray) -> np.ndarray:
  """The distinct codes, in the order in which they first occur."""
  distinct, first = np.unique(codes, return_index=True)
  return distinct[np.argsort(first)]


def _inverse(codes: np.ndarray, size: int) -> np.ndarray:
  """[size] int64: the position of each code in `codes`; codes that are not there are unused."""
  inverse = np.zeros(size, np.int64)
  inverse[codes] = np.arange(len(codes))
  return inverse

"""What callers of the Python API hand over, checked with one sentence each."""

import sys
from collections.abc import Container, Mapping
from typing import Any

from bbqrec_jax.data.interactions import check_id
from bbqrec_jax.errors import UserError
from bbqrec_jax.rules import Whole


def check_whole(name: str, value: Any, least: int) -> None:
  """Raises UserError unless the argument of this name is a whole number from `least`."""
  # More than there are is no slip: sys.maxsize asks for everything.
  if not Whole(least, sys.maxsize).allows(value):
    raise UserError(f"{name}={value!r} must be a whole number from {least}.")


def histories(given: Any) -> list[list[str]]:
  """Histories of item ids as lists; the ids need not be of the catalogue.

  Raises UserError for a flat list, the characters of whose ids would be taken for ids, and for an
  id that is no text: it would be unknown, silently.
  """
  shape = "item ids; histories are a list of lists, one for each user"
  found = []
  for n, history in enumerate(_entries(given, "histories", "histories, each a list of item ids")):
    history = _entries(history, f"histories[{n}]", shape)
    for m, item in enumerate(history):
      if not isinstance(item, str):
        raise UserError(
          f"histories[{n}][{m}]={item!r} must be text: item ids are strings, as in the data."
        )
    found.append(history)
  return found


def new_items(item_ids: Any, titles: Any, known: Container[str]) -> tuple[list[str], list[str]]:
  """Ids and titles of items that are to be added, n each.

  Args:
    titles: None, or one for each item.
    known: ids that there are already.

  Raises UserError for what can be no id or no title, and for an id that is known or comes twice.
  """
  item_ids = _entries(item_ids, "item_ids", "item ids")
  item_ids = [str(check_id(item, "item_id", f"item_ids[{n}]")) for n, item in enumerate(item_ids)]
  there = [item for item in item_ids if item in known]
  if there or len(set(item_ids)) < len(item_ids):
    raise UserError(f"Items must be new and distinct; already in the catalogue: {there[:5]}.")
  if titles is None:
    return item_ids, [""] * len(item_ids)
  titles = _entries(titles, "titles", "text, one for each item")
  for n, title in enumerate(titles):
    if not isinstance(title, str):
      raise UserError(f'titles[{n}]={title!r} must be text; give "" where there is none.')
  if len(titles) != len(item_ids):
    raise UserError(f"{len(titles)} titles were given for {len(item_ids)} items.")
  return item_ids, titles


def _entries(values: Any, name: str, entries: str) -> list:
  """A list, tuple, array or the like as a list; raises UserError for anything else.

  Args:
    entries: what it is a list of.
  """
  try:
    if isinstance(values, str | bytes | Mapping | set | frozenset):  # Iterable, but not as a list.
      raise TypeError
    return list(values)
  except TypeError:
    raise UserError(f"{name}={values!r} must be a list of {entries}.") from None

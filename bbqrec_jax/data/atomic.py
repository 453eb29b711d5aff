"""RecBole's atomic files: NAME.inter and NAME.item, with .npy features beside them.

Tab-separated text whose header gives `field:type` for each column, type being one of token,
token_seq, float and float_seq (https://recbole.io/docs/user_guide/data/atomic_files.html).
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from bbqrec_jax.data import cache, text
from bbqrec_jax.data.assemble import assemble
from bbqrec_jax.data.dataset import MODALITIES, Dataset
from bbqrec_jax.data.interactions import Log, LogBuilder, check_id, parse_time
from bbqrec_jax.data.items import ItemTable, ItemTableBuilder
from bbqrec_jax.data.lines import check_distinct, read_lines
from bbqrec_jax.errors import UserError

TYPES = ("token", "token_seq", "float", "float_seq")
TEXT_TYPES = ("token", "token_seq")


def load(
  *,
  root: str | None,
  name: str | None,
  features: Mapping[str, str | None] | None = None,
  modalities: Sequence[str] = MODALITIES,
  min_interactions: int = 5,
  text_model: str = text.DEFAULT_MODEL,
  text_columns: Sequence[str] = (),
  cache_dir: str = cache.DEFAULT_DIR,
) -> Dataset:
  """Reads root/name.inter and, if it exists, root/name.item.

  The fields user_id, item_id and timestamp are needed; others are tolerated. See
  interactions.make_sequences for the filter, the order of ties and the numbering.

  Args:
    root: the folder; ~ is expanded.
    features: modality -> .npy file, [rows of name.item, F]; a zero row is an absent item.
    modalities: which modalities to load.
    min_interactions: k of the k-core.
    text_model, text_columns: without features["text"], these columns of name.item (empty: all of
      type token or token_seq) become vectors by this model.
    cache_dir: where processed data are kept.

  Raises UserError for anything wrong with the files.
  """
  if root is None:
    raise UserError(
      "data.root is not set: give the folder that holds NAME.inter (--config.data.root=FOLDER)."
    )
  if name is None:
    raise UserError("data.name is not set: give the NAME of NAME.inter (--config.data.name=NAME).")
  folder = os.path.expanduser(root)
  item = os.path.join(folder, f"{name}.item")
  return assemble(
    source="atomic",
    name=name,
    interactions=os.path.join(folder, f"{name}.inter"),
    items=item if os.path.lexists(item) else None,  # A link to nowhere is a mistake.
    features=features,
    modalities=modalities,
    min_interactions=min_interactions,
    text_model=text_model,
    text_columns=text_columns,
    cache_dir=cache_dir,
    read_interactions_fn=read_interactions,
    read_items_fn=read_items,
  )


def read_interactions(path: str) -> Log:
  """Reads a .inter file; raises UserError, with file and line, where it is malformed."""
  header, rows = _read_table(path)
  user, item, time = (header.index_of(name) for name in ("user_id", "item_id", "timestamp"))
  log = LogBuilder()
  for number, fields in rows:
    where = f"{path}:{number}"
    log.add(
      check_id(fields[user], "user_id", where),
      check_id(fields[item], "item_id", where),
      parse_time(fields[time], where),
    )
  return log.build()


def read_items(path: str) -> ItemTable:
  """Reads a .item file: ids, and the columns of type token or token_seq as text."""
  header, rows = _read_table(path)
  item = header.index_of("item_id")
  columns = [
    i for i, kind in enumerate(header.types) if kind in TEXT_TYPES and header.names[i] != "item_id"
  ]
  table = ItemTableBuilder(path, [header.names[i] for i in columns])
  for number, fields in rows:
    table.add(number, fields[item], [fields[i] for i in columns])
  return table.build()


class _Header(NamedTuple):
  path: str
  names: list[str]
  types: list[str]

  def index_of(self, name: str) -> int:
    if name not in self.names:
      raise UserError(
        f"{self.path}:1: no field {name!r} in the header, which has {', '.join(self.names)}."
      )
    return self.names.index(name)


def _read_table(path: str) -> tuple[_Header, Iterator[tuple[int, list[str]]]]:
  """The header, and (line number, fields) for each line after it."""
  lines = read_lines(path)
  _, first = next(lines, (1, ""))
  header = [field.partition(":") for field in first.split("\t")]
  if not all(name and kind in TYPES for name, _, kind in header):
    raise UserError(
      f"{path}:1: wrong header {first[:80]!r}; expected tab-separated field:type, "
      f"type one of {', '.join(TYPES)}."
    )
  check_distinct([name for name, _, _ in header], f"{path}:1")

  def rows() -> Iterator[tuple[int, list[str]]]:
    for number, line in lines:
      fields = line.split("\t")
      if len(fields) != len(header):
        raise UserError(
          f"{path}:{number}: {len(fields)} tab-separated fields where the header has {len(header)}."
        )
      yield number, fields

  return _Header(path, [name for name, _, _ in header], [kind for _, _, kind in header]), rows()

"""Tables, CSV or Parquet where pyarrow is installed: interactions and items in, results out."""

import csv
import os
from collections.abc import Iterator, Mapping, Sequence

from bbqrec_jax import paths
from bbqrec_jax.data import cache, text
from bbqrec_jax.data.assemble import assemble
from bbqrec_jax.data.dataset import MODALITIES, Dataset
from bbqrec_jax.data.interactions import Log, LogBuilder, check_id, parse_time
from bbqrec_jax.data.items import ItemTable, ItemTableBuilder
from bbqrec_jax.data.lines import check_distinct, check_file
from bbqrec_jax.errors import UserError

INTERACTION_COLUMNS = ("user_id", "item_id", "timestamp")
_IDS = ("user_id", "item_id")


def load(
  *,
  interactions: str | None,
  items: str | None = None,
  features: Mapping[str, str | None] | None = None,
  modalities: Sequence[str] = MODALITIES,
  min_interactions: int = 5,
  text_model: str = text.DEFAULT_MODEL,
  text_columns: Sequence[str] = (),
  cache_dir: str = cache.DEFAULT_DIR,
) -> Dataset:
  """Reads a table of interactions and, if given, one of items.

  See interactions.make_sequences for the filter, the order of ties and the numbering. The
  dataset is named after the interactions' file.

  Args:
    interactions: .csv or .parquet with columns user_id, item_id and timestamp (a number, or a
      Parquet time or date); ~ is expanded.
    items: .csv or .parquet with a column item_id; every other column of text can become vectors.
    features: modality -> .npy file, [rows of items, F]; a zero row is an absent item.
    modalities: which modalities to load.
    min_interactions: k of the k-core.
    text_model, text_columns: without features["text"], these columns of `items` (empty: all of
      them) become vectors by this model.
    cache_dir: where processed data are kept.

  Raises UserError for anything wrong with the files.
  """
  if interactions is None:
    raise UserError(
      "data.interactions is not set: give a .csv or .parquet with the columns "
      f"{', '.join(INTERACTION_COLUMNS)} (--config.data.interactions=FILE)."
    )
  return assemble(
    source="table",
    name=os.path.splitext(os.path.basename(interactions))[0],
    interactions=interactions,
    items=items,
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
  """Reads user_id, item_id and timestamp; raises UserError, with the line, where one is bad."""
  _, rows = _read_table(path, INTERACTION_COLUMNS)
  log = LogBuilder()
  for number, (user, item, time) in rows:
    where = f"{path}:{number}"
    log.add(
      check_id(_text(user), "user_id", where),
      check_id(_text(item), "item_id", where),
      parse_time(time, where),
    )
  return log.build()


def read_items(path: str) -> ItemTable:
  """Reads a table of items; every column but item_id is taken as text, "" where it is empty."""
  names, rows = _read_table(path, ("item_id",), all_columns=True)
  table = ItemTableBuilder(path, names[1:])
  for number, (item, *texts) in rows:
    table.add(number, _text(item), list(map(_text, texts)))
  return table.build()


def check_writable(path: str) -> None:
  """Raises UserError where write(path, ...) would fail: its kind, its folder, a missing pyarrow."""
  if not path.endswith((".csv", ".parquet")):
    raise UserError(f"{path}: unknown kind of table; give a .csv or .parquet file.")
  if path.endswith(".parquet"):
    _import_pyarrow(path)
  paths.check_writable(path)


def write(path: str, columns: Mapping[str, Sequence]) -> None:
  """Writes columns of one length as a .csv or .parquet file, whole or not at all.

  Raises UserError where check_writable(path) does.
  """
  check_writable(path)
  temporary = f"{path}.tmp"
  try:
    if path.endswith(".parquet"):
      pa, pq = _import_pyarrow(path)
      pq.write_table(pa.table(dict(columns)), temporary)
    else:
      with open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    os.replace(temporary, path)
  finally:
    if os.path.exists(temporary):
      os.remove(temporary)


def _text(value) -> str:
  """A cell as text; Parquet has numbers, and None for what is missing."""
  return "" if value is None else str(value)


def _read_table(
  path: str, needed: Sequence[str], all_columns: bool = False
) -> tuple[list[str], Iterator[tuple[int, tuple]]]:
  """Column names, and (line or row number from 1, values in that order) for each row.

  Args:
    needed: columns that must exist; they come first.
    all_columns: whether the others follow.
  """
  path = check_file(path)
  if path.endswith(".csv"):
    have, rows = _read_csv(path, needed)
  elif path.endswith(".parquet"):
    have, rows = _read_parquet(path, needed, all_columns)
  else:
    raise UserError(f"{path}: unknown kind of table; expected a .csv or .parquet file.")
  check_distinct([name for name in have if all_columns or name in needed], path)
  names = list(needed) + [name for name in have if all_columns and name not in needed]
  index = [have.index(name) for name in names]
  return names, ((number, tuple(row[i] for i in index)) for number, row in rows)


def _check_needed(names: Sequence[str], needed: Sequence[str], path: str) -> None:
  for name in needed:
    if name not in names:
      raise UserError(f"{path}: no column {name!r}; the columns are {', '.join(names) or 'none'}.")


def _read_csv(
  path: str, needed: Sequence[str]
) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
  csv.field_size_limit(2**31 - 1)  # The default, 128 KiB, is less than some descriptions.

  def read() -> Iterator[tuple[int, list[str]]]:
    number = 0
    try:
      with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        for row in reader:
          number = reader.line_num
          if row:  # The csv module gives [] for a blank line.
            yield number, row
    except UnicodeDecodeError as error:  # Text is decoded ahead of the rows.
      raise UserError(
        f"{path}:{_first_undecodable(path)}: the text is not UTF-8; convert the file to UTF-8."
      ) from error
    except csv.Error as error:
      raise UserError(f"{path}:{number + 1}: the row is not CSV ({error}).") from error
    except OSError as error:
      raise UserError(f"{path}: cannot be read ({error.strerror or error}).") from error

  lines = read()
  _, header = next(lines, (1, []))
  if not header:
    raise UserError(f"{path}: the file is empty; its first line must name the columns.")
  _check_needed(header, needed, path)

  def rows() -> Iterator[tuple[int, list[str]]]:
    for number, row in lines:
      if len(row) != len(header):
        raise UserError(f"{path}:{number}: {len(row)} fields where the header has {len(header)}.")
      yield number, row

  return header, rows()


def _first_undecodable(path: str) -> int:
  """The number, from 1, of the first line that is not UTF-8; 0 if all are by now."""
  with open(path, "rb") as file:
    for number, line in enumerate(file, start=1):
      try:
        line.decode()
      except UnicodeDecodeError:
        return number
  return 0


def _read_parquet(
  path: str, needed: Sequence[str], all_columns: bool
) -> tuple[list[str], Iterator[tuple[int, tuple]]]:
  pa, pq = _import_pyarrow(path)
  try:
    file = pq.ParquetFile(path)
  except (pa.ArrowException, OSError, ValueError) as error:
    raise UserError(f"{path}: not a whole Parquet file ({_first_line(error)}).") from error
  _check_needed(file.schema_arrow.names, needed, path)
  have = [name for name in file.schema_arrow.names if all_columns or name in needed]
  for field in file.schema_arrow:
    if field.name in needed and field.name in _IDS and not _is_id_type(pa, field.type):
      raise UserError(
        f"{path}: column {field.name!r} holds {field.type}, but ids are text or integers; "
        "convert the column."
      )

  def values(name: str, column) -> list:
    kind = column.type
    # Times become integers, whose order is all that counts. A date among texts is a text.
    if pa.types.is_timestamp(kind) or (name in needed and pa.types.is_date(kind)):
      column = column.cast(pa.int32() if pa.types.is_date32(kind) else pa.int64())
    return column.to_pylist()

  def rows() -> Iterator[tuple[int, tuple]]:
    number = 0
    try:
      for batch in file.iter_batches(columns=have):
        for row in zip(*map(values, have, batch.columns)):
          number += 1
          yield number, row
    except (pa.ArrowException, OSError, ValueError) as error:
      reason = _first_line(error)
      raise UserError(f"{path}: damaged after row {number} ({reason}).") from error

  return have, rows()


def _is_id_type(pa, kind) -> bool:
  """Whether str() of a column's values gives ids: of a float it would be "7.0", or "nan"."""
  if pa.types.is_dictionary(kind):
    kind = kind.value_type
  of_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
  # A column of nulls alone has no type; its rows are refused one by one.
  return of_text or pa.types.is_integer(kind) or pa.types.is_null(kind)


def _first_line(error: Exception) -> str:
  return (str(error).splitlines() or [type(error).__name__])[0]


def _import_pyarrow(path: str):
  """pyarrow and pyarrow.parquet, an extra, for Parquet alone."""
  try:
    import pyarrow as pa
    import pyarrow.parquet as pq
  except ImportError as error:
    raise UserError(
      f"{path}: Parquet needs pyarrow; install it (pip install '.[table]' in the clone), "
      "or give a .csv file."
    ) from error
  return pa, pq

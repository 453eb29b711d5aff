import sys

import numpy as np
import pytest

from bbqrec_jax.data import table
from bbqrec_jax.errors import UserError

USERS = [7] * 3 + [11] * 4
ITEMS = ["a", "b", "c", "c", "a", "b", "b"]
TIMES = [3, 2, 1, 5, 5, 4, 9]
TITLES = {"c": 'A "quoted", long\ntitle', "b": "", "a": "Apple"}


@pytest.fixture
def root(tmp_path):
  rows = ["item_id,user_id,rating,timestamp"]  # In another order, with a column more.
  rows += [f"{i},{u},5,{t}" for u, i, t in zip(USERS, ITEMS, TIMES)]
  (tmp_path / "log.csv").write_text("\r\n".join(rows) + "\r\n")
  quoted = [f'{i},"{t.replace(chr(34), chr(34) * 2)}"' for i, t in TITLES.items()]
  (tmp_path / "items.csv").write_text("\n".join(["item_id,title", *quoted]))
  np.save(tmp_path / "text.npy", np.arange(1, 7).reshape(3, 2))
  return tmp_path


def load(root, kind, **changes):
  kwargs = dict(features={"text": str(root / "text.npy")}, min_interactions=2)
  kwargs |= dict(interactions=str(root / f"log.{kind}"), items=str(root / f"items.{kind}"))
  return table.load(cache_dir=str(root / "cache"), **kwargs | changes)


def check(dataset):
  assert dataset.name == "log"
  assert dataset.user_ids.tolist() == ["7", "11"]
  assert dataset.item_ids.tolist() == ["c", "b", "a"]
  assert dataset.item_ids[dataset.items].tolist() == list("cba") + list("bcab")
  assert dataset.titles.tolist() == list(TITLES.values())
  np.testing.assert_array_equal(dataset.features["text"].values, [[1, 2], [3, 4], [5, 6]])


def test_csv(root):
  check(load(root, "csv"))


@pytest.mark.parametrize("kind", ["int64", "timestamp[ms]", "date32", "date64"])
def test_parquet(root, kind):
  pa = pytest.importorskip("pyarrow")
  import pyarrow.parquet as pq

  days = kind == "date64"  # In milliseconds, of whole days.
  times = pa.array([time * 86_400_000 if days else time for time in TIMES], kind)
  items = pa.array(ITEMS).dictionary_encode()
  log = pa.table({"timestamp": times, "user_id": USERS, "item_id": items})
  pq.write_table(log, root / "log.parquet", row_group_size=3)
  titles = [title or None for title in TITLES.values()]  # A null is no text.
  pq.write_table(pa.table({"title": titles, "item_id": list(TITLES)}), root / "items.parquet")
  check(load(root, "parquet"))
  path = root / "log.parquet"
  path.write_bytes(path.read_bytes()[:-7])
  with pytest.raises(UserError, match=r"log\.parquet: not a whole Parquet file"):
    load(root, "parquet")


def test_parquet_without_pyarrow(root, monkeypatch):
  (root / "log.parquet").write_bytes(b"")
  monkeypatch.setitem(sys.modules, "pyarrow", None)
  with pytest.raises(UserError, match=r"install '\.\[table\]' in the clone.*or give a \.csv"):
    load(root, "parquet", items=None, features=None)


@pytest.mark.parametrize(
  "old, new, message",
  [
    ("timestamp", "when", r"log\.csv: no column 'timestamp'"),
    ("b,7,5,2", "b,7,2", r"log\.csv:3: 3 fields where the header has 4"),
    ("b,7,5,2", "b,7,5,2024-01-01", r"log\.csv:3: timestamp .* '2024-01-01'"),
    ("b,7,5,2", "b,,5,2", r"log\.csv:3: user_id is empty"),
    ("b,7,5,2", 'b,7,"5,2', r"log\.csv:3: the row is not CSV \(unexpected end of data\)"),
  ],
)
def test_malformed_rows_are_named(root, old, new, message):
  path = root / "log.csv"
  path.write_text(path.read_text().replace(old, new, 1))
  with pytest.raises(UserError, match=message):
    load(root, "csv")


def test_an_item_with_two_rows(root):
  with open(root / "items.csv", "a") as file:
    file.write("\nb,again\n")
  with pytest.raises(UserError, match=r"items\.csv:6: item 'b' has a row already, at line 4"):
    load(root, "csv")


def test_other_kinds_and_unset_paths(root):
  (root / "log.xlsx").write_bytes(b"")
  with pytest.raises(UserError, match=r"log\.xlsx: unknown kind of table"):
    load(root, "xlsx", items=None, features=None)
  with pytest.raises(UserError, match=r"gone\.csv: no such file"):
    table.read_interactions(str(root / "gone.csv"))
  with pytest.raises(UserError, match=r"data\.interactions is not set"):
    table.load(interactions=None)


def test_a_table_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
  for path, message in {
    tmp_path / "out.xlsx": r"out\.xlsx: unknown kind of table",
    tmp_path / "gone" / "out.csv": r"out\.csv: there is no folder .*gone that can be written",
  }.items():
    with pytest.raises(UserError, match=message):
      table.check_writable(str(path))
  monkeypatch.setitem(sys.modules, "pyarrow", None)
  with pytest.raises(UserError, match=r"out\.parquet: Parquet needs pyarrow"):
    table.check_writable(str(tmp_path / "out.parquet"))
  with pytest.raises(ValueError, match="shorter"):  # Columns of unequal length.
    table.write(str(tmp_path / "out.csv"), dict(a=[1, 2], b=[1]))
  assert not (tmp_path / "out.csv").exists()

"""Malformed tables and matrices: each is refused in one sentence, or fine for a reason."""

import functools
import io
import pathlib
import pickle
import zipfile

import numpy as np
import pytest

from tests import malformed
from tests.malformed_files import (
  ANY,
  FEATURES,
  GOOD,
  ITEMS,
  fill,
  gz,
  lines,
  load_atomic,
  load_atomic_texts,
  load_table,
  load_table_texts,
  npy,
  put,
  swap,
)

pytestmark = pytest.mark.usefixtures("counted")


@pytest.fixture
def root(tmp_path, monkeypatch):
  return fill(tmp_path / "data", monkeypatch)


INTERACTIONS = [  # (edit of shop.inter, what is said)
  (put(""), "shop.inter:1: wrong header ''"),
  (put("\n\r\n\n"), "wrong header"),
  (put(b"\0" * 5_000), "wrong header"),
  (put(np.random.default_rng(0).bytes(5_000)), "not UTF-8"),
  (lambda content: content.decode().encode("utf-16"), "shop.inter: the text is not UTF-8"),
  (lambda content: content.decode().encode("utf-16-le"), "wrong header"),
  (lambda content: content.decode().encode("utf-32"), ANY),
  (lambda content: gz(content), "not UTF-8"),
  (lambda content: content.splitlines(keepends=True)[0], "none of the 0 interactions"),
  (lambda content: content.replace(b"\t", b","), "wrong header"),
  (lambda content: content.replace(b"\t", b" "), "wrong header"),
  (lambda content: content.split(b"\n", 1)[1], "wrong header 'u0"),
  (swap("user_id:token", "user_id"), "wrong header"),
  (swap("user_id:token", "user_id:text"), "wrong header"),
  (swap("user_id:token", ":token"), "wrong header"),
  (swap("user_id:token", "User_ID:token"), "no field 'user_id'"),
  (swap("item_id:token", "user_id:token"), "'user_id' is there 2 times"),
  (swap("item_id:token", "item:token"), "no field 'item_id'"),
  (swap("timestamp:float", "time:float"), "no field 'timestamp'"),
  (swap("timestamp:float", "timestamp:float\t"), "wrong header"),
  (swap("u0\tb\t1", "u0\tb"), "shop.inter:3: 2 tab-separated fields"),
  (swap("u0\tb\t1", "u0\tb\t1\t2"), "shop.inter:3: 4 tab-separated fields"),
  (swap("u0\tb\t1", "u0 b 1"), "shop.inter:3: 1 tab-separated fields"),
  (swap("u0\tb\t1", "\tb\t1"), "shop.inter:3: user_id is empty"),
  (swap("u0\tb\t1", "u0\t\t1"), "shop.inter:3: item_id is empty"),
  (swap("u0\tb\t1", "u0\0\tb\t1"), "shop.inter:3: user_id 'u0\\x00' holds a NUL"),
  (swap("u0\tb\t1", "u" * 100_000 + "\tb\t1"), "shop.inter:3: user_id has 100,000 characters"),
  (swap("u0\tb\t1", b"u\xff\tb\t1"), "is not UTF-8"),
  (swap("u0\tb\t1", "é\tb\t1".encode("latin-1")), "not UTF-8"),
  (swap("u0\tb\t1", b"u\xed\xa0\x80\tb\t1"), "not UTF-8"),  # A surrogate.
  *(
    (swap("u0\tb\t1", f"u0\tb\t{time}"), "shop.inter:3: timestamp must be a number")
    for time in ("", "noon", "2014-01-01", "nan", "NaN", "inf", "-Infinity", "1e400", "-1e400")
  ),
  *(
    (swap("u0\tb\t1", f"u0\tb\t{time}"), "shop.inter:3: timestamp must be a number")
    for time in ("0x10", "1,5", "1 2", "--1", "1e", "None", "True", "1\0", "9" * 400)
  ),
]


@pytest.mark.parametrize("case", range(len(INTERACTIONS)))
def test_interactions(root, case):
  edit, expected = INTERACTIONS[case]
  path = root / "shop.inter"
  path.write_bytes(edit(path.read_bytes()))
  said = malformed.outcome(lambda: load_atomic(root), root)
  assert said is not None and expected in said


ITEM_TABLES = [  # (source, edit of its item table, what is said)
  ("shop.item", put(""), "wrong header"),
  ("shop.item", swap("item_id:token", "id:token"), "no field 'item_id'"),
  ("shop.item", swap("title:token_seq", "item_id:token"), "'item_id' is there 2 times"),
  ("shop.item", swap("price:float", "title:token"), "'title' is there 2 times"),
  ("shop.item", swap("\nb\t", "\na\t"), "item 'a' has a row already, at line 2"),
  ("shop.item", swap("\nb\t", "\n\t"), "shop.item:3: item_id is empty"),
  ("shop.item", swap("\nb\t", "\nb\0\t"), "holds a NUL"),
  ("shop.item", swap("\nb\t", "\n" + "b" * 513 + "\t"), "513 characters"),
  ("shop.item", swap("Title b", "Title\tb"), "shop.item:3: 4 tab-separated"),
  ("shop.item", swap("Title b", b"\x80"), "not UTF-8"),
  ("shop.item", lambda content: content.split(b"\n")[0], "none of the items"),
  ("shop.item", lambda content: content + b"e\tTitle e\t1\n", "4 rows, but"),
  ("items.csv", put(""), "items.csv: the file is empty"),
  ("items.csv", swap("item_id", "item"), "no column 'item_id'"),
  ("items.csv", swap("title", "item_id"), "'item_id' is there 2 times"),
  ("items.csv", swap("brand", "title"), "'title' is there 2 times"),
  ("items.csv", swap("\nb,", "\na,"), "has a row already"),
  ("items.csv", swap("\nb,", "\n,"), "items.csv:3: item_id is empty"),
  ("items.csv", swap('"Title, b"', "Title, b"), "items.csv:3: 4 fields"),
  ("items.csv", swap('"Title, b"', '"Title, b'), "not CSV"),
  ("items.csv", swap('"Title, b"', '"Title" b"'), "items.csv:3: the row is not CSV"),
  ("items.csv", swap("Title, b", "Très".encode("latin-1")), "items.csv:3: the text is not UTF-8"),
  ("items.csv", lambda content: content.replace(b",", b";"), "no column 'item_id'"),
]


@pytest.mark.parametrize("case", range(len(ITEM_TABLES)))
def test_item_tables(root, case):
  name, edit, expected = ITEM_TABLES[case]
  (root / name).write_bytes(edit((root / name).read_bytes()))
  load = load_atomic if name == "shop.item" else load_table
  said = malformed.outcome(lambda: load(root), root)
  assert said is not None and expected in said


CSV = [  # (edit of log.csv, what is said)
  (put(""), "log.csv: the file is empty"),
  (put("\n\n"), "log.csv: the file is empty"),
  (put("user_id,item_id,timestamp"), "none of the 0 interactions"),
  (lambda content: content.decode().encode("utf-16"), "log.csv:1: the text is not UTF-8"),
  (lambda content: gz(content), "log.csv:1: the text is not UTF-8"),
  (lambda content: content + b"u0,a,9\n" * 1_000 + b"\xe9,a,9", "log.csv:1014: the text is not"),
  (lambda content: content.replace(b",", b";"), "no column 'user_id'"),
  (swap("user_id", "item_id"), "no column 'user_id'"),
  (swap("timestamp", "timestamp,user_id"), "'user_id' is there 2 times"),
  (swap("u0,b,1", "u0,b"), "log.csv:3: 2 fields"),
  (swap("u0,b,1", "u0,b,1,"), "log.csv:3: 4 fields"),
  (swap("u0,b,1", ",b,1"), "log.csv:3: user_id is empty"),
  (swap("u0,b,1", "u0,,1"), "log.csv:3: item_id is empty"),
  (swap("u0,b,1", "u0,b,"), "log.csv:3: timestamp"),
  (swap("u0,b,1", "u0,b,nan"), "log.csv:3: timestamp"),
  (swap("u0,b,1", "u0,b,1e999"), "log.csv:3: timestamp"),
  (swap("u0,b,1", "u0\0,b,1"), "NUL"),
  (swap("u0,b,1", f"{'u' * 300_000},b,1"), "300,000 characters"),
  (swap("u0,b,1", '"u0,b,1'), "not CSV"),
  (swap("u0,b,1", '"u0"x,b,1'), "log.csv:3: the row is not CSV"),
  (swap("u0,b,1", 'u0,"b\n\n,1'), "log.csv:3: the row is not CSV"),
]


@pytest.mark.parametrize("case", range(len(CSV)))
def test_csv(root, case):
  edit, expected = CSV[case]
  path = root / "log.csv"
  path.write_bytes(edit(path.read_bytes()))
  said = malformed.outcome(lambda: load_table(root), root)
  assert said is not None and expected in said


def parquet_cases():
  """(columns of the log, what is said)."""
  pa = pytest.importorskip("pyarrow")
  users, items, times = ["u"] * 4, list(ITEMS), [1, 2, 3, 4]
  good = dict(user_id=users, item_id=items, timestamp=times)
  return [
    (good | dict(user_id=[*users[:3], None]), "log.parquet:4: user_id is empty"),
    (good | dict(item_id=[*items[:3], ""]), "item_id is empty"),
    (good | dict(timestamp=[1.0, 2.0, float("nan"), 4.0]), "log.parquet:3: timestamp"),
    (good | dict(timestamp=[1, 2, None, 4]), "log.parquet:3: timestamp"),
    (good | dict(timestamp=["1", "2", "three", "4"]), "log.parquet:3: timestamp"),
    (good | dict(timestamp=[True, False, True, True]), "timestamp must be a number, got True"),
    (good | dict(timestamp=pa.array(times, pa.time32("s"))), "timestamp must be a number"),
    (good | dict(timestamp=pa.array([[t] for t in times])), "timestamp must be a number"),
    (good | dict(user_id=pa.array([b"u"] * 4)), "column 'user_id' holds binary"),
    (good | dict(user_id=[["u"]] * 4), "column 'user_id' holds list<"),
    (good | dict(item_id=[0.0, 1.0, None, 3.0]), "column 'item_id' holds double"),
    (good | dict(item_id=[True, False, True, False]), "column 'item_id' holds bool"),
    (good | dict(item_id=[None] * 4), "log.parquet:1: item_id is empty"),
    (dict(user=users), "no column 'user_id'; the columns are user."),
    (dict(user_id=users, timestamp=times), "no column 'item_id'"),
    ({}, "no column 'user_id'; the columns are none."),
    ({name: [] for name in good}, "none of the 0 interactions"),
  ]


def write_parquet(path: pathlib.Path, columns: dict) -> None:
  import pyarrow as pa
  import pyarrow.parquet as pq

  pq.write_table(pa.table(columns), path)


@pytest.mark.parametrize("case", range(17))
def test_parquet_columns(root, case):
  columns, expected = parquet_cases()[case]
  write_parquet(root / "log.parquet", columns)
  call = functools.partial(load_table, root, interactions=str(root / "log.parquet"))
  said = malformed.outcome(call, root)
  assert said is not None and expected in said


@pytest.mark.parametrize("case", ["empty", "csv", "head", "half", "tail", "foot"])
def test_parquet_files_that_are_not_whole(root, case):
  pytest.importorskip("pyarrow")
  path = root / "log.parquet"
  write_parquet(path, dict(user_id=["u"] * 4, item_id=list(ITEMS), timestamp=[1, 2, 3, 4]))
  whole = path.read_bytes()
  damaged = dict(
    empty=b"",
    csv=GOOD["log.csv"],
    head=whole[:4],
    half=whole[: len(whole) // 2],
    tail=whole[:-1],
    foot=whole[:-200] + bytes(192) + whole[-8:],
  )
  path.write_bytes(damaged[case])
  said = malformed.outcome(lambda: load_table(root, interactions=str(path)), root)
  assert said is not None and "not a whole Parquet file" in said


def _zip(name: str = "x.npy") -> bytes:
  file = io.BytesIO()
  with zipfile.ZipFile(file, "w") as archive:
    archive.writestr(name, npy(FEATURES))
  return file.getvalue()


def _header(text: str) -> bytes:
  """A .npy file with this header."""
  return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + bytes(64)


NOT_WHOLE, NOT_REAL = "not a whole .npy file", "one matrix of real numbers"
MATRICES = [  # (content of text.npy, what is said)
  (b"", NOT_WHOLE),
  (b"no array", NOT_WHOLE),
  (pickle.dumps(FEATURES), NOT_WHOLE),
  (pickle.dumps({"text": [1.0]}), NOT_WHOLE),
  (gz(npy(FEATURES)), NOT_WHOLE),
  (npy(np.array([[None, 1]] * 4, object)), NOT_WHOLE),
  *((npy(FEATURES)[:size], NOT_WHOLE) for size in (1, 6, 8, 9, 40, 127, 128, 131)),
  (npy(FEATURES)[:-1], NOT_WHOLE),
  (_zip(), NOT_REAL),
  (_zip()[:40], NOT_WHOLE),
  (b"PK\x03\x04", NOT_WHOLE),
  (b"PK\x05\x06" + bytes(18), NOT_REAL),  # An archive of nothing.
  (_header("{"), NOT_WHOLE),
  (_header("[]"), NOT_WHOLE),
  (_header("(" * 60_000), NOT_WHOLE),
  (_header("{'descr': '<f4', 'fortran_order': False, 'shape': (4,)"), NOT_WHOLE),
  (_header("{'descr': '<f4', 'fortran_order': False, 'shape': (10**9, 10**9)}"), NOT_WHOLE),
  (_header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({2**62}, 4)}}"), NOT_WHOLE),
  (_header("{'descr': '<f4', 'fortran_order': False, 'shape': (-4, 2)}"), ANY),
  (_header("{'descr': '<f4', 'fortran_order': 3, 'shape': (4, 2)}"), NOT_WHOLE),
  (_header("{'descr': 'nonsense', 'fortran_order': False, 'shape': (4, 2)}"), NOT_WHOLE),
  (npy(FEATURES[0]), NOT_REAL),
  (npy(FEATURES[..., None]), NOT_REAL),
  (npy(np.float32(1.0)), NOT_REAL),
  (npy(FEATURES.astype(complex)), NOT_REAL),
  (npy(FEATURES > 0), NOT_REAL),
  (npy(FEATURES.astype(str)), NOT_REAL),
  (npy(FEATURES.astype("M8[s]")), NOT_REAL),
  (npy(np.zeros((4, 2), [("a", "f4")])), NOT_REAL),
  (npy(np.zeros((4, 0))), NOT_REAL),
  (npy(np.zeros((0, 2))), "0 rows, but"),
  (npy(FEATURES[:3]), "3 rows, but"),
  (npy(FEATURES.repeat(2, axis=0)), "8 rows, but"),
  (npy(FEATURES.T), "2 rows, but"),
  (npy(np.where(FEATURES == 4.0, np.nan, FEATURES)), "row 1 (counted from 0) holds NaN"),
  (npy(np.where(FEATURES == 8.0, np.inf, FEATURES)), "row 3 (counted from 0) holds NaN"),
  (npy(np.where(FEATURES == 8.0, -np.inf, FEATURES)), "row 3"),
  (npy(FEATURES * 0), "text.npy: every row of an item with interactions is zero"),
  (npy(FEATURES.astype(np.float64) * 1e300), "row 0 (counted from 0) holds NaN or infinity"),
  (npy(FEATURES.astype(np.longdouble) * np.longdouble("1e1000")), "row 0"),
]


@pytest.mark.parametrize("case", range(len(MATRICES)))
def test_feature_matrices(root, case):
  content, expected = MATRICES[case]
  (root / "text.npy").write_bytes(content)
  said = malformed.outcome(lambda: load_atomic(root), root)
  assert said is not None and expected in said


@pytest.mark.parametrize("array", [
  np.asfortranarray(FEATURES), FEATURES.astype(">f4"), FEATURES.astype(np.float16),
  FEATURES.astype(np.float64), FEATURES.astype(np.int8), FEATURES.astype(np.uint64),
], ids=["fortran", "big-endian", "half", "double", "bytes", "unsigned"])  # fmt: skip
def test_matrices_of_other_types_and_orders_are_the_same_features(root, array):
  (root / "text.npy").write_bytes(npy(array))
  assert malformed.outcome(lambda: load_atomic(root)) is None
  np.testing.assert_array_equal(load_atomic(root).features["text"].values, FEATURES)


@pytest.mark.parametrize("load", [load_atomic_texts, load_table_texts])
def test_items_without_any_text_have_no_text(root, load):
  rows = [f"{item}\t\t1" for item in ITEMS]
  (root / "shop.item").write_bytes(lines("item_id:token\ttitle:token_seq\tprice:float", *rows))
  (root / "items.csv").write_bytes(lines("item_id,title", *(f"{item}," for item in ITEMS)))
  assert malformed.outcome(lambda: load(root)) is None
  assert load(root).features == {}

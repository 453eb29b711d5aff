"""Malformed files of every data source: each is refused in one sentence, or fine for a reason."""

import functools
import gzip
import io
import json
import os
import pathlib
import pickle
import zipfile
from collections.abc import Callable

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from bbqrec_jax.data import amazon, atomic, synthetic, table, text
from tests import malformed

pytestmark = pytest.mark.usefixtures("counted")

ITEMS = ("a", "b", "c", "d")
USERS = ("u0", "u1", "u2")
DEEP = "[" * 100_000  # Deeper than any parser of Python's goes.


def npy(array, **kwargs) -> bytes:
  file = io.BytesIO()
  np.save(file, array, **kwargs)
  return file.getvalue()


def gz(content: str | bytes) -> bytes:
  return gzip.compress(content if isinstance(content, bytes) else content.encode(), mtime=0)


def _lines(*lines: str) -> bytes:
  return "".join(f"{line}\n" for line in lines).encode()


def _reviews() -> list[str]:
  return [
    json.dumps(dict(reviewerID=user, asin=item, unixReviewTime=time))
    for user in USERS
    for time, item in enumerate(ITEMS)
  ]


FEATURES = np.arange(1.0, 9.0, dtype=np.float32).reshape(4, 2)
REVIEWS, META = "reviews_Beauty_5.json.gz", "meta_Beauty.json.gz"
IMAGES = "image_features_Beauty.b"
GOOD = {  # Every file of every source.
  "shop.inter": _lines(
    "user_id:token\titem_id:token\ttimestamp:float",
    *(f"{user}\t{item}\t{time}" for user in USERS for time, item in enumerate(ITEMS)),
  ),
  "shop.item": _lines(
    "item_id:token\ttitle:token_seq\tprice:float", *(f"{item}\tTitle {item}\t1.5" for item in ITEMS)
  ),
  "text.npy": npy(FEATURES),
  "log.csv": _lines(
    "user_id,item_id,timestamp",
    *(f"{user},{item},{time}" for user in USERS for time, item in enumerate(ITEMS)),
  ),
  "items.csv": _lines("item_id,title,brand", *(f'{item},"Title, {item}",x' for item in ITEMS)),
  REVIEWS: gz(_lines(*_reviews())),
  META: gz(_lines(*(repr(dict(asin=item, title=f"Title {item}")) for item in ITEMS))),
  IMAGES: b"".join(
    f"{item:0<10}".encode() + np.full(amazon.IMAGE_DIM, 0.5, "<f4").tobytes() for item in ITEMS
  ),
}


def load_atomic(root: pathlib.Path, /, **changes):
  kwargs = dict(features={"text": str(root / "text.npy")}, modalities=("text",), min_interactions=2)
  kwargs |= dict(root=str(root), name="shop", cache_dir=str(root / "cache"))
  return atomic.load(**kwargs | changes)


def load_atomic_texts(root: pathlib.Path):
  """The text columns, not the matrix, are the features."""
  return load_atomic(root, features=None)


def load_table(root: pathlib.Path, /, **changes):
  kwargs = dict(features={"text": str(root / "text.npy")}, modalities=("text",), min_interactions=2)
  kwargs |= dict(interactions=str(root / "log.csv"), items=str(root / "items.csv"))
  return table.load(**kwargs | dict(cache_dir=str(root / "cache")) | changes)


def load_table_texts(root: pathlib.Path):
  return load_table(root, features=None)


def load_amazon(root: pathlib.Path, /, **changes):
  kwargs = dict(subset="beauty", min_interactions=2, cache_dir=str(root / "cache"), download=False)
  return amazon.load(**kwargs | dict(root=str(root)) | changes)


@pytest.fixture
def root(tmp_path, monkeypatch):
  monkeypatch.setattr(text, "encode", lambda texts, *_: np.ones((len(texts), 3), np.float32))
  return fill(tmp_path / "data")


def fill(folder: pathlib.Path) -> pathlib.Path:
  folder.mkdir()
  for name, content in GOOD.items():
    (folder / name).write_bytes(content)
  return folder


def put(content: str | bytes) -> Callable[[bytes], bytes]:
  """An edit that leaves this in place of the file."""
  return lambda _: content if isinstance(content, bytes) else content.encode()


def swap(old: str, new: str | bytes) -> Callable[[bytes], bytes]:
  """An edit of the first occurrence."""

  def edit(content: bytes) -> bytes:
    assert old.encode() in content
    return content.replace(old.encode(), new if isinstance(new, bytes) else new.encode(), 1)

  return edit


def inside_gz(edit: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
  return lambda content: gz(edit(gzip.decompress(content)))


ANY = ""  # Where several things are wrong, which of them is told does not matter.

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
  (root / "shop.item").write_bytes(_lines("item_id:token\ttitle:token_seq\tprice:float", *rows))
  (root / "items.csv").write_bytes(_lines("item_id,title", *(f"{item}," for item in ITEMS)))
  assert malformed.outcome(lambda: load(root)) is None
  assert load(root).features == {}


def _as_folder(path: pathlib.Path):
  path.mkdir()


def _as_loop(path: pathlib.Path):
  path.symlink_to(path.name)


def _as_dangling_link(path: pathlib.Path):
  path.symlink_to("nowhere")


def _as_pipe(path: pathlib.Path):
  os.mkfifo(path)  # Whoever opens it waits for ever.


def _as_unreadable(path: pathlib.Path):
  path.write_bytes(GOOD[path.name])
  path.chmod(0)


LOADERS = {
  "shop.inter": load_atomic,
  "shop.item": load_atomic,
  "text.npy": load_atomic,
  "log.csv": load_table,
  "items.csv": load_table,
  REVIEWS: load_amazon,
  META: load_amazon,
  IMAGES: load_amazon,
}
KINDS = dict(
  folder=_as_folder, loop=_as_loop, dangling=_as_dangling_link, pipe=_as_pipe,
  unreadable=_as_unreadable, missing=lambda path: None,
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LOADERS)
def test_things_that_are_no_files(root, name, kind):
  if kind == "unreadable" and os.getuid() == 0:
    pytest.skip("Root may read everything.")
  (root / name).unlink()
  KINDS[kind](root / name)
  said = malformed.outcome(lambda: LOADERS[name](root), root)
  if (name, kind) == ("shop.item", "missing"):  # It is optional, but then nothing may need it.
    assert "its rows follow an item table, which is missing" in said
  else:
    assert said is not None and name in said


JSON_LINES = [  # (a line of the reviews, what is said)
  *((line, "expected a JSON object") for line in ("{", "[]", '"x"', "5", "null", "{}", DEEP, "x")),
  *((line, "expected a JSON object") for line in ("{'asin': 'b'}", '{"asin": "b"} {"asin": "b"}')),
  ('{"reviewerID": "u0", "asin": "b"}', "expected a JSON object"),
  ('{"reviewerID": "u0", "asin": "b", "unixReviewTime": 1,}', "expected a JSON object"),
  ('{"reviewerID": "u0", "asin": "b", "unixReviewTime": %s}' % ("9" * 5_000), ANY),
  *(
    (f'{{"reviewerID": {user}, "asin": "b", "unixReviewTime": 1}}', "gz:2: reviewerID")
    for user in ("null", "5", "1.5", "true", "[]", '["u0"]', "{}", '""', '"\\u0000"')
  ),
  *(
    (f'{{"reviewerID": "u0", "asin": {item}, "unixReviewTime": 1}}', "gz:2: asin")
    for item in ("null", "5", "false", '["b"]', '{"b": 1}', '""', '"%s"' % ("b" * 600))
  ),
  *(
    (f'{{"reviewerID": "u0", "asin": "b", "unixReviewTime": {time}}}', "gz:2: timestamp")
    for time in ("null", '"noon"', "NaN", "Infinity", "1e999", "9" * 400, "true", "[1]", "{}")
  ),
]


@pytest.mark.parametrize("case", range(len(JSON_LINES)))
def test_lines_of_reviews(root, case):
  line, expected = JSON_LINES[case]
  lines = _reviews()
  lines[1] = line
  (root / REVIEWS).write_bytes(gz(_lines(*lines)))
  assert_refused_by_amazon(root, expected)


LITERALS = [  # A line of the metadata.
  "{", "[]", "'x'", "5", "None", "{}", "{'title': 'x'}", "{'asin': ['a']}", "{'asin': {}}",
  "{'asin': open('x')}", "{'asin': 'a', 'title': 1 +}", "{'asin': 'a', 'x': " + "(" * 5_000,
  "{'asin': 'a', 'x': " + "-" * 50_000 + "1}", "{'asin': 'a', 'x': '\0'", "{'a', 'asin'}",
  "{'asin': 'a', 'title': lambda: 0}", '{"asin": "a", "title": null}', "{'asin': 'a'} {}",
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(LITERALS)))
def test_lines_of_metadata(root, case):
  (root / META).write_bytes(gz(_lines(LITERALS[case])))
  assert_refused_by_amazon(root, "gz:1: expected a Python dictionary")


def assert_refused_by_amazon(root: pathlib.Path, expected: str) -> None:
  said = malformed.outcome(lambda: load_amazon(root), root)
  assert said is not None and expected in said


def test_gz_cut_anywhere_or_followed_by_something(root):
  for name in (REVIEWS, META):
    whole = GOOD[name]
    # From its tenth byte on the header is whole; the last eight are checksum and length.
    for size in range(1, len(whole)):
      (root / name).write_bytes(whole[:size])
      said = malformed.outcome(lambda: load_amazon(root))
      assert said is not None and f"{name}: damaged or truncated .gz" in said, size
    (root / name).write_bytes(whole)
  for content in (whole + b"x", whole[:-8] + bytes(8), whole[:-4] + bytes(4), b"\x1f\x8b" * 9):
    (root / META).write_bytes(content)
    assert_refused_by_amazon(root, "damaged or truncated .gz")


RAW = [  # (file, content, what is said)
  (REVIEWS, b"", "none of the 0 interactions"),
  (REVIEWS, _lines(*_reviews()), "damaged or truncated .gz"),
  (REVIEWS, gz(gz(_lines(*_reviews()))), "not UTF-8"),
  (REVIEWS, gz("\n".join(_reviews()).encode("utf-16")), "not UTF-8"),
  (REVIEWS, gz(b"\xff" * 100), "not UTF-8"),
  (REVIEWS, gz(b"\0" * 100_000), "expected a JSON object"),
  (META, gz(b"\xff"), "not UTF-8"),
  (META, gz(b"\0" * 1_000), "expected a Python dictionary"),
  (IMAGES, GOOD[IMAGES][:-1], "ends within a record"),
  (IMAGES, GOOD[IMAGES][:5], "ends within a record"),
]


@pytest.mark.parametrize("case", range(len(RAW)))
def test_raw_amazon_files(root, case):
  name, content, expected = RAW[case]
  (root / name).write_bytes(content)
  assert_refused_by_amazon(root, expected)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_image_features_that_are_not_finite(root, value):
  asin = "b"
  record = np.zeros(1, [("asin", "S10"), ("values", "<f4", (amazon.IMAGE_DIM,))])
  record["asin"], record["values"][0, -1] = asin, value
  (root / IMAGES).write_bytes(record.tobytes())
  assert_refused_by_amazon(root, "the features of b hold NaN")


@pytest.mark.parametrize(
  "content",
  malformed.numbered(
    [b"[]", b"5", b"null", b"{", b"\xff\xfe", b"", DEEP.encode(), b'{"x": 1}', b'{"x": {}}']
  ),
)
def test_records_of_checksums(root, content):
  (root / "checksums.json").write_bytes(content)
  said = malformed.outcome(lambda: load_amazon(root), root)
  assert said is not None and "checksums.json" in said and "delete it" in said


ARGUMENTS = [  # (call with a folder, what is said)
  (lambda root: load_atomic(root, root=None), "not set"),
  (lambda root: load_atomic(root, name=None), "not set"),
  (lambda root: load_atomic(root, name="../data/other"), "other.inter: no such file"),
  (lambda root: load_atomic(root, root=str(root / "shop.inter")), "no such file"),
  (lambda root: load_atomic(root, root="\0"), "no such file"),
  (lambda root: load_atomic(root, name="x" * 5_000), "no such file"),
  (lambda root: load_atomic(root, modalities=("texts",)), "unknown modality 'texts'"),
  (lambda root: load_atomic(root, features={"sound": "x.npy"}), "unknown modality 'sound'"),
  (lambda root: load_atomic(root, features={"text": ""}), "no such file"),
  (lambda root: load_atomic(root, min_interactions=10**9), "none of the 12 interactions"),
  (lambda root: load_atomic(root, features=None, text_columns=("price",)), "no text column"),
  (lambda root: load_table(root, interactions=None), "not set"),
  (lambda root: load_table(root, interactions=str(root)), "a folder stands where a file"),
  (lambda root: load_table(root, interactions=str(root / "text.npy")), "unknown kind of table"),
  (lambda root: load_table(root, items=str(root / "log.csv")), "has a row already"),
  (lambda root: load_table(root, items=None), "item table, which is missing"),
  (lambda root: load_amazon(root, root=None), "not set"),
  (lambda root: load_amazon(root, subset=""), "unknown"),
  (lambda root: load_amazon(root, subset="Beauty\n"), "unknown"),
  (lambda root: load_amazon(root, subset="../Beauty"), "unknown"),
  (lambda root: load_amazon(root, subset="Books"), "no such file"),
  (lambda root: load_amazon(root, root=str(root / "log.csv")), "no such file"),
  (lambda root: load_amazon(root, root=str(root / "log.csv"), download=True), "cannot be made"),
  (lambda _: synthetic.load(num_items=20), "mean_length=11.0 must be"),
  (lambda _: synthetic.load(mean_length=2.0), "mean_length=2.0 must be"),
  (lambda _: synthetic.load(mean_length=float("nan")), "mean_length=nan must be"),
  (lambda _: synthetic.load(mean_length=float("inf")), "mean_length=inf must be"),
  (lambda _: synthetic.load(min_interactions=100), "must be at least 100"),
  (lambda _: synthetic.load(num_users=3, min_interactions=5), "none of the"),
  (lambda _: synthetic.load(num_users=10**6, num_items=10**6), "every pair is held in memory"),
  (lambda _: synthetic.load(modalities=("video",)), "unknown modality 'video'"),
]


@pytest.mark.parametrize("case", range(len(ARGUMENTS)))
def test_arguments(root, case):
  call, expected = ARGUMENTS[case]
  said = malformed.outcome(lambda: call(root), root)
  assert said is not None and expected in said


def damage(draw, content: bytes) -> bytes:
  """Bytes with one thing wrong: cut, overwritten, inserted, doubled or left out somewhere."""
  at = draw(st.integers(0, len(content)))
  size = draw(st.integers(0, 20))
  new = draw(st.binary(min_size=1, max_size=8) | st.sampled_from([b"\0", b"\n", b"\t", b"\xff"]))
  kinds = dict(
    cut=content[:at],
    overwrite=content[:at] + new + content[at + len(new) :],
    insert=content[:at] + new + content[at:],
    double=content[: at + size] + content[at:],
    leave_out=content[:at] + content[at + size :],
  )
  return kinds[draw(st.sampled_from(sorted(kinds)))]


FUZZED = [
  ("shop.inter", load_atomic), ("shop.item", load_atomic_texts), ("text.npy", load_atomic),
  ("log.csv", load_table), ("items.csv", load_table_texts), (REVIEWS, load_amazon),
  (META, load_amazon), ("inside " + REVIEWS, load_amazon), ("inside " + META, load_amazon),
]  # fmt: skip


@pytest.mark.parametrize(("name", "load"), FUZZED, ids=[name for name, _ in FUZZED])
def test_damaged_bytes(tmp_path_factory, monkeypatch, name, load):
  monkeypatch.setattr(text, "encode", lambda texts, *_: np.ones((len(texts), 3), np.float32))
  root = fill(tmp_path_factory.mktemp("fuzz") / "data")
  packed = name.startswith("inside ")
  path = root / name.removeprefix("inside ")
  good = path.read_bytes()

  @hypothesis.settings(max_examples=60, deadline=None, derandomize=True, database=None)
  @hypothesis.given(st.data())
  def check(data):
    draw = lambda strategy: data.draw(strategy)
    content = inside_gz(functools.partial(damage, draw))(good) if packed else damage(draw, good)
    path.write_bytes(content)
    (root / "checksums.json").unlink(missing_ok=True)
    said = malformed.outcome(lambda: load(root))
    assert said is None or path.name in said or said.startswith("beauty: none of the")

  check()

"""Malformed raw files of the Amazon release: each is refused in one sentence."""

import pathlib

import numpy as np
import pytest

from bbqrec_jax.data import amazon
from tests import malformed
from tests.malformed import DEEP
from tests.malformed_files import (
  ANY,
  GOOD,
  IMAGES,
  META,
  REVIEWS,
  fill,
  gz,
  lines,
  load_amazon,
  reviews,
)

pytestmark = pytest.mark.usefixtures("counted")


@pytest.fixture
def root(tmp_path, monkeypatch):
  return fill(tmp_path / "data", monkeypatch)


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
  texts = reviews()
  texts[1] = line
  (root / REVIEWS).write_bytes(gz(lines(*texts)))
  assert_refused_by_amazon(root, expected)


LITERALS = [  # A line of the metadata.
  "{", "[]", "'x'", "5", "None", "{}", "{'title': 'x'}", "{'asin': ['a']}", "{'asin': {}}",
  "{'asin': open('x')}", "{'asin': 'a', 'title': 1 +}", "{'asin': 'a', 'x': " + "(" * 5_000,
  "{'asin': 'a', 'x': " + "-" * 50_000 + "1}", "{'asin': 'a', 'x': '\0'", "{'a', 'asin'}",
  "{'asin': 'a', 'title': lambda: 0}", '{"asin": "a", "title": null}', "{'asin': 'a'} {}",
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(LITERALS)))
def test_lines_of_metadata(root, case):
  (root / META).write_bytes(gz(lines(LITERALS[case])))
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
  (REVIEWS, lines(*reviews()), "damaged or truncated .gz"),
  (REVIEWS, gz(gz(lines(*reviews()))), "not UTF-8"),
  (REVIEWS, gz("\n".join(reviews()).encode("utf-16")), "not UTF-8"),
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
    [
      b"[]",
      b"5",
      b"null",
      b"{",
      b"\xff\xfe",
      b"",
      DEEP.encode(),
      b'{"x": 1}',
      b'{"x": {}}',
    ]
  ),
)
def test_records_of_checksums(root, content):
  (root / "checksums.json").write_bytes(content)
  said = malformed.outcome(lambda: load_amazon(root), root)
  assert said is not None and "checksums.json" in said and "delete it" in said

import gzip
import json

import numpy as np
import pytest

from bbqrec_jax.data import amazon, text
from bbqrec_jax.errors import UserError

ASINS = ["B00000000A", "B00000000B", "B00000000C", "B00000000D"]
DAY = 86_400


def write_gz(path, lines):
  with gzip.open(path, "wt", encoding="utf-8") as file:
    file.writelines(line + "\n" for line in lines)


def write_images(path, asins, values):
  with open(path, "wb") as file:
    for asin, row in zip(asins, values, strict=True):
      file.write(asin.encode() + row.astype("<f4").tobytes())


@pytest.fixture
def root(tmp_path, monkeypatch):
  reviews = [
    dict(reviewerID=f"U{u}", asin=asin, overall=5.0, unixReviewTime=day * DAY)
    for u in range(3)
    for asin, day in zip(ASINS[:3] + ASINS[:1], (2, 2, 1, 3))
  ]
  write_gz(tmp_path / "reviews_Beauty_5.json.gz", map(json.dumps, reviews))
  products = [
    {"asin": ASINS[3], "title": "not bought"},
    {"asin": ASINS[1], "title": 'It\'s "b"', "related": {"also_bought": [ASINS[0]]}},
    {"description": "no title", "price": 3.5, "asin": ASINS[2], "categories": [["X", "Y"], ["Z"]]},
  ]
  write_gz(tmp_path / "meta_Beauty.json.gz", map(repr, products))
  # More records than a block holds, wanted ones at both ends.
  others = [f"X{n:09d}" for n in range(300)]
  images = np.random.default_rng(0).normal(size=(302, 4096)).astype(np.float32)
  asins = [ASINS[2], *others, ASINS[0]]
  write_images(tmp_path / "image_features_Beauty.b", asins, images)
  monkeypatch.setattr(
    text, "encode", lambda texts, *_: np.array([[len(t)] for t in texts], np.float32)
  )
  return tmp_path


def load(root, **changes):
  kwargs = dict(subset="beauty", min_interactions=2, cache_dir=str(root / "cache"), download=False)
  return amazon.load(root=str(root), **kwargs | changes)


def test_reviews_metadata_and_images(root):
  dataset = load(root)
  assert dataset.name == "beauty"
  assert dataset.item_ids.tolist() == ASINS[:3]
  for user in range(3):  # The tie on day 2 keeps the order of the file.
    assert dataset.sequence(user).tolist() == [2, 0, 1, 0]
  assert dataset.titles.tolist() == ["", 'It\'s "b"', ""]
  assert dataset.features["text"].values[:, 0].tolist() == [0, len('It\'s "b"'), len("no title")]
  assert dataset.features["text"].present.tolist() == [False, True, True]
  image = dataset.features["image"]
  assert image.present.tolist() == [True, False, True]
  expected = np.random.default_rng(0).normal(size=(302, 4096)).astype(np.float32)
  np.testing.assert_array_equal(image.values[[2, 0]], expected[[0, -1]])
  assert sorted(json.loads((root / "checksums.json").read_text())) == [
    "image_features_Beauty.b",
    "meta_Beauty.json.gz",
    "reviews_Beauty_5.json.gz",
  ]


def test_nested_fields_are_flattened(root):
  table = amazon.read_metadata(
    str(root / "meta_Beauty.json.gz"), {ASINS[2]: 0}, ("categories", "price", "brand")
  )
  assert table.columns == {"categories": ["X Y Z"], "price": ["3.5"], "brand": [""]}


def test_only_the_files_of_the_modalities_are_needed(root):
  (root / "image_features_Beauty.b").unlink()
  (root / "meta_Beauty.json.gz").unlink()
  assert load(root, modalities=()).features == {}
  with pytest.raises(UserError, match=r"image_features_Beauty\.b: no such file"):
    load(root, modalities=("image",))


@pytest.mark.parametrize("name", ["reviews_Beauty_5.json.gz", "meta_Beauty.json.gz"])
def test_a_truncated_gz(root, name):
  path = root / name
  path.write_bytes(path.read_bytes()[:-20])
  with pytest.raises(UserError, match=rf"{name}: damaged or truncated \.gz"):
    load(root)


def test_malformed_lines_are_named(root):
  path = root / "reviews_Beauty_5.json.gz"
  write_gz(path, ['{"reviewerID": "x", "asin": "y", "unixReviewTime": 1}', "{'asin': 'y'}"])
  with pytest.raises(UserError, match=r"reviews_Beauty_5\.json\.gz:2: expected a JSON object"):
    load(root)
  write_gz(path, ['{"reviewerID": "x", "asin": "y", "unixReviewTime": "noon"}'])
  with pytest.raises(UserError, match=r"gz:1: timestamp must be a number, got 'noon'"):
    load(root)


def test_malformed_metadata(root):
  write_gz(root / "meta_Beauty.json.gz", [f"{{'asin': '{ASINS[0]}', 'title': open('x')}}"])
  with pytest.raises(UserError, match=r"meta_Beauty\.json\.gz:1: expected a Python dictionary"):
    load(root)


def test_bad_images(root):
  path = root / "image_features_Beauty.b"
  path.write_bytes(path.read_bytes()[:-1])
  with pytest.raises(UserError, match="ends within a record"):
    load(root)
  write_images(path, ASINS[:1], np.full((1, 4096), np.nan))
  with pytest.raises(UserError, match=rf"features of {ASINS[0]} hold NaN"):
    load(root)


def test_missing_files_are_downloaded_or_said(root, tmp_path, monkeypatch):
  content = (root / "meta_Beauty.json.gz").read_bytes()
  (root / "meta_Beauty.json.gz").unlink()
  asked = []

  def fetch(urls, path):
    asked.extend(urls)
    with open(path, "wb") as file:
      file.write(content)

  monkeypatch.setattr(amazon, "fetch", fetch)
  load(root, download=True)
  assert asked == [f"{mirror}/categoryFiles/meta_Beauty.json.gz" for mirror in amazon.MIRRORS]


@pytest.mark.parametrize("subset", ["beuty", "../Beauty"])
def test_unknown_subsets(root, subset):
  with pytest.raises(UserError, match="unknown; expected one of beauty, sports"):
    load(root, subset=subset)


def test_unset_root():
  with pytest.raises(UserError, match=r"data\.root is not set"):
    amazon.load(subset="beauty", root=None)

import numpy as np
import pytest

from bbqrec_jax.data import atomic
from bbqrec_jax.errors import UserError

ITEMS = ["a", "b", "unused", "c"]
TEXTS = np.array([[1, 2, 3], [0, 0, 0], [7, 8, 9], [0.5, 0, -1]], np.float16)


def write(path, *lines):
  path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture
def root(tmp_path):
  rows = [f"u{u}\t{i}\t{t}\t4.5" for u in range(3) for t, i in enumerate(["c", "b", "a", "b"])]
  header = "user_id:token\titem_id:token\ttimestamp:float\trating:float"
  write(tmp_path / "shop.inter", header, *rows)
  titles = ['Ämber "one"\t1.0', "bronze\t2.0", "unused\t3.0", "\t4.0"]
  rows = [f"{item}\t{rest}" for item, rest in zip(ITEMS, titles)]
  write(tmp_path / "shop.item", "item_id:token\ttitle:token_seq\tprice:float", *rows)
  np.save(tmp_path / "text.npy", TEXTS)
  return tmp_path


def load(root, **changes):
  kwargs = dict(features={"text": str(root / "text.npy"), "image": None}, min_interactions=2)
  return atomic.load(root=str(root), name="shop", cache_dir=str(root / "cache"), **kwargs | changes)


def test_everything_comes_back(root):
  dataset = load(root)
  assert dataset.name == "shop"
  assert dataset.item_ids.tolist() == ["a", "b", "c"]  # In the order of the .item file.
  assert dataset.user_ids.tolist() == ["u0", "u1", "u2"]
  for user in range(3):
    assert dataset.item_ids[dataset.sequence(user)].tolist() == ["c", "b", "a", "b"]
  assert dataset.titles.tolist() == ['Ämber "one"', "bronze", ""]
  assert list(dataset.features) == ["text"]
  text = dataset.features["text"]
  assert text.values.dtype == np.float32
  np.testing.assert_array_equal(text.values, TEXTS[[0, 1, 3]].astype(np.float32))
  assert text.present.tolist() == [True, False, True]


def test_items_without_a_row_are_absent(root):
  with open(root / "shop.inter", "a", encoding="utf-8") as file:
    file.write("u0\tnew\t9\t1\nu1\tnew\t9\t1\n")
  dataset = load(root)
  assert dataset.item_ids.tolist() == ["a", "b", "c", "new"]
  assert not dataset.features["text"].present[3]
  assert dataset.titles[3] == ""


def test_an_item_file_is_not_needed_without_features(root):
  (root / "shop.item").unlink()
  dataset = load(root, features={})
  assert dataset.item_ids.tolist() == ["c", "b", "a"]  # First appearance.
  assert dataset.features == {}
  with pytest.raises(UserError, match=r"text.npy: its rows follow an item table, which is missing"):
    load(root)


def test_a_modality_that_is_not_asked_for_is_not_read(root):
  assert load(root, modalities=("image",), features={"text": "nowhere.npy"}).features == {}


def replace(root, name, old, new):
  text = (root / name).read_text(encoding="utf-8")
  assert old in text
  (root / name).write_text(text.replace(old, new, 1), encoding="utf-8")


@pytest.mark.parametrize(
  "name, old, new, message",
  [
    ("shop.inter", "user_id:token", "user", r"shop.inter:1: wrong header"),
    ("shop.inter", "timestamp:", "time:", r"shop.inter:1: no field 'timestamp'"),
    ("shop.inter", "u0\tb\t1\t4.5", "u0\tb\t1", r"shop.inter:3: 3 tab-separated fields .* 4"),
    ("shop.inter", "u0\tb\t1\t", "u0\tb\tnoon\t", r"shop.inter:3: timestamp .* 'noon'"),
    ("shop.item", "unused", "b", r"shop.item:4: item 'b' has a row already, at line 3"),
    ("shop.item", "title:token_seq", "title:text", r"shop.item:1: wrong header"),
  ],
)
def test_malformed_rows_are_named(root, name, old, new, message):
  replace(root, name, old, new)
  with pytest.raises(UserError, match=message):
    load(root)


def test_missing_or_unset_paths(root):
  with pytest.raises(UserError, match=r"data\.root is not set"):
    atomic.load(root=None, name="shop")
  with pytest.raises(UserError, match=r"other\.inter: no such file"):
    atomic.load(root=str(root), name="other")
  with pytest.raises(UserError, match=r"gone\.npy: no such file"):
    load(root, features={"text": str(root / "gone.npy")})
  with pytest.raises(UserError, match="unknown modality 'video'"):
    load(root, modalities=("video",))


def test_item_ids_that_match_nothing(root):
  for item in ITEMS:
    replace(root, "shop.item", f"\n{item}\t", f"\nx{item}\t")
  with pytest.raises(UserError, match="none of the items that have interactions"):
    load(root)


def test_bytes_that_are_not_utf8(root):
  (root / "shop.inter").write_bytes((root / "shop.inter").read_bytes() + b"u\xff\ta\t1\t1\n")
  with pytest.raises(UserError, match="not UTF-8"):
    load(root)

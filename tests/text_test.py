import sys
import types

import numpy as np
import pytest

from bbqrec_jax.data import table, text
from bbqrec_jax.errors import UserError


class FakeModel:
  """Stands in for a sentence encoder: length and first letter of a text."""

  calls = 0

  def __init__(self, name):
    if name == "missing":
      raise OSError("no such model\nand a long story")

  def encode(self, texts, show_progress_bar):
    FakeModel.calls += 1
    return np.array([[len(t), ord(t[0])] for t in texts], np.float64)


@pytest.fixture(autouse=True)
def fake(monkeypatch):
  module = types.SimpleNamespace(SentenceTransformer=FakeModel)
  monkeypatch.setitem(sys.modules, "sentence_transformers", module)
  monkeypatch.setattr(FakeModel, "calls", 0)


def test_empty_texts_are_absent_and_vectors_are_cached(tmp_path):
  first = text.encode_features(["red", "", "green"], "model", str(tmp_path))
  np.testing.assert_array_equal(first.values, [[3, ord("r")], [0, 0], [5, ord("g")]])
  assert first.values.dtype == np.float32
  assert first.present.tolist() == [True, False, True]
  again = text.encode_features(["red", "", "green"], "model", str(tmp_path))
  np.testing.assert_array_equal(again.values, first.values)
  assert FakeModel.calls == 1
  text.encode(["red", "green"], "another", str(tmp_path))
  text.encode(["red", "grey"], "model", str(tmp_path))
  assert FakeModel.calls == 3


def test_a_damaged_vector_file_is_made_again(tmp_path):
  text.encode(["red"], "model", str(tmp_path))
  (path,) = (tmp_path / "text").iterdir()
  path.write_bytes(path.read_bytes()[:-3])
  np.testing.assert_array_equal(text.encode(["red"], "model", str(tmp_path)), [[3, ord("r")]])
  assert FakeModel.calls == 2


def test_a_local_model_that_changed_is_used_again(tmp_path):
  model = tmp_path / "model"
  model.mkdir()
  (model / "weights").write_text("1")
  text.encode(["red"], str(model), str(tmp_path))
  (model / "weights").write_text("2")
  text.encode(["red"], str(model), str(tmp_path))
  assert FakeModel.calls == 2


def test_without_the_library_both_ways_out_are_named(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "sentence_transformers", None)
  with pytest.raises(UserError, match=r"install '\.\[text\]'.*features\.text=FILE\.npy.*no_text"):
    text.encode(["red"], "model", str(tmp_path))


def test_a_model_that_cannot_be_loaded_is_named(tmp_path):
  with pytest.raises(UserError, match=r"text_model=missing: cannot be loaded \(no such model\)"):
    text.encode(["red"], "missing", str(tmp_path))


def test_columns_of_an_item_table_become_vectors(tmp_path):
  rows = [f"u,{item},{n}" for n, item in enumerate("abc")]
  (tmp_path / "log.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]))
  (tmp_path / "items.csv").write_text("item_id,title,color\na,Bag,red\nb,,\nc,,blue\n")

  def load(**kwargs):
    return table.load(
      interactions=str(tmp_path / "log.csv"),
      items=str(tmp_path / "items.csv"),
      min_interactions=1,
      cache_dir=str(tmp_path / "cache"),
      **kwargs,
    )

  assert load().features["text"].values.tolist() == [[7, ord("B")], [0, 0], [4, ord("b")]]
  only_title = load(text_columns=("title",)).features["text"]
  assert only_title.values.tolist() == [[3, ord("B")], [0, 0], [0, 0]]
  with pytest.raises(UserError, match="no text column 'brand'; the text columns are: title, color"):
    load(text_columns=("brand",))

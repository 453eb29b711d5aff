"""What stage one saves is what stage two loads."""

import numpy as np
import pytest

from bbqrec_jax.data import semantic_ids
from bbqrec_jax.errors import UserError

I, L, M, N, D = 5, 3, 2, 7, 4


def _ids():
  rng = np.random.default_rng(0)
  return semantic_ids.SemanticIds(
    codes=rng.integers(0, N, (I, L, M), np.int32),
    vectors=rng.normal(size=(I, M * D)).astype(np.float32),
    item_ids=np.array(["B00", "b", "0042", "é", "日本"]),
    titles=np.array(["", "Soap, 3 × 50 g", "", "x" * 70, "日本"]),
    popularity=np.array([0, 3, 1, 2**40, 5]),
    signals=np.array(["id", "text"]),
    codebooks=rng.normal(size=(1, L, N, D)).astype(np.float32),
  )


def test_saved_and_loaded_are_equal(tmp_path):
  ids = _ids()
  semantic_ids.save(tmp_path, ids)
  loaded = semantic_ids.load(tmp_path)
  for name, array in vars(ids).items():
    np.testing.assert_array_equal(getattr(loaded, name), array)
    assert getattr(loaded, name).dtype == array.dtype
  assert loaded.codebook_size == N


def test_saving_again_replaces_and_leaves_nothing_beside(tmp_path):
  semantic_ids.save(tmp_path, _ids())
  changed = semantic_ids.SemanticIds(**vars(_ids()) | dict(codes=np.zeros((I, L, M), np.int32)))
  semantic_ids.save(tmp_path, changed)
  assert not semantic_ids.load(tmp_path).codes.any()
  assert [path.name for path in tmp_path.iterdir()] == [semantic_ids.FILE_NAME]


def test_a_missing_file_says_what_to_do(tmp_path):
  with pytest.raises(UserError, match=r"semantic_ids\.npz does not exist; run the tokenizer"):
    semantic_ids.load(tmp_path)

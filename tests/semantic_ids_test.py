"""What stage one saves is what stage two loads."""

import collections

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


def test_running_numbers_make_semantic_ids_unique():
  codes = np.random.default_rng(0).integers(0, 3, (97, 2, 1))
  numbers = semantic_ids.running_numbers(codes)
  assert numbers.dtype == np.int32
  seen = collections.Counter()
  for item, number in zip(map(str, codes.tolist()), numbers):  # In order, group by group.
    assert number == seen[item]
    seen[item] += 1
  whole = np.concatenate([codes, numbers[:, None, None]], axis=1)
  assert len(np.unique(whole.reshape(97, -1), axis=0)) == 97
  # Of items that come later, the numbers go on.
  for split in (1, 40, 97):
    later = semantic_ids.running_numbers(codes[split:], codes[:split])
    np.testing.assert_array_equal(later, numbers[split:])


def _numbered(numbers) -> semantic_ids.SemanticIds:
  codes = np.concatenate([_ids().codes[:, :, :1], np.reshape(numbers, (I, 1, 1))], axis=1)
  one = dict(signals=np.array(["text"]), vectors=_ids().vectors[:, :D])
  return semantic_ids.SemanticIds(**vars(_ids()) | dict(codes=codes) | one)


def test_running_numbers_may_go_beyond_the_codebook(tmp_path):
  semantic_ids.save(tmp_path, _numbered([0, 4, 1, 2, 3]))
  ids = semantic_ids.load(tmp_path)
  assert ids.has_numbers and not _ids().has_numbers
  assert ids.codebook_size == N
  few = semantic_ids.SemanticIds(**vars(ids) | dict(codebooks=ids.codebooks[:, :, :3]))
  assert few.codebook_size == max(5, ids.codes.max() + 1)


@pytest.mark.parametrize("level", range(L + 1))
def test_a_code_beyond_its_level_is_damage(tmp_path, level):
  ids = _numbered([0, 1, 2, 3, 4])
  few = dict(codes=ids.codes % 3, codebooks=ids.codebooks[:, :, :3])  # Fewer codes than items.
  ids = semantic_ids.SemanticIds(**vars(ids) | few)
  ids.codes[2, level] = 3 if level < L else I
  semantic_ids.save(tmp_path, ids)
  with pytest.raises(UserError, match=r"holds no semantic IDs.*run the stage that made it again"):
    semantic_ids.load(tmp_path)


def test_a_missing_file_says_what_to_do(tmp_path):
  with pytest.raises(UserError, match=r"semantic_ids\.npz does not exist; run the tokenizer"):
    semantic_ids.load(tmp_path)

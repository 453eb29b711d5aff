import dataclasses

import numpy as np
import pytest

from bbqrec_jax.data import cache, synthetic


@pytest.fixture(scope="module")
def dataset():
  sizes = dict(num_users=31, num_items=23, text_dim=5, image_dim=7)
  return synthetic.load(**sizes, num_factors=3, mean_length=7.0, min_interactions=3)


def load(tmp_path, make_fn, **options):
  return cache.load_or_make(str(tmp_path), options, {"file": "sha"}, make_fn)


def forbidden():
  raise AssertionError("made again")


def assert_equal(left, right):
  assert left.fingerprint == right.fingerprint
  for name in ("user_ids", "item_ids", "items", "offsets", "titles"):
    np.testing.assert_array_equal(getattr(left, name), getattr(right, name))
    assert getattr(left, name).dtype == getattr(right, name).dtype
  assert list(left.features) == list(right.features)
  for modality in left.features:
    np.testing.assert_array_equal(left.features[modality].values, right.features[modality].values)
    np.testing.assert_array_equal(left.features[modality].present, right.features[modality].present)


def test_what_is_read_equals_what_was_made(tmp_path, dataset):
  load(tmp_path, lambda: dataset)
  assert_equal(load(tmp_path, forbidden), dataset)


def test_another_option_is_another_dataset(tmp_path, dataset):
  load(tmp_path, lambda: dataset, min_interactions=5)
  with pytest.raises(AssertionError, match="made again"):
    load(tmp_path, forbidden, min_interactions=6)


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_file_is_made_again(tmp_path, dataset, damage):
  load(tmp_path, lambda: dataset)
  (path,) = (tmp_path / "datasets").iterdir()
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes({"cut": content[: len(content) // 2], "flip": content, "empty": b""}[damage])
  assert_equal(load(tmp_path, lambda: dataset), dataset)
  assert_equal(load(tmp_path, forbidden), dataset)


def test_content_that_does_not_hash_as_recorded_is_made_again(tmp_path, dataset):
  wrong = dataclasses.replace(dataset, fingerprint="0" * 64)
  load(tmp_path, lambda: wrong)
  with pytest.raises(AssertionError, match="made again"):
    load(tmp_path, forbidden)


def test_a_folder_that_cannot_be_written_does_not_stop_the_run(tmp_path, dataset):
  (tmp_path / "datasets").write_text("a file where the folder should be")
  assert_equal(load(tmp_path, lambda: dataset), dataset)


def test_large_files_are_known_by_path_size_and_time(tmp_path, monkeypatch):
  path = tmp_path / "file"
  path.write_bytes(b"12345")
  small = cache.file_identity(str(path))
  assert small == cache.sha256(str(path))
  monkeypatch.setattr(cache, "HASHED_BYTES", 4)
  assert cache.file_identity(str(path)).startswith(f"{path}:5:")

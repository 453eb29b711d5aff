"""Item vectors: what is read is what was written, of the same items, or a sentence."""

import numpy as np
import pytest

from bbqrec_jax.data import item_vectors
from bbqrec_jax.errors import UserError

IDS = np.array(["a", "b", "c"])
VECTORS = np.arange(6, dtype=np.float32).reshape(3, 2)


def test_what_is_saved_is_loaded(tmp_path):
  item_vectors.save(tmp_path, IDS, VECTORS)
  np.testing.assert_array_equal(item_vectors.load(tmp_path, IDS), VECTORS)
  assert [path.name for path in tmp_path.iterdir()] == [item_vectors.FILE_NAME]


@pytest.mark.parametrize(
  ("ids", "vectors", "said"),
  [
    (IDS[::-1], VECTORS, "is of other items"),
    (IDS[:2], VECTORS[:2], "is of other items"),
    (IDS, VECTORS[:2], "is of other items"),
    (IDS, VECTORS.astype(int), "holds no vectors"),
    (IDS, VECTORS[0], "holds no vectors"),
    (IDS, VECTORS * np.nan, "holds no vectors"),
  ],
)
def test_what_does_not_fit_is_refused(tmp_path, ids, vectors, said):
  item_vectors.save(tmp_path, ids, vectors)
  with pytest.raises(UserError, match=said):
    item_vectors.load(tmp_path, IDS)


def test_a_missing_or_damaged_file_is_refused(tmp_path):
  with pytest.raises(UserError, match="run the ranker stage in this workdir first"):
    item_vectors.load(tmp_path, IDS)
  (tmp_path / item_vectors.FILE_NAME).write_bytes(b"PK")
  with pytest.raises(UserError, match="cannot be read"):
    item_vectors.load(tmp_path, IDS)

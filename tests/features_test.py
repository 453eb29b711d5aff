import numpy as np
import pytest

from bbqrec_jax.data import features
from bbqrec_jax.errors import UserError

ROWS = np.array([4, -1, 0])


def matrix(path, values):
  np.save(path, values)
  return features.read_matrix(str(path), 5, "shop.item")


def test_rows_are_taken_and_zero_rows_are_absent(tmp_path):
  values = np.arange(35, dtype=np.float16).reshape(5, 7)
  values[0] = 0
  taken = features.take_rows(matrix(tmp_path / "x.npy", values), ROWS, "x.npy")
  assert taken.values.dtype == np.float32
  np.testing.assert_array_equal(taken.values[0], values[4])
  np.testing.assert_array_equal(taken.values[1:], 0)
  assert taken.present.tolist() == [True, False, False]


@pytest.mark.parametrize(
  "values, message",
  [
    (np.ones((6, 2)), "6 rows, but shop.item has 5 items"),
    (np.ones(5), "one matrix of real numbers"),
    (np.ones((5, 2), complex), "one matrix of real numbers"),
    (np.array([[None], ["x"], [1], [2], [3]], object), "objects are refused"),
  ],
)
def test_matrices_of_another_kind_are_refused(tmp_path, values, message):
  with pytest.raises(UserError, match=rf"x\.npy: .*{message}"):
    matrix(tmp_path / "x.npy", values)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_values_that_are_not_finite_in_float32_are_refused(tmp_path, bad):
  values = np.ones((5, 3))
  values[4, 1] = bad
  with pytest.raises(UserError, match=r"x\.npy: row 4 .* NaN or infinity"):
    features.take_rows(matrix(tmp_path / "x.npy", values), ROWS, "x.npy")


def test_zeros_for_every_item_are_refused(tmp_path):
  values = np.zeros((5, 3))
  values[1] = 1.0  # Of an item that nobody has met.
  with pytest.raises(UserError, match=r"x\.npy: every row of an item .* is zero.*check the file"):
    features.take_rows(matrix(tmp_path / "x.npy", values), ROWS, "x.npy")


@pytest.mark.parametrize("content", [b"", b"no numpy", None])
def test_files_that_are_not_whole_are_refused(tmp_path, content):
  path = tmp_path / "x.npy"
  np.save(path, np.ones((5, 3)))
  path.write_bytes(path.read_bytes()[:-9] if content is None else content)
  with pytest.raises(UserError, match=r"not a whole \.npy file"):
    features.read_matrix(str(path), 5, "shop.item")

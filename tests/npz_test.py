import numpy as np
import pytest

from bbqrec_jax.data import npz
from bbqrec_jax.errors import UserError


def test_what_is_written_is_read_again_and_nothing_else_is_left(tmp_path):
  arrays = dict(codes=np.arange(6).reshape(2, 3), names=np.array(["a", "ü"]))
  npz.write(tmp_path / "x.npz", **arrays)
  assert [path.name for path in tmp_path.iterdir()] == ["x.npz"]
  read = npz.read(tmp_path / "x.npz", ("codes",), "again")
  for name, array in arrays.items():
    assert read[name].dtype == array.dtype
    np.testing.assert_array_equal(read[name], array)


def test_a_write_that_breaks_off_leaves_what_was_there(tmp_path, monkeypatch):
  npz.write(tmp_path / "x.npz", a=np.zeros(3))

  def half(path, **arrays):
    path.write_bytes(b"PK half of it")
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(np, "savez", half)
  with pytest.raises(OSError):
    npz.write(tmp_path / "x.npz", a=np.ones(3))
  np.testing.assert_array_equal(npz.read(tmp_path / "x.npz", ("a",), "again")["a"], np.zeros(3))


@pytest.mark.parametrize(
  "content", [b"", b"PK\x03\x04", b"text"], ids=["empty", "cut off", "something else"]
)
def test_damage_is_one_sentence_with_the_remedy(tmp_path, content):
  (tmp_path / "x.npz").write_bytes(content)
  with pytest.raises(UserError, match=r"x\.npz cannot be read \(.*\); make it again\."):
    npz.read(tmp_path / "x.npz", (), "make it again")


def test_a_missing_array_is_named_and_objects_are_refused(tmp_path):
  np.savez(tmp_path / "x.npz", a=np.zeros(2), b=np.array([{}]))
  with pytest.raises(UserError, match="cannot be read"):  # Unpickling could run any code.
    npz.read(tmp_path / "x.npz", ("a",), "again")
  npz.write(tmp_path / "x.npz", a=np.zeros(2))
  with pytest.raises(UserError, match=r"x\.npz has no 'c'; again\."):
    npz.read(tmp_path / "x.npz", ("a", "c"), "again")

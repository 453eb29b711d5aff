"""What a system that scores all items leaves behind: the vectors that it scores them by."""

import os
import pathlib

import numpy as np

from bbqrec_jax.data import npz
from bbqrec_jax.errors import UserError

FILE_NAME = "item_vectors.npz"
_REMEDY = "run the ranker stage again, in another workdir"


def save(workdir: str | os.PathLike, item_ids: np.ndarray, vectors: np.ndarray) -> None:
  """Writes <workdir>/item_vectors.npz.

  Args:
    item_ids: [I] str, original ids.
    vectors: [I, E] float32.
  """
  npz.write(pathlib.Path(workdir) / FILE_NAME, item_ids=item_ids, vectors=vectors)


def load(workdir: str | os.PathLike, item_ids: np.ndarray) -> np.ndarray:
  """Reads what save() wrote, of these items: [I, E] float32, in their order.

  Raises UserError if there is none, it is damaged, or it is of other items.
  """
  path = pathlib.Path(workdir) / FILE_NAME
  if not path.exists():
    raise UserError(f"{path} does not exist; run the ranker stage in this workdir first.")
  arrays = npz.read(path, ("item_ids", "vectors"), _REMEDY)
  vectors = arrays["vectors"]
  if vectors.dtype.kind != "f" or vectors.ndim != 2 or not np.isfinite(vectors).all():
    raise UserError(f"{path} holds no vectors ({vectors.dtype}{vectors.shape}); {_REMEDY}.")
  if not np.array_equal(arrays["item_ids"], item_ids) or len(vectors) != len(item_ids):
    raise UserError(f"{path} is of other items than these data; {_REMEDY}.")
  return vectors.astype(np.float32)

"""A small folder with a file of every data source, and edits that make one of them wrong."""

import gzip
import io
import json
import pathlib
from collections.abc import Callable

import numpy as np
import pytest

from bbqrec_jax.data import amazon, atomic, table, text

ITEMS = ("a", "b", "c", "d")
USERS = ("u0", "u1", "u2")


def npy(array, **kwargs) -> bytes:
  file = io.BytesIO()
  np.save(file, array, **kwargs)
  return file.getvalue()


def gz(content: str | bytes) -> bytes:
  return gzip.compress(content if isinstance(content, bytes) else content.encode(), mtime=0)


def lines(*texts: str) -> bytes:
  return "".join(f"{line}\n" for line in texts).encode()


def reviews() -> list[str]:
  return [
    json.dumps(dict(reviewerID=user, asin=item, unixReviewTime=time))
    for user in USERS
    for time, item in enumerate(ITEMS)
  ]


FEATURES = np.arange(1.0, 9.0, dtype=np.float32).reshape(4, 2)
REVIEWS, META = "reviews_Beauty_5.json.gz", "meta_Beauty.json.gz"
IMAGES = "image_features_Beauty.b"
GOOD = {  # Every file of every source.
  "shop.inter": lines(
    "user_id:token\titem_id:token\ttimestamp:float",
    *(f"{user}\t{item}\t{time}" for user in USERS for time, item in enumerate(ITEMS)),
  ),
  "shop.item": lines(
    "item_id:token\ttitle:token_seq\tprice:float", *(f"{item}\tTitle {item}\t1.5" for item in ITEMS)
  ),
  "text.npy": npy(FEATURES),
  "log.csv": lines(
    "user_id,item_id,timestamp",
    *(f"{user},{item},{time}" for user in USERS for time, item in enumerate(ITEMS)),
  ),
  "items.csv": lines("item_id,title,brand", *(f'{item},"Title, {item}",x' for item in ITEMS)),
  REVIEWS: gz(lines(*reviews())),
  META: gz(lines(*(repr(dict(asin=item, title=f"Title {item}")) for item in ITEMS))),
  IMAGES: b"".join(
    f"{item:0<10}".encode() + np.full(amazon.IMAGE_DIM, 0.5, "<f4").tobytes() for item in ITEMS
  ),
}


def load_atomic(root: pathlib.Path, /, **changes):
  kwargs = dict(features={"text": str(root / "text.npy")}, modalities=("text",), min_interactions=2)
  kwargs |= dict(root=str(root), name="shop", cache_dir=str(root / "cache"))
  return atomic.load(**kwargs | changes)


def load_atomic_texts(root: pathlib.Path):
  """The text columns, not the matrix, are the features."""
  return load_atomic(root, features=None)


def load_table(root: pathlib.Path, /, **changes):
  kwargs = dict(features={"text": str(root / "text.npy")}, modalities=("text",), min_interactions=2)
  kwargs |= dict(interactions=str(root / "log.csv"), items=str(root / "items.csv"))
  return table.load(**kwargs | dict(cache_dir=str(root / "cache")) | changes)


def load_table_texts(root: pathlib.Path):
  return load_table(root, features=None)


def load_amazon(root: pathlib.Path, /, **changes):
  kwargs = dict(subset="beauty", min_interactions=2, cache_dir=str(root / "cache"), download=False)
  return amazon.load(**kwargs | dict(root=str(root)) | changes)


def fill(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
  """Makes the folder, with all of GOOD; texts are encoded without a model."""
  monkeypatch.setattr(text, "encode", lambda texts, *_: np.ones((len(texts), 3), np.float32))
  folder.mkdir()
  for name, content in GOOD.items():
    (folder / name).write_bytes(content)
  return folder


def put(content: str | bytes) -> Callable[[bytes], bytes]:
  """An edit that leaves this in place of the file."""
  return lambda _: content if isinstance(content, bytes) else content.encode()


def swap(old: str, new: str | bytes) -> Callable[[bytes], bytes]:
  """An edit of the first occurrence."""

  def edit(content: bytes) -> bytes:
    assert old.encode() in content
    return content.replace(old.encode(), new if isinstance(new, bytes) else new.encode(), 1)

  return edit


def inside_gz(edit: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
  return lambda content: gz(edit(gzip.decompress(content)))


ANY = ""  # Where several things are wrong, which of them is told does not matter.

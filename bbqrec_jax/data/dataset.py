"""The Dataset record, and its leave-one-out split."""

import dataclasses
import hashlib
import json

import numpy as np

MODALITIES = ("text", "image")  # In this order wherever modalities are listed.


@dataclasses.dataclass(frozen=True)
class Features:
  """One modality's input vectors, a row per item.

  Attributes:
    values: [I, F] float32, finite; rows of absent items are zero.
    present: [I] bool, whether the item has this modality.
  """

  values: np.ndarray
  present: np.ndarray


@dataclasses.dataclass(frozen=True)
class Dataset:
  """Interactions as integer sequences, with the items' features. Items are numbered from 0.

  Attributes:
    name: what the data are called in tables and records.
    user_ids: [U] str, original ids.
    item_ids: [I] str, original ids.
    items: [X] int32 in [0, I): every user's items, oldest first, user after user.
    offsets: [U + 1] int64: user u's items are items[offsets[u]:offsets[u + 1]].
    features: modality -> Features; only modalities that at least one item has, in MODALITIES order.
    titles: [I] str, something a person recognises the item by; "" where unknown.
    fingerprint: sha256 (hex) over everything above.
  """

  name: str
  user_ids: np.ndarray
  item_ids: np.ndarray
  items: np.ndarray
  offsets: np.ndarray
  features: dict[str, Features]
  titles: np.ndarray
  fingerprint: str

  @property
  def num_users(self) -> int:
    return len(self.user_ids)

  @property
  def num_items(self) -> int:
    return len(self.item_ids)

  def sequence(self, user: int) -> np.ndarray:
    """All items of one user, oldest first: [n] int32."""
    return self.items[self.offsets[user] : self.offsets[user + 1]]


def make_dataset(
  name: str,
  user_ids: np.ndarray,
  item_ids: np.ndarray,
  items: np.ndarray,
  offsets: np.ndarray,
  features: dict[str, Features],
  titles: np.ndarray,
) -> Dataset:
  """Puts a Dataset together: fields as its attributes say, modalities without any item left out.

  Raises ValueError where shapes disagree, an item is out of range, or a user has fewer than three
  items (one to learn from, one to validate with, one to test with).
  """
  num_items = len(item_ids)
  if len(offsets) != len(user_ids) + 1 or offsets[0] != 0 or offsets[-1] != len(items):
    raise ValueError(f"offsets {offsets.shape} do not cut {len(items)} items for {len(user_ids)}.")
  if len(items) and not (items.min() >= 0 and items.max() < num_items):
    raise ValueError(f"items must lie in [0, {num_items}), got {items.min()}..{items.max()}.")
  if np.any(np.diff(offsets) < 3):
    raise ValueError("every user needs at least three items.")
  if len(titles) != num_items:
    raise ValueError(f"{len(titles)} titles for {num_items} items.")
  for modality, feature in features.items():
    if feature.values.shape[0] != num_items or feature.present.shape != (num_items,):
      raise ValueError(f"{modality}: {feature.values.shape[0]} rows for {num_items} items.")
  features = {m: features[m] for m in MODALITIES if m in features and features[m].present.any()}
  fields = (name, user_ids, item_ids, items, offsets, features, titles)
  return Dataset(*fields, fingerprint=_fingerprint(*fields))


def _fingerprint(name, user_ids, item_ids, items, offsets, features, titles) -> str:
  digest = hashlib.sha256()
  # JSON keeps ["ab", "c"] and ["a", "bc"] apart.
  strings = [name, user_ids.tolist(), item_ids.tolist(), titles.tolist(), list(features)]
  digest.update(json.dumps(strings).encode())
  arrays = [items, offsets]
  for feature in features.values():
    arrays += [feature.values, feature.present]
  for array in arrays:
    digest.update(f"{array.dtype.str}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).data)
  return digest.hexdigest()


def sequence_fingerprint(dataset: Dataset) -> str:
  """sha256 (hex) over the users' sequences and the catalogue by their original ids.

  Neither the order of the users nor the numbers of the items change it, nor do features, titles and
  the name: where it is the same, runs have the same split, targets and candidates.
  """
  users, catalogue = np.argsort(dataset.user_ids), np.argsort(dataset.item_ids)
  number = np.empty(dataset.num_items, np.int64)
  number[catalogue] = np.arange(dataset.num_items)
  lengths = np.diff(dataset.offsets)[users].astype(np.int64)
  shift = dataset.offsets[:-1][users] - (np.cumsum(lengths) - lengths)
  items = number[dataset.items[np.repeat(shift, lengths) + np.arange(len(dataset.items))]]
  ids = [dataset.user_ids[users].tolist(), dataset.item_ids[catalogue].tolist()]
  digest = hashlib.sha256(json.dumps(ids).encode())
  for array in (lengths, items):
    digest.update(array.astype("<i8").data)
  return digest.hexdigest()


# Items held out at the end of every sequence: the last is the test target, the one before it
# the validation target. Whatever learns sees only what is left.
HELD_OUT = {"train": 2, "valid": 2, "test": 1}


def histories(
  dataset: Dataset, split: str, max_history: int, users: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
  """The last items before each user's held-out target, and that target.

  Args:
    split: "valid" or "test".
    max_history: T, how many of the latest items are kept.
    users: [U'] int, which users; None for all.

  Returns:
    (history [U', T] int32, oldest first from column 0 and -1 behind the end;
     target [U'] int32).
  """
  if split not in ("valid", "test"):
    raise ValueError(f"split must be 'valid' or 'test', got {split!r}.")
  users = np.arange(dataset.num_users) if users is None else users
  ends = dataset.offsets[users + 1] - HELD_OUT[split]  # Index of the target in `items`.
  starts = np.maximum(dataset.offsets[users], ends - max_history)
  index = starts[:, None] + np.arange(max_history)[None, :]
  inside = index < ends[:, None]
  history = np.where(inside, dataset.items[np.minimum(index, len(dataset.items) - 1)], -1)
  return history.astype(np.int32), dataset.items[ends]


def train_counts(dataset: Dataset) -> np.ndarray:
  """How often each item occurs in the training part of the sequences: [I] int64."""
  lengths = np.diff(dataset.offsets)
  position = np.arange(len(dataset.items)) - np.repeat(dataset.offsets[:-1], lengths)
  training = position < np.repeat(lengths - HELD_OUT["train"], lengths)
  return np.bincount(dataset.items[training], minlength=dataset.num_items)

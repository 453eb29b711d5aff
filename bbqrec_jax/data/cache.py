"""Processed datasets are kept on disk, keyed by what they were made from."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import numpy as np
from absl import logging

from bbqrec_jax.data.dataset import Dataset, Features, make_dataset

DEFAULT_DIR = "~/.cache/bbqrec_jax"

# Part of every key: a new number makes every older file unused. Raise it when processing changes.
FORMAT = 1

# Files up to this size are known by their content; larger ones, whose hashing would take longer
# than reading the cache, by path, size and time of modification.
HASHED_BYTES = 256 * 2**20


def sha256(path: str) -> str:
  """The file's checksum, as hex."""
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def file_identity(path: str) -> str:
  """A string that changes when the file's content does; see HASHED_BYTES."""
  stat = os.stat(path)
  if stat.st_size <= HASHED_BYTES:
    return sha256(path)
  return f"{os.path.abspath(path)}:{stat.st_size}:{stat.st_mtime_ns}"


def model_identity(model_name: str) -> str:
  """A string that names a text model; for a folder, it changes with the folder's files."""
  folder = os.path.expanduser(model_name)
  if not os.path.isdir(folder):
    return model_name
  paths = sorted(os.path.join(at, name) for at, _, names in os.walk(folder) for name in names)
  return json.dumps([[os.path.relpath(path, folder), file_identity(path)] for path in paths])


def load_or_make(
  cache_dir: str,
  options: Mapping[str, Any],
  identities: Mapping[str, str],
  make_fn: Callable[[], Dataset],
) -> Dataset:
  """The dataset from cache_dir/datasets/<hash>.npz, or from make_fn, and then kept there.

  A damaged file is made again; a folder that cannot be written costs a line, not the run.

  Args:
    options: everything but the input files that the result depends on, JSON values.
    identities: role of an input file -> its identity.
    make_fn: makes the dataset.
  """
  key = json.dumps([FORMAT, dict(options), dict(identities)], sort_keys=True)
  digest = hashlib.sha256(key.encode()).hexdigest()
  path = os.path.join(os.path.expanduser(cache_dir), "datasets", f"{digest}.npz")
  if os.path.isfile(path):
    try:
      dataset = read_dataset(path)
      logging.info("%s: read from the cache, %s.", dataset.name, path)
      return dataset
    except Exception as error:  # Whatever is wrong with it.
      logging.info("%s: damaged cache file (%s), made again.", path, error)
  dataset = make_fn()
  write(path, lambda file: write_dataset(file, dataset))
  return dataset


def write(path: str, write_fn: Callable[[BinaryIO], None]):
  """Writes a file under a temporary name, then renames it; says so in a line if it cannot."""
  temporary = f"{path}.{os.getpid()}.tmp"
  try:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    try:
      with open(temporary, "wb") as file:
        write_fn(file)
      os.replace(temporary, path)
    finally:
      if os.path.exists(temporary):
        os.remove(temporary)
  except OSError as error:
    logging.info("%s: not cached (%s); the run goes on.", path, error.strerror or error)


def write_dataset(file: BinaryIO, dataset: Dataset):
  """Writes a dataset as .npz without pickles."""
  arrays = dict(
    name=np.array(dataset.name),
    user_ids=dataset.user_ids,
    item_ids=dataset.item_ids,
    items=dataset.items,
    offsets=dataset.offsets,
    titles=dataset.titles,
    modalities=np.array(list(dataset.features), dtype=str),
    fingerprint=np.array(dataset.fingerprint),
  )
  for modality, feature in dataset.features.items():
    arrays[f"{modality}_values"] = feature.values
    arrays[f"{modality}_present"] = feature.present
  np.savez(file, **arrays)


def read_dataset(path: str) -> Dataset:
  """Reads what write_dataset wrote; raises ValueError if the content does not hash as recorded."""
  with np.load(path, allow_pickle=False) as arrays:
    features = {
      str(m): Features(arrays[f"{m}_values"], arrays[f"{m}_present"]) for m in arrays["modalities"]
    }
    dataset = make_dataset(
      name=str(arrays["name"]),
      user_ids=arrays["user_ids"],
      item_ids=arrays["item_ids"],
      items=arrays["items"],
      offsets=arrays["offsets"],
      features=features,
      titles=arrays["titles"],
    )
    if dataset.fingerprint != str(arrays["fingerprint"]):
      raise ValueError("its fingerprint is another")
  return dataset

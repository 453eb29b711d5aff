"""Standardisation of feature vectors, with the statistics of the catalogue."""

import os
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from bbqrec_jax.data import npz
from bbqrec_jax.data.dataset import Dataset, Features

FILE_NAME = "feature_scaling.npz"


class Scaling(NamedTuple):
  """x -> (x - mean) * factor, so that a catalogue's vectors have mean square length 1.

  Every dimension gets the same variance, 1 / F: squared errors summed over dimensions are then of
  one scale, whatever the number of dimensions. Dimensions that are constant become 0.
  """

  mean: np.ndarray  # [F] float32.
  factor: np.ndarray  # [F] float32.

  def __call__(self, values: np.ndarray) -> np.ndarray:
    """[I, F] float32 -> [I, F] float32."""
    return ((values - self.mean) * self.factor).astype(np.float32)


def fit(features: Features) -> Scaling:
  """The scaling by the items that have the modality."""
  values = features.values[features.present].astype(np.float64)
  deviation = values.std(axis=0)
  # Relative, so that the features' unit does not matter: below it is float32 rounding.
  used = deviation > 1e-6 * np.abs(values).max(axis=0, initial=0.0)
  factor = np.where(used, 1.0 / np.where(used, deviation, 1.0), 0.0) / np.sqrt(max(used.sum(), 1))
  return Scaling(values.mean(axis=0).astype(np.float32), factor.astype(np.float32))


def standardise(dataset: Dataset) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, Scaling]]:
  """A catalogue's features as models read them, and how they were made so.

  Returns:
    (inputs, scalings): inputs["features"] has modality -> [I, F] float32 of mean square length 1,
    absent rows zero; inputs["present"] has modality -> [I] bool.
  """
  scalings = {name: fit(features) for name, features in dataset.features.items()}
  features = {
    name: np.where(f.present[:, None], scalings[name](f.values), 0.0).astype(np.float32)
    for name, f in dataset.features.items()
  }
  present = {name: f.present for name, f in dataset.features.items()}
  return dict(features=features, present=present), scalings


def save(workdir: str | os.PathLike, scalings: Mapping[str, Scaling]) -> None:
  """Writes <workdir>/feature_scaling.npz."""
  arrays = {
    f"{name}_{field}": array
    for name, scaling in scalings.items()
    for field, array in scaling._asdict().items()
  }
  npz.write(pathlib.Path(workdir) / FILE_NAME, **arrays)


def load(workdir: str | os.PathLike, modalities) -> dict[str, Scaling]:
  """Reads what save() wrote.

  Raises UserError if it cannot be read, or lacks a modality.
  """
  names = {m: [f"{m}_{field}" for field in Scaling._fields] for m in modalities}
  needed = [name for fields in names.values() for name in fields]
  path = pathlib.Path(workdir) / FILE_NAME
  arrays = npz.read(path, needed, "run the stage that made it again, in another workdir")
  return {m: Scaling(*(arrays[name] for name in fields)) for m, fields in names.items()}

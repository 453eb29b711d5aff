"""Popularity: every user gets the items that were bought most often."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from bbqrec_jax.data.dataset import Dataset, train_counts


@dataclasses.dataclass(frozen=True)
class Model:
  """Scores an item by its place among the training counts; of equal counts the lower item leads."""

  def fit(self, dataset: Dataset) -> np.ndarray:
    """The table that scores() reads: [I] float32."""
    return -ranks(dataset).astype(np.float32)  # Whole numbers, all different: exact to 2**24.

  def scores(self, table, history):
    """[B, I] float32 for histories [B, T] int32."""
    return jnp.broadcast_to(table[None, :], (len(history), len(table)))


def ranks(dataset: Dataset) -> np.ndarray:
  """Every item's place, from 1: [I] int32."""
  order = np.argsort(-train_counts(dataset), kind="stable")  # Ties: the lower item first.
  places = np.empty(dataset.num_items, np.int32)
  places[order] = np.arange(1, dataset.num_items + 1)
  return places

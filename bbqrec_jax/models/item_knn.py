"""Item-based neighbours: what was bought by those who bought what a user has."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from bbqrec_jax.data.dataset import HELD_OUT, Dataset


@dataclasses.dataclass(frozen=True)
class Model:
  """Scores an item by its cosines with the items of a history, the latest of which weigh most.

  Sarwar et al. 2001 (Item-based collaborative filtering) with the cosine of the items' sets of
  users, C_ij / sqrt(C_i C_j), where C_ij counts the users whose training part has both. Where we
  differ: nobody rates, so that cosines are summed, of each item of the history to its K nearest,
  where the paper averages ratings over the candidate's K nearest; and an item of the history weighs
  decay**a, a items having come after it.
  """

  num_neighbours: int = 100  # K: of each item the nearest so many count; ties: the lower item.
  decay: float = 0.8

  def fit(self, dataset: Dataset) -> dict[str, np.ndarray]:
    """The table that scores() reads.

    Returns:
      items: [I, K] int32, the neighbours of each item, nearest first.
      cosines: [I, K] float32, 0 where an item has fewer.
    """
    import scipy.sparse  # Here, since only this model needs it.

    lengths = np.diff(dataset.offsets)
    users = np.repeat(np.arange(dataset.num_users), lengths)
    place = np.arange(len(dataset.items)) - np.repeat(dataset.offsets[:-1], lengths)
    training = place < np.repeat(lengths - HELD_OUT["train"], lengths)
    pairs = np.unique(np.stack([users[training], dataset.items[training]]), axis=1)
    num_items = dataset.num_items
    bought = scipy.sparse.csr_array(
      (np.ones(pairs.shape[1]), tuple(pairs)), (dataset.num_users, num_items)
    )
    both = (bought.T @ bought).tocoo()
    counts = both.diagonal()
    other = both.row != both.col
    row, col = both.row[other], both.col[other]
    cosine = both.data[other] / np.sqrt(counts[row] * counts[col])
    order = np.lexsort((col, -cosine, row))
    row, col, cosine = row[order], col[order], cosine[order]
    place = np.arange(len(row)) - np.searchsorted(row, row)  # Among its row's neighbours.
    kept = place < self.num_neighbours
    at = row[kept], place[kept]
    items = np.zeros((num_items, self.num_neighbours), np.int32)
    cosines = np.zeros((num_items, self.num_neighbours), np.float32)
    items[at], cosines[at] = col[kept], cosine[kept]
    return dict(items=items, cosines=cosines)

  def scores(self, table, history):
    """[B, I] float32 for histories [B, T] int32, -1 behind the end."""
    there = history >= 0
    later = jnp.sum(there, axis=1, keepdims=True) - 1 - jnp.arange(history.shape[1])[None, :]
    weights = jnp.where(there, self.decay ** jnp.maximum(later, 0), 0.0)  # [B, T]
    rows = jnp.maximum(history, 0)
    values = table["cosines"][rows] * weights[:, :, None]  # [B, T, K]
    scores = jnp.zeros((len(history), len(table["items"])))
    users = jnp.arange(len(history))[:, None, None]
    return scores.at[users, table["items"][rows]].add(values)

"""Batches of training examples: a pure function of (step, seed)."""

import numpy as np

from bbqrec_jax.data.dataset import HELD_OUT, Dataset

DISTINCT_MULTIPLE = 512  # Distinct items are padded up to this, so that few shapes are compiled.


def prefixes(dataset: Dataset, max_history: int) -> tuple[np.ndarray, np.ndarray]:
  """Every prefix of every training sequence: (starts [E], ends [E]) int64 into dataset.items.

  items[start:end] is a history of 1 .. max_history items, items[end] the item after it.
  """
  first = dataset.offsets[:-1]
  counts = np.maximum(np.diff(dataset.offsets) - HELD_OUT["train"] - 1, 0)
  position = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
  begin = np.repeat(first, counts)
  ends = begin + position + 1
  return np.maximum(begin, ends - max_history), ends


def windows(dataset: Dataset, max_history: int) -> tuple[np.ndarray, np.ndarray]:
  """Training sequences cut, from their end, into windows whose every position has a target.

  (starts [E], ends [E]) int64 into dataset.items, of 1 .. max_history items each; item s + 1 is
  the target of item s. A sequence of n training items gives ceil((n - 1) / max_history) windows,
  so that every item but a user's first is the target exactly once.
  """
  counts = np.maximum(np.diff(dataset.offsets) - HELD_OUT["train"] - 1, 0)  # Targets of a user.
  pieces = -(-counts // max_history)
  index = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
  last = np.repeat(dataset.offsets[:-1] + counts, pieces)  # One behind the last window.
  ends = last - index * max_history
  return np.maximum(np.repeat(dataset.offsets[:-1], pieces), ends - max_history), ends


class Batches:
  """Shuffled batches of histories of similar length, addressed by step.

  Examples are put into buckets by length, so that little padding is computed; a batch comes from
  one bucket, and the order of batches within an epoch is shuffled. The model sees each example
  exactly once an epoch. The last batch of a bucket may hold fewer rows: the rest are padding.
  """

  def __init__(
    self,
    items: np.ndarray,
    starts: np.ndarray,
    ends: np.ndarray,
    *,
    batch_size: int,
    bucket_lengths: tuple[int, ...],
    seed: int,
    every_target: bool,
  ):
    """items [X] int32; starts, ends [E]: examples as prefixes() or windows() give them.

    Args:
      bucket_lengths: increasing; the last one holds the longest example.
      every_target: True: targets [B, T], the item after each item; False: [B, 1], the item after
        the history.
    """
    lengths = ends - starts
    if not len(starts):
      raise ValueError("There are no training examples.")
    if lengths.max() > bucket_lengths[-1]:
      raise ValueError(f"An example of {lengths.max()} items exceeds buckets {bucket_lengths}.")
    self._items, self._starts, self._ends = items, starts, ends
    self._batch_size, self._seed, self._every_target = batch_size, seed, every_target
    bucket = np.searchsorted(bucket_lengths, lengths)
    self._buckets = [
      (length, np.flatnonzero(bucket == b))
      for b, length in enumerate(bucket_lengths)
      if np.any(bucket == b)
    ]
    self.num_examples = len(starts)
    self.steps_per_epoch = sum(-(-len(rows) // batch_size) for _, rows in self._buckets)
    self._epoch, self._plan = -1, []

  def _plan_epoch(self, epoch: int) -> list[tuple[int, np.ndarray]]:
    """The epoch's batches, each (length, rows)."""
    rng = np.random.default_rng((self._seed, epoch))
    plan = []
    for length, rows in self._buckets:
      rows = rng.permutation(rows)
      plan += [
        (length, rows[i : i + self._batch_size]) for i in range(0, len(rows), self._batch_size)
      ]
    return [plan[i] for i in rng.permutation(len(plan))]

  def __call__(self, step: int) -> dict[str, np.ndarray]:
    """The batch of a step.

    Returns:
      history [B, T] int32, targets [B, T] or [B, 1] int32; -1 is padding. T is the bucket's.
    """
    epoch, index = divmod(step, self.steps_per_epoch)
    if epoch != self._epoch:  # The last epoch's plan is kept; any other is made again.
      self._epoch, self._plan = epoch, self._plan_epoch(epoch)
    length, rows = self._plan[index]
    starts, ends = self._starts[rows], self._ends[rows]
    position = starts[:, None] + np.arange(length)[None, :]
    inside = position < ends[:, None]
    last = len(self._items) - 1
    history = np.where(inside, self._items[np.minimum(position, last)], -1)
    if self._every_target:
      targets = np.where(inside, self._items[np.minimum(position + 1, last)], -1)
    else:
      targets = self._items[ends][:, None]
    empty = self._batch_size - len(rows)
    pad = lambda x: np.pad(x.astype(np.int32), ((0, empty), (0, 0)), constant_values=-1)
    return dict(history=pad(history), targets=pad(targets))


def with_distinct_items(batch: dict[str, np.ndarray], num_items: int) -> dict[str, np.ndarray]:
  """Adds the distinct items of a batch, and says where each item stands among them.

  Returns:
    items [P] int32, ascending, padded with -1 to a multiple of DISTINCT_MULTIPLE, or to num_items
    where that is less; history and targets as indices into items, -1 at padding as before.
  """
  both = np.concatenate([batch["history"], batch["targets"]], axis=1)
  items = np.unique(both[both >= 0])
  size = min(-(-len(items) // DISTINCT_MULTIPLE) * DISTINCT_MULTIPLE, num_items)
  index = lambda x: np.where(x >= 0, np.searchsorted(items, x), -1).astype(np.int32)
  return dict(
    items=np.pad(items, (0, size - len(items)), constant_values=-1).astype(np.int32),
    history=index(batch["history"]),
    targets=index(batch["targets"]),
  )


def bucket_lengths(max_history: int) -> tuple[int, ...]:
  """Lengths that histories are padded to: about 1/5, 2/5, 3/5 and all of max_history."""
  return tuple(sorted({-(-max_history * n // 5) for n in (1, 2, 3, 5)}))

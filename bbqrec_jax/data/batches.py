"""Batches of training examples: a pure function of (epoch, seed)."""

import numpy as np

from bbqrec_jax.data.dataset import HELD_OUT, Dataset

# The fifths of max_history that groups of histories are padded to; short ones are the most.
_FIFTHS = {1: (5,), 2: (2, 5), 3: (1, 2, 5), 4: (1, 2, 3, 5)}
LENGTH_GROUPS = tuple(_FIFTHS)
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
  """An epoch's batches at a time: a pure function of (epoch, seed).

  Examples are put into groups by length, so that little padding is computed, and EVERY batch holds
  the same share of every group: all batches have the same shapes, and each is a fair sample of
  short and long histories. The model sees each example exactly once an epoch.
  """

  def __init__(
    self,
    items: np.ndarray,
    starts: np.ndarray,
    ends: np.ndarray,
    *,
    batch_size: int,
    lengths: tuple[int, ...],
    seed: int,
    every_target: bool,
  ):
    """items [X] int32; starts, ends [E]: examples as prefixes() or windows() give them.

    Args:
      batch_size: examples of a batch at most, on average over an epoch.
      lengths: increasing, what the histories of each group are padded to; the last one holds the
        longest example.
      every_target: True: targets [R, T], the item after each item; False: [R, 1], the item after
        the history.
    """
    if not len(starts):
      raise ValueError("There are no training examples.")
    longest = (ends - starts).max()
    if longest > lengths[-1]:
      raise ValueError(f"An example of {longest} items exceeds the lengths {lengths}.")
    self._items, self._starts, self._ends = items, starts, ends
    self._seed, self._every_target = seed, every_target
    group = np.searchsorted(lengths, ends - starts)
    self._groups = [
      (length, np.flatnonzero(group == g)) for g, length in enumerate(lengths) if np.any(group == g)
    ]
    self.num_examples = len(starts)
    self.steps_per_epoch = -(-len(starts) // batch_size)

  def epoch(self, epoch: int) -> tuple[dict[str, np.ndarray], ...]:
    """The batches of an epoch, each array with the steps as its leading axis.

    Returns:
      For each group history [steps, R, T] int32 and targets [steps, R, T] or [steps, R, 1] int32;
      -1 is padding. T is the group's length, R its share of a batch: padding rows, of which a step
      has at most one per group, come last.
    """
    rng = np.random.default_rng((self._seed, epoch))
    return tuple(self._gather(self._deal(rng, rows), length) for length, rows in self._groups)

  def _deal(self, rng: np.random.Generator, rows: np.ndarray) -> np.ndarray:
    """Shuffles a group's examples into hands for all steps: [steps, R], -1 behind the end."""
    steps = self.steps_per_epoch
    per_step = -(-len(rows) // steps)
    dealt = np.full(steps * per_step, -1)
    dealt[: len(rows)] = rng.permutation(rows)
    # One round after the other, so that no step is short of two; which are short is shuffled too.
    return dealt.reshape(per_step, steps).T[rng.permutation(steps)]

  def _gather(self, rows: np.ndarray, length: int) -> dict[str, np.ndarray]:
    starts, ends = self._starts[rows], np.where(rows >= 0, self._ends[rows], 0)
    position = starts[..., None] + np.arange(length)
    inside = position < ends[..., None]
    last = len(self._items) - 1
    take = lambda at, valid: np.where(valid, self._items[np.minimum(at, last)], -1).astype(np.int32)
    if self._every_target:
      targets = take(position + 1, inside)
    else:
      targets = take(ends[..., None], rows[..., None] >= 0)
    return dict(history=take(position, inside), targets=targets)


def with_distinct_items(groups: tuple[dict[str, np.ndarray], ...], num_items: int) -> dict:
  """Finds the distinct items of every batch of an epoch, and where each item stands among them.

  Returns:
    items [steps, P] int32: each step's distinct items, ascending, padded with -1. P is a multiple
    of DISTINCT_MULTIPLE, or num_items where that is less.
    groups: as given, with history and targets as indices into the step's items, -1 at padding.
  """
  num_steps = len(groups[0]["history"])
  arrays = [group[name] for group in groups for name in ("history", "targets")]
  every = np.concatenate([array.reshape(num_steps, -1) for array in arrays], axis=1)
  distinct = [np.unique(row[row >= 0]) for row in every]
  size = -(-max(map(len, distinct)) // DISTINCT_MULTIPLE) * DISTINCT_MULTIPLE
  items = np.full((num_steps, min(size, num_items)), -1, np.int32)
  for row, found in zip(items, distinct):
    row[: len(found)] = found

  def index(array):  # [steps, R, T]
    found = [np.searchsorted(items_of, x) for items_of, x in zip(distinct, array)]
    return np.where(array >= 0, np.stack(found), -1).astype(np.int32)

  return dict(
    items=items,
    groups=tuple({name: index(array) for name, array in group.items()} for group in groups),
  )


def group_lengths(max_history: int, num_groups: int) -> tuple[int, ...]:
  """Lengths that histories are padded to, increasing up to max_history.

  Args:
    num_groups: 1 to 4; four compute the least padding, and compile the longest.

  Raises:
    ValueError: another num_groups.
  """
  if num_groups not in _FIFTHS:
    raise ValueError(f"length_groups must be one of {LENGTH_GROUPS}, got {num_groups}.")
  return tuple(sorted({-(-max_history * n // 5) for n in _FIFTHS[num_groups]}))

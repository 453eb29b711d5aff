"""Batches of training examples: a pure function of (epoch, seed)."""

import functools

import numpy as np

from bbqrec_jax.data.dataset import HELD_OUT, Dataset

# The fifths of max_history that groups of histories are padded to; short ones are the most.
_FIFTHS = {1: (5,), 2: (2, 5), 3: (1, 2, 5), 4: (1, 2, 3, 5)}
LENGTH_GROUPS = tuple(_FIFTHS)
_DISTINCT_MULTIPLE = 512  # What the number of a batch's distinct items is padded up to,
_FEW_ITEMS_MULTIPLE = 64  # unless the whole catalogue has fewer. Both suit most device counts.


def prefixes(dataset: Dataset, max_history: int) -> tuple[np.ndarray, np.ndarray]:
  """Every prefix of every training sequence: (starts [E], ends [E]) int64 into dataset.items.

  items[start:end] is a history of 1 .. max_history items, items[end] the item after it.
  """
  first = dataset.offsets[:-1]
  counts = np.maximum(np.diff(dataset.offsets) - HELD_OUT["train"] - 1, 0)
  position = _positions(counts)
  begin = np.repeat(first, counts)
  ends = begin + position + 1
  return np.maximum(begin, ends - max_history), ends


def windows(dataset: Dataset, max_history: int) -> tuple[np.ndarray, np.ndarray]:
  """Training sequences cut, from their end, into windows whose every position has a target.

  (starts [E], ends [E]) int64 into dataset.items, of 1 .. max_history items each; item s + 1 is
  the target of item s. A sequence of n training items gives ceil((n - 1) / max_history) windows,
  so that every item but a user's first is the target exactly once. Where there are several, the
  first targets of each but the oldest have fewer items before them than prefixes() gives them.
  """
  counts = np.maximum(np.diff(dataset.offsets) - HELD_OUT["train"] - 1, 0)  # Targets of a user.
  pieces = -(-counts // max_history)
  index = _positions(pieces)
  last = np.repeat(dataset.offsets[:-1] + counts, pieces)  # One behind the last window.
  ends = last - index * max_history
  return np.maximum(np.repeat(dataset.offsets[:-1], pieces), ends - max_history), ends


class Batches:
  """An epoch's batches at a time: a pure function of (epoch, seed).

  Examples are put into groups by length, so that little padding is computed, and EVERY batch holds
  the same share of every group: all batches have the same shapes, and each is a fair sample of
  short and long histories. The model sees each example exactly once an epoch.

  Where an example stands in its batch depends on nothing but epoch and seed: neither on how many
  devices rows are padded for, nor on how many processes share them.
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
    micro_batch_size: int = 0,
    row_multiple: int = 1,
    share: tuple[int, int] = (0, 1),
  ):
    """items [X] int32; starts, ends [E]: examples as prefixes() or windows() give them.

    Args:
      batch_size: examples of a batch at most, on average over an epoch.
      lengths: increasing, what the histories of each group are padded to; the last one holds the
        longest example.
      every_target: True: targets [n, R, T], the item after each item; False: [n, R, 1], the item
        after the history.
      micro_batch_size: the most rows of a micro-batch; 0: a group is one.
      row_multiple: rows of a micro-batch are padded up to a multiple of this, the number of devices
        that share them.
      share: (index, count): of every micro-batch, only this one of `count` equal parts of its rows.
        count divides row_multiple.
    """
    if not len(starts):
      raise ValueError("There are no training examples.")
    longest = (ends - starts).max()
    if longest > lengths[-1]:
      raise ValueError(f"An example of {longest} items exceeds the lengths {lengths}.")
    if row_multiple % share[1]:
      raise ValueError(f"{share[1]} parts do not divide {row_multiple} rows.")
    self._items, self._starts, self._ends = items, starts, ends
    self._seed, self._every_target = seed, every_target
    self._micro_batch_size, self._row_multiple, self._share = micro_batch_size, row_multiple, share
    group = np.searchsorted(lengths, ends - starts)
    self._groups = [
      (length, np.flatnonzero(group == g)) for g, length in enumerate(lengths) if np.any(group == g)
    ]
    self.num_examples = len(starts)
    self.steps_per_epoch = -(-len(starts) // batch_size)

  def epoch(self, epoch: int) -> tuple[dict[str, np.ndarray], ...]:
    """The batches of an epoch, each array with the steps as its leading axis.

    Returns:
      For each group history [steps, n, R, T] and targets [steps, n, R, T] or [steps, n, R, 1]
      int32, n micro-batches of R rows each; -1 is padding. T is the group's length. Padding rows
      come last.
    """
    return tuple(
      self._gather(_part(rows, self._share), length) for rows, length in self._plan(epoch)
    )

  def epoch_with_distinct_items(self, epoch: int, num_items: int) -> dict:
    """The same, with each batch's distinct items, and where each item stands among them.

    Args:
      num_items: I, of the catalogue.

    Returns:
      items [steps, 1, P] int32: each step's distinct items, ascending, padded with -1; P is as
        distinct_size() has it. Of them, too, this is the share of one process.
      log_q [steps, 1, P] float32: of each of these items the log-probability that a batch holds
        it, 0 at padding; of the same share.
      groups: as epoch() gives them, with history and targets as indices into all P of the step's
        items, -1 at padding.
    """
    plan = self._plan(epoch)
    distinct, groups = [], [dict(history=[], targets=[]) for _ in plan]
    for step in range(self.steps_per_epoch):  # One at a time is held whole, the rest as a share.
      whole = [self._gather(rows[step], length) for rows, length in plan]
      found = np.unique(np.concatenate([x.ravel() for group in whole for x in group.values()]))
      distinct.append(found[found >= 0])
      for group, gathered in zip(whole, groups):
        for name, x in group.items():
          own = _part(x, self._share, axis=1)
          gathered[name].append(np.where(own >= 0, np.searchsorted(distinct[-1], own), -1))
    size = distinct_size(max(map(len, distinct)), num_items, self._row_multiple)
    items = np.full((self.steps_per_epoch, 1, size), -1, np.int32)
    log_q = np.zeros(items.shape, np.float32)
    for step, found in enumerate(distinct):
      items[step, 0, : len(found)] = found
      log_q[step, 0, : len(found)] = self._log_q[found]
    stack = lambda arrays: np.stack(arrays).astype(np.int32)
    return dict(
      items=_part(items, self._share),
      log_q=_part(log_q, self._share),
      groups=tuple({name: stack(x) for name, x in group.items()} for group in groups),
    )

  @functools.cached_property
  def _log_q(self) -> np.ndarray:
    """The log-probability that a batch holds an item: [largest item + 1] float32.

    Each of the c examples that an item is in comes to one of an epoch's S batches at random: a
    batch has none of them with probability (1 - 1 / S)^c, as if they were dealt independently.
    """
    sizes = self._ends - self._starts + 1  # Of the history and the item behind it.
    example = np.repeat(np.arange(len(sizes)), sizes)
    items = self._items[self._starts[example] + _positions(sizes)]
    stride = int(self._items.max()) + 1
    once = np.unique(example * stride + items)  # However often an example holds an item.
    held_by = np.maximum(np.bincount(once % stride), 1)  # Those that none holds are never asked.
    with np.errstate(divide="ignore"):  # A single batch holds everything.
      absent = held_by * np.log1p(-1 / self.steps_per_epoch)
    return np.log(-np.expm1(absent)).astype(np.float32)

  def _plan(self, epoch: int) -> list[tuple[np.ndarray, int]]:
    """For each group which example stands where, [steps, n, R], -1 at padding; and its length."""
    rng = np.random.default_rng((self._seed, epoch))
    return [(self._deal(rng, rows), length) for length, rows in self._groups]

  def _deal(self, rng: np.random.Generator, rows: np.ndarray) -> np.ndarray:
    """Shuffles a group's examples into hands for all steps: [steps, n, R], -1 behind the end."""
    steps = self.steps_per_epoch
    per_step = -(-len(rows) // steps)
    dealt = np.full(steps * per_step, -1)
    dealt[: len(rows)] = rng.permutation(rows)
    # One round after the other, so that no step is short of two; which are short is shuffled too.
    dealt = dealt.reshape(per_step, steps).T[rng.permutation(steps)]
    num_micro = -(-per_step // (self._micro_batch_size or per_step))
    size = -(-per_step // num_micro)
    dealt = _pad(dealt, num_micro * size).reshape(steps, num_micro, size)
    return _pad(dealt, _round_up(size, self._row_multiple))

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


def distinct_size(num_distinct: int, num_items: int, row_multiple: int) -> int:
  """P, what a batch's distinct items are padded up to: few sizes, so that few are compiled."""
  padded = _round_up(num_distinct, _DISTINCT_MULTIPLE)
  return _round_up(min(padded, _round_up(num_items, _FEW_ITEMS_MULTIPLE)), row_multiple)


def _positions(counts: np.ndarray) -> np.ndarray:
  """0 .. count - 1 of every count, one behind the other: [sum of counts] int64."""
  return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)


def _pad(x: np.ndarray, size: int) -> np.ndarray:
  """The last axis filled up with -1."""
  fill = [(0, 0)] * (x.ndim - 1) + [(0, size - x.shape[-1])]
  return np.pad(x, fill, constant_values=-1)


def _part(x: np.ndarray, share: tuple[int, int], axis: int = -1) -> np.ndarray:
  """One of so many equal parts of an axis."""
  index, count = share
  return np.split(x, count, axis=axis)[index]


def _round_up(x: int, multiple: int) -> int:
  return -(-x // multiple) * multiple


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

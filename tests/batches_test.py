"""Batches hold every training example once an epoch, in an order that step and seed fix."""

import collections
import itertools

import chex
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bbqrec_jax.data import batches
from bbqrec_jax.data.dataset import make_dataset
from tests.reference import examples

LENGTHS = [3, 4, 9, 13, 23, 5, 3, 8]  # Items of each user; 3 leave one for training, no target.


def _dataset(lengths):
  """Users with so many items each. No item comes twice: an item tells whose it is, and where."""
  offsets = np.cumsum([0, *lengths])
  num_items = int(offsets[-1])
  return make_dataset(
    "toy",
    user_ids=np.arange(len(lengths)).astype(str),
    item_ids=np.arange(num_items).astype(str),
    items=np.random.default_rng(0).permutation(num_items).astype(np.int32),
    offsets=offsets,
    features={},
    titles=np.full(num_items, ""),
  )


def _batches(dataset, every_target, max_history=7, batch_size=5, seed=0):
  slices = batches.windows if every_target else batches.prefixes
  return batches.Batches(
    dataset.items,
    *slices(dataset, max_history),
    batch_size=batch_size,
    bucket_lengths=batches.bucket_lengths(max_history),
    seed=seed,
    every_target=every_target,
  )


def _rows(batch):
  """(history, targets) of every row that is no padding, as tuples without their padding."""
  pairs = zip(batch["history"], batch["targets"])
  strip = lambda row: tuple(row[row >= 0].tolist())
  return [(strip(history), strip(targets)) for history, targets in pairs if history[0] >= 0]


@pytest.mark.parametrize("every_target", [False, True])
@settings(max_examples=40, deadline=None)
@given(
  lengths=st.lists(st.integers(3, 17), min_size=1, max_size=7).filter(lambda x: max(x) > 3),
  max_history=st.integers(1, 13),
  batch_size=st.integers(1, 11),
  seed=st.integers(0, 3),
  epoch=st.integers(0, 2),
)
def test_an_epoch_is_every_training_example_once(
  every_target, lengths, max_history, batch_size, seed, epoch
):
  dataset = _dataset(lengths)
  data = _batches(dataset, every_target, max_history, batch_size, seed)
  first = epoch * data.steps_per_epoch
  rows = [row for i in range(data.steps_per_epoch) for row in _rows(data(first + i))]
  sequences = [dataset.sequence(u).tolist() for u in range(dataset.num_users)]
  expected = (examples.windows if every_target else examples.prefixes)(sequences, max_history)
  assert collections.Counter(rows) == collections.Counter(expected)
  assert data.num_examples == len(expected)
  # Said once more without the slow copy: nothing held out is ever seen.
  held_out = {item for sequence in sequences for item in sequence[-2:]}
  assert held_out.isdisjoint(item for row in rows for part in row for item in part)


@pytest.mark.parametrize("every_target", [False, True])
def test_rows_fill_the_smallest_bucket_from_the_left(every_target):
  data = _batches(_dataset(LENGTHS), every_target)
  buckets = batches.bucket_lengths(7)
  partial = 0
  for step in range(data.steps_per_epoch):
    batch = data(step)
    length = batch["history"].shape[1]
    smaller = max((b for b in buckets if b < length), default=0)
    assert length in buckets
    chex.assert_shape(batch["history"], (5, length))
    chex.assert_shape(batch["targets"], (5, length if every_target else 1))
    chex.assert_type([batch["history"], batch["targets"]], np.int32)
    counts = (batch["history"] >= 0).sum(axis=1)
    for row, (history, targets) in enumerate(zip(batch["history"], batch["targets"])):
      assert (history[: counts[row]] >= 0).all()
      assert counts[row] == 0 or smaller < counts[row] <= length
      if every_target or counts[row] == 0:
        np.testing.assert_array_equal(targets >= 0, history[: len(targets)] >= 0)
    full = counts > 0
    assert full[0] and (np.diff(full.astype(int)) <= 0).all()  # Empty rows come last.
    partial += not full.all()
  assert partial  # The case was there.


def test_a_batch_depends_on_step_and_seed_alone():
  dataset = _dataset(LENGTHS)
  forward, backward = _batches(dataset, False), _batches(dataset, False)
  steps = range(3 * forward.steps_per_epoch)
  expected = {step: forward(step) for step in steps}
  for step in reversed(steps):
    chex.assert_trees_all_equal(backward(step), expected[step])

  def order(data, epoch):
    first = epoch * data.steps_per_epoch
    return [row for i in range(data.steps_per_epoch) for row in _rows(data(first + i))]

  orders = [order(forward, 0), order(forward, 1), order(_batches(dataset, False, seed=1), 0)]
  assert orders[0] != orders[1] and orders[0] != orders[2]
  assert sorted(orders[0]) == sorted(orders[1]) == sorted(orders[2])
  widths = [forward(i)["history"].shape[1] for i in range(forward.steps_per_epoch)]
  assert widths != sorted(widths) and widths != sorted(widths, reverse=True)  # Buckets are mixed.


def test_examples_that_do_not_fit_raise():
  items = np.arange(9, dtype=np.int32)
  kwargs = dict(batch_size=2, bucket_lengths=(2, 3), seed=0, every_target=False)
  with pytest.raises(ValueError, match="no training examples"):
    batches.Batches(items, np.array([], int), np.array([], int), **kwargs)
  with pytest.raises(ValueError, match=r"4 items exceeds buckets \(2, 3\)"):
    batches.Batches(items, np.array([0, 1]), np.array([3, 5]), **kwargs)


def test_bucket_lengths_increase_up_to_max_history():
  assert batches.bucket_lengths(20) == (4, 8, 12, 20)
  for max_history in range(1, 60):
    buckets = batches.bucket_lengths(max_history)
    assert buckets[0] >= 1 and buckets[-1] == max_history
    assert all(a < b for a, b in itertools.pairwise(buckets))


@pytest.mark.parametrize(("num_items", "size"), [(2000, 1024), (700, 700), (100_000, 1024)])
def test_distinct_items_and_indices_into_them(num_items, size):
  rng = np.random.default_rng(0)
  few = rng.permutation(num_items)[:601]
  batch = dict(history=rng.choice(few, (31, 37)), targets=rng.choice(few, (31, 37)))
  batch = {name: array.astype(np.int32) for name, array in batch.items()}
  batch["history"][:, 29:] = batch["targets"][5:, 11:] = -1
  out = batches.with_distinct_items(batch, num_items)
  chex.assert_shape(out["items"], (size,))
  chex.assert_type(list(out.values()), np.int32)
  used = set(batch["history"].ravel().tolist()) | set(batch["targets"].ravel().tolist())
  assert out["items"][out["items"] >= 0].tolist() == sorted(used - {-1})
  assert (out["items"][len(used) - 1 :] == -1).all()  # Behind the items, padding only.
  for name in ("history", "targets"):
    rebuilt = np.where(out[name] >= 0, out["items"][out[name]], -1)
    np.testing.assert_array_equal(rebuilt, batch[name])


def test_a_batch_of_all_items_needs_no_padding():
  batch = dict(history=np.arange(5)[None], targets=np.array([[5, 6]]))
  out = batches.with_distinct_items(batch, 7)
  assert out["items"].tolist() == list(range(7))

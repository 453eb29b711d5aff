"""Batches hold every training example once an epoch, in an order that epoch and seed fix."""

import collections
import itertools

import chex
import jax
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


def _batches(dataset, every_target, max_history=7, batch_size=5, seed=0, **layout):
  slices = batches.windows if every_target else batches.prefixes
  return batches.Batches(
    dataset.items,
    *slices(dataset, max_history),
    batch_size=batch_size,
    lengths=batches.group_lengths(max_history, 4),
    seed=seed,
    every_target=every_target,
    **layout,
  )


def _rows(groups, step):
  """(history, targets) of every row of a step that is no padding, as tuples without theirs."""
  flat = lambda x: x.reshape(-1, x.shape[-1])  # Micro-batch after micro-batch.
  pairs = [pair for g in groups for pair in zip(flat(g["history"][step]), flat(g["targets"][step]))]
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
  micro_batch_size=st.integers(0, 4),
  row_multiple=st.integers(1, 4),
)
def test_an_epoch_is_every_training_example_once(
  every_target, lengths, max_history, batch_size, seed, epoch, micro_batch_size, row_multiple
):
  dataset = _dataset(lengths)
  layout = dict(micro_batch_size=micro_batch_size, row_multiple=row_multiple)
  data = _batches(dataset, every_target, max_history, batch_size, seed, **layout)
  groups = data.epoch(epoch)
  rows = [row for step in range(data.steps_per_epoch) for row in _rows(groups, step)]
  sequences = [dataset.sequence(u).tolist() for u in range(dataset.num_users)]
  expected = (examples.windows if every_target else examples.prefixes)(sequences, max_history)
  assert collections.Counter(rows) == collections.Counter(expected)
  assert data.num_examples == len(expected)
  # Said once more without the slow copy: nothing held out is ever seen.
  held_out = {item for sequence in sequences for item in sequence[-2:]}
  assert held_out.isdisjoint(item for row in rows for part in row for item in part)


@pytest.mark.parametrize("every_target", [False, True])
def test_rows_stand_in_the_group_of_their_length_from_the_left(every_target):
  data = _batches(_dataset(LENGTHS), every_target)
  lengths, smaller, partial = batches.group_lengths(7, 4), 0, 0
  groups = data.epoch(0)
  assert [group["history"].shape[3] for group in groups] == list(lengths)
  for length, group in zip(lengths, groups):
    chex.assert_axis_dimension(group["history"], 1, 1)  # One micro-batch.
    history, targets = group["history"][:, 0], group["targets"][:, 0]
    chex.assert_type([history, targets], np.int32)
    chex.assert_shape(targets, (*history.shape[:2], length if every_target else 1))
    assert len(history) == data.steps_per_epoch
    counts = (history >= 0).sum(axis=2)
    np.testing.assert_array_equal(history >= 0, np.arange(length) < counts[..., None])
    assert np.isin(counts, [0, *range(smaller + 1, length + 1)]).all()
    if every_target:
      np.testing.assert_array_equal(targets >= 0, history >= 0)
    else:
      np.testing.assert_array_equal(targets[..., 0] >= 0, counts > 0)
    full = counts > 0
    assert (full[:, :-1]).all()  # At most the last row of a step is empty.
    partial += (~full).sum()
    smaller = length
  assert partial  # The case was there.


@settings(max_examples=40, deadline=None)
@given(
  lengths=st.lists(st.integers(3, 40), min_size=1, max_size=30).filter(lambda x: max(x) > 3),
  batch_size=st.integers(1, 40),
)
def test_every_batch_has_its_share_of_every_group(lengths, batch_size):
  data = _batches(_dataset(lengths), False, max_history=9, batch_size=batch_size)
  steps = data.steps_per_epoch
  assert (steps - 1) * batch_size < data.num_examples <= steps * batch_size
  for group in data.epoch(0):
    per_step = (group["history"][:, 0, :, 0] >= 0).sum(axis=1)
    assert per_step.max() - per_step.min() <= 1
    assert group["history"].shape[2] == -(-per_step.sum() // steps)  # No row more than it takes.


def test_an_epoch_depends_on_its_number_and_the_seed_alone():
  dataset = _dataset(LENGTHS)
  forward, backward = _batches(dataset, False), _batches(dataset, False)
  expected = [forward.epoch(epoch) for epoch in range(3)]
  for epoch in (2, 0, 1):
    chex.assert_trees_all_equal(backward.epoch(epoch), expected[epoch])

  order = lambda groups: [
    row for step in range(len(groups[0]["history"])) for row in _rows(groups, step)
  ]
  orders = [order(g) for g in (*expected[:2], _batches(dataset, False, seed=1).epoch(0))]
  assert orders[0] != orders[1] and orders[0] != orders[2]
  assert sorted(orders[0]) == sorted(orders[1]) == sorted(orders[2])


def test_which_steps_are_short_changes_with_the_epoch():
  data = _batches(_dataset([9] * 7), False, max_history=1, batch_size=10)  # 42 examples, 5 steps.
  short = [tuple(np.flatnonzero(data.epoch(e)[0]["history"][:, 0, -1, 0] < 0)) for e in range(9)]
  assert {len(steps) for steps in short} == {3} and len(set(short)) > 1


def test_examples_that_do_not_fit_raise():
  items = np.arange(9, dtype=np.int32)
  kwargs = dict(batch_size=2, lengths=(2, 3), seed=0, every_target=False)
  with pytest.raises(ValueError, match="no training examples"):
    batches.Batches(items, np.array([], int), np.array([], int), **kwargs)
  with pytest.raises(ValueError, match=r"4 items exceeds the lengths \(2, 3\)"):
    batches.Batches(items, np.array([0, 1]), np.array([3, 5]), **kwargs)


def test_group_lengths_increase_up_to_max_history():
  expected = {1: (20,), 2: (8, 20), 3: (4, 8, 20), 4: (4, 8, 12, 20)}
  for num_groups, lengths in expected.items():
    assert batches.group_lengths(20, num_groups) == lengths
    for max_history in range(1, 60):
      lengths = batches.group_lengths(max_history, num_groups)
      assert lengths[0] >= 1 and lengths[-1] == max_history and len(lengths) <= num_groups
      assert all(a < b for a, b in itertools.pairwise(lengths))
  with pytest.raises(ValueError, match=r"must be one of \(1, 2, 3, 4\), got 5"):
    batches.group_lengths(20, 5)


def test_micro_batches_hold_the_rows_in_order_wherever_they_are_padded():
  dataset = _dataset([9] * 40)  # 240 examples, 6 of each length.
  whole = _batches(dataset, False, batch_size=60).epoch(0)
  for micro_batch_size, row_multiple in itertools.product((1, 4, 7, 60), (1, 2, 8)):
    layout = dict(micro_batch_size=micro_batch_size, row_multiple=row_multiple)
    plain = _batches(dataset, False, batch_size=60, micro_batch_size=micro_batch_size).epoch(0)
    padded = _batches(dataset, False, batch_size=60, **layout).epoch(0)
    for one, few, more in zip(whole, plain, padded, strict=True):
      _, num_micro, size, _ = few["history"].shape
      assert size <= micro_batch_size and num_micro * size < one["history"].shape[2] + num_micro
      assert more["history"].shape[2] == -(-size // row_multiple) * row_multiple
      for name, x in more.items():
        np.testing.assert_array_equal(x[:, :, :size], few[name])  # Whatever the row_multiple.
        assert (x[:, :, size:] == -1).all()
        flat = few[name].reshape(len(x), -1, x.shape[-1])
        np.testing.assert_array_equal(flat[:, : one[name].shape[2]], one[name][:, 0])


@pytest.mark.parametrize("distinct", [False, True])
def test_shares_put_side_by_side_are_the_whole(distinct):
  dataset = _dataset(LENGTHS)

  def epoch(share):
    layout = dict(micro_batch_size=4, row_multiple=6, share=share)
    data = _batches(dataset, True, batch_size=9, **layout)
    return data.epoch_with_distinct_items(1, dataset.num_items) if distinct else data.epoch(1)

  parts = [epoch((index, 3)) for index in range(3)]
  together = jax.tree.map(lambda *x: np.concatenate(x, axis=2), *parts)
  chex.assert_trees_all_equal(together, epoch((0, 1)))
  with pytest.raises(ValueError, match="4 parts do not divide 6 rows"):
    epoch((0, 4))


@pytest.mark.parametrize(
  ("num_items", "row_multiple", "size"),
  [(2000, 1, 1024), (700, 8, 704), (100_000, 2, 1024), (700, 6, 708)],
)
def test_distinct_items_and_indices_into_them(num_items, row_multiple, size):
  rng = np.random.default_rng(0)
  few = rng.permutation(num_items)[:601].astype(np.int32)
  items = np.concatenate([few, rng.choice(few, 5399)])
  lengths = rng.integers(1, 37, 1000)
  starts = rng.integers(0, len(items) - 37, 1000)
  starts[:37], lengths[:37] = np.arange(37) * 36, 36  # Every item is there.
  data = batches.Batches(
    items,
    starts,
    starts + lengths,
    batch_size=500,
    lengths=(11, 37),
    seed=0,
    every_target=True,
    micro_batch_size=70,
    row_multiple=row_multiple,
  )
  given_groups = data.epoch(3)
  out = data.epoch_with_distinct_items(3, num_items)
  chex.assert_shape(out["items"], (2, 1, size))
  chex.assert_shape(out["log_q"], out["items"].shape)
  chex.assert_type(out["log_q"], np.float32)
  chex.assert_type(jax.tree.leaves((out["items"], out["groups"])), np.int32)
  for step, items in enumerate(out["items"][:, 0]):
    used = {x for g in given_groups for array in g.values() for x in array[step].ravel().tolist()}
    used -= {-1}
    assert items[: len(used)].tolist() == sorted(used)
    assert (items[len(used) :] == -1).all()  # Behind the items, padding only.
    for given_group, group in zip(given_groups, out["groups"], strict=True):
      for name, index in group.items():
        rebuilt = np.where(index[step] >= 0, items[index[step]], -1)
        np.testing.assert_array_equal(rebuilt, given_group[name][step])


@pytest.mark.parametrize("batch_size", [100, 6, 3])
def test_log_q_is_how_often_batches_hold_an_item(batch_size):
  rng = np.random.default_rng(1)
  num_items = 97
  lengths = rng.integers(3, 19, 40)
  # Half are item 0, and each comes twice in a row, which makes no batch hold it more often.
  skewed = rng.integers(0, num_items, lengths.sum()) * rng.integers(0, 2, lengths.sum())
  skewed = np.repeat(skewed, 2)[: lengths.sum()]
  dataset = make_dataset(
    "toy",
    user_ids=np.arange(len(lengths)).astype(str),
    item_ids=np.arange(num_items).astype(str),
    items=skewed.astype(np.int32),
    offsets=np.cumsum([0, *lengths]),
    features={},
    titles=np.full(num_items, ""),
  )
  data = _batches(dataset, every_target=True, batch_size=batch_size)
  epochs, steps = 400, data.steps_per_epoch
  times, log_q = np.zeros(num_items), np.full(num_items, np.nan)
  for epoch in range(epochs):
    out = data.epoch_with_distinct_items(epoch, num_items)
    held = out["items"] >= 0
    assert not out["log_q"][~held].any()
    times += np.bincount(out["items"][held], minlength=num_items)
    log_q[out["items"][held]] = out["log_q"][held]
  held = times > 0
  expected, found = np.exp(log_q[held]), times[held] / (epochs * steps)
  # Dealt without replacement, an item's examples meet more rarely than by chance: beside the error
  # of so many draws there is that of the formula, largest in batches of three.
  error = np.sqrt(expected * (1 - expected) / (epochs * steps))
  assert np.all(np.abs(found - expected) <= 5 * error + 0.08 * expected)
  if batch_size == 100:  # All examples.
    assert steps == 1 and np.all(expected == 1)
  else:
    assert expected.max() > 3 * expected.min()


def test_few_items_need_little_padding():
  assert [batches.distinct_size(n, 70, 1) for n in (1, 70)] == [128, 128]
  assert [batches.distinct_size(n, 10_000, 1) for n in (1, 512, 513)] == [512, 512, 1024]

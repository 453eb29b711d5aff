import numpy as np
import pytest

from bbqrec_jax.data.dataset import (
  Features,
  histories,
  make_dataset,
  sequence_fingerprint,
  train_counts,
)

FIELDS = dict(
  name="shop",
  user_ids=np.array(["x", "y"]),
  item_ids=np.array(["a", "b", "c"]),
  items=np.array([0, 1, 2, 2, 1, 0, 1], np.int32),
  offsets=np.array([0, 3, 7]),
  features={"text": Features(np.eye(3, 5, dtype=np.float32), np.ones(3, bool))},
  titles=np.array(["A", "B", ""]),
)


def test_the_fingerprint_depends_on_every_field():
  text = FIELDS["features"]["text"]
  others = dict(
    name="store",
    user_ids=np.array(["x", "z"]),
    item_ids=np.array(["a", "bc", ""]),
    items=np.array([0, 1, 2, 2, 1, 0, 2], np.int32),
    offsets=np.array([0, 4, 7]),
    features={"image": text},
    titles=np.array(["A", "B", "C"]),
  )
  prints = {make_dataset(**FIELDS | {name: other}).fingerprint for name, other in others.items()}
  doubled = Features(2 * text.values, text.present)
  prints.add(make_dataset(**FIELDS | dict(features={"text": doubled})).fingerprint)
  prints.add(make_dataset(**FIELDS).fingerprint)
  assert len(prints) == len(others) + 2
  assert make_dataset(**FIELDS).fingerprint in prints


def test_the_sequences_fingerprint_knows_who_chose_what_when_and_nothing_else():
  base = sequence_fingerprint(make_dataset(**FIELDS))
  numbered_otherwise = dict(  # Users y, x; items c, a, b.
    user_ids=np.array(["y", "x"]),
    item_ids=np.array(["c", "a", "b"]),
    items=np.array([0, 2, 1, 2, 1, 2, 0], np.int32),
    offsets=np.array([0, 4, 7]),
    features={},
    name="store",
    titles=np.array(["", "", "B"]),
  )
  assert sequence_fingerprint(make_dataset(**FIELDS | numbered_otherwise)) == base
  others = [
    dict(user_ids=np.array(["x", "z"])),
    dict(user_ids=np.array(["y", "x"])),
    dict(item_ids=np.array(["a", "b", "d"])),
    dict(item_ids=np.array(["b", "a", "c"])),
    dict(items=np.array([0, 1, 2, 2, 0, 1, 1], np.int32)),
    dict(offsets=np.array([0, 4, 7])),
  ]
  prints = {sequence_fingerprint(make_dataset(**FIELDS | other)) for other in others}
  assert len(prints | {base}) == len(others) + 1


def test_modalities_come_in_order_and_empty_ones_are_left_out():
  text = FIELDS["features"]["text"]
  none = Features(np.zeros((3, 2), np.float32), np.zeros(3, bool))
  both = make_dataset(**FIELDS | dict(features={"image": text, "text": text}))
  assert list(both.features) == ["text", "image"]
  assert list(make_dataset(**FIELDS | dict(features={"text": text, "image": none})).features) == [
    "text"
  ]


@pytest.mark.parametrize(
  "changes",
  [
    dict(items=np.array([0, 1, 2, 2, 1, 0, 3], np.int32)),
    dict(items=np.array([0, 1, 2, 2, 1, 0, -1], np.int32)),
    dict(offsets=np.array([0, 2, 7])),
    dict(offsets=np.array([0, 3, 6])),
    dict(offsets=np.array([0, 7])),
    dict(titles=np.array(["A"])),
    dict(features={"text": Features(np.ones((2, 5), np.float32), np.ones(2, bool))}),
  ],
)
def test_fields_that_do_not_fit_are_refused(changes):
  with pytest.raises(ValueError):
    make_dataset(**FIELDS | changes)


def test_histories_and_counts_by_hand():
  dataset = make_dataset(**FIELDS)
  history, target = histories(dataset, "test", 3)
  assert history.tolist() == [[0, 1, -1], [2, 1, 0]]
  assert target.tolist() == [2, 1]
  history, target = histories(dataset, "valid", 1)
  assert history.tolist() == [[0], [1]]
  assert target.tolist() == [1, 0]
  assert train_counts(dataset).tolist() == [1, 1, 1]
  with pytest.raises(ValueError, match="split"):
    histories(dataset, "train", 3)

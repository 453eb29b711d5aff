"""popularity and item_knn against counting by hand."""

import collections
import math

import numpy as np
import pytest

from bbqrec_jax.data import synthetic
from bbqrec_jax.data.dataset import histories
from bbqrec_jax.models import item_knn, popularity

T = 6


@pytest.fixture(scope="module")
def dataset():
  return synthetic.load(num_users=40, num_items=23, mean_length=6.0, modalities=())


@pytest.fixture(scope="module")
def training(dataset):
  return [dataset.sequence(user)[:-2].tolist() for user in range(dataset.num_users)]


def test_popularity_orders_by_training_counts(dataset, training):
  counts = collections.Counter(item for items in training for item in items)
  order = sorted(range(dataset.num_items), key=lambda item: (-counts[item], item))
  model = popularity.Model()
  history, _ = histories(dataset, "test", T)
  scores = np.asarray(model.scores(model.fit(dataset), history))
  assert scores.shape == (dataset.num_users, dataset.num_items)
  for row in scores:
    assert np.argsort(-row, kind="stable").tolist() == order


def cosines(training, num_items):
  users = [{user for user, items in enumerate(training) if i in items} for i in range(num_items)]
  found = np.zeros((num_items, num_items))
  for i, j in np.ndindex(*found.shape):
    if i != j and users[i] and users[j]:
      found[i, j] = len(users[i] & users[j]) / math.sqrt(len(users[i]) * len(users[j]))
  return found


@pytest.mark.parametrize("num_neighbours", [4, 50])
def test_item_knn_sums_the_cosines_of_the_nearest(dataset, training, num_neighbours):
  similar = cosines(training, dataset.num_items)
  for i, row in enumerate(similar):
    nearest = sorted(range(len(row)), key=lambda j: (-round(row[j], 9), j))[:num_neighbours]
    similar[i] = [value if j in nearest else 0.0 for j, value in enumerate(row)]
  model = item_knn.Model(num_neighbours=num_neighbours, decay=0.5)
  history, _ = histories(dataset, "valid", T)
  scores = model.scores(model.fit(dataset), history)
  for items, row in zip(history, scores):
    items = items[items >= 0].tolist()
    expected = sum(0.5**age * similar[item] for age, item in enumerate(reversed(items)))
    np.testing.assert_allclose(row, expected, atol=1e-6)

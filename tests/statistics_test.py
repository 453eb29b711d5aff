import dataclasses

import numpy as np
import pytest

from bbqrec_jax.data import statistics
from bbqrec_jax.data.dataset import Features, make_dataset


@pytest.fixture
def dataset():
  present = np.array([True, False, True])
  text = Features(np.where(present[:, None], 1.0, 0.0) * np.ones((3, 2), np.float32), present)
  return make_dataset(
    name="beauty",
    user_ids=np.array(["x", "y"]),
    item_ids=np.array(["a", "b", "c"]),
    items=np.array([0, 1, 2, 0, 1, 1, 2], np.int32),
    offsets=np.array([0, 3, 7]),
    features={"text": text},
    titles=np.array(["", "", ""]),
  )


def test_what_is_counted(dataset):
  assert statistics.statistics(dataset) == statistics.Table1(2, 3, 7, 0, 2, 3.5)


def test_the_paper_stands_beside_its_own_datasets_only(dataset):
  text = statistics.table1(dataset)
  assert "(paper: 12,101, differs)" in text
  assert "3.50  (paper: 8.88, differs)" in text
  assert "paper" not in statistics.table1(dataclasses.replace(dataset, name="shop"))


def test_equal_numbers_and_the_misprint(monkeypatch, dataset):
  toys = dataclasses.replace(dataset, name="toys")
  released = statistics.PAPER["toys"]._replace(interactions=167_597)
  monkeypatch.setattr(statistics, "statistics", lambda _: released)
  text = statistics.table1(toys)
  assert "167,597  (paper: 169,597, a misprint of 167,597)" in text
  assert "11,924  (paper: 11,924)" in text
  assert "differs" not in text

"""Systems that score all items, through the whole program: they run, learn, and leave records."""

import importlib
import json

import numpy as np
import pytest
from ml_collections import config_dict

from bbqrec_jax import main, metrics, recommend
from bbqrec_jax.data import item_vectors
from bbqrec_jax.errors import UserError

RANKERS = ("gru4rec", "sasrec", "bert4rec", "gru4rec_f", "sasrec_f", "nova_bert")
COUNTS = ("popularity", "item_knn")
LEARNING = {"ranker.num_epochs": 60, "ranker.batch_size": 64, "ranker.eval_epochs": 6}


def run(name, arg, workdir, **changes):
  config = importlib.import_module(f"configs.{name}").get_config(arg)
  config.parallel.num_devices = 1
  config.update_from_flattened_dict(changes)
  return config, main.run(config_dict.FrozenConfigDict(config), workdir)


@pytest.mark.parametrize(
  "name",
  ["sasrec", *COUNTS, *[pytest.param(n, marks=pytest.mark.slow) for n in RANKERS if n != "sasrec"]],
)
def test_a_smoke_run_leaves_what_every_run_leaves(tmp_path, name):
  config, results = run(name, "smoke", tmp_path)
  assert results == json.loads((tmp_path / "results.json").read_text())
  ranks = dict(np.load(tmp_path / "ranks.npz"))
  dataset = main.load_dataset(config)
  np.testing.assert_array_equal(ranks["user_ids"], dataset.user_ids)
  for split in ("valid", "test"):
    assert metrics.summary(ranks[split], (5, 10)) == results[split]
  if name == "popularity":
    assert results["test"] == results["popularity"]["test"]
  if name == "item_knn":
    assert results["test"]["recall@10"] > 1.5 * results["popularity"]["test"]["recall@10"]
  if name in RANKERS:
    vectors = item_vectors.load(tmp_path, dataset.item_ids)
    assert vectors.shape == (dataset.num_items, 16) and np.all(np.any(vectors != 0, axis=1))
  with pytest.raises(UserError, match="recommendations come from a run with a generator"):
    recommend.Recommender.load(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", RANKERS)
def test_it_learns_the_synthetic_data(tmp_path, name):
  _, results = run(name, "", tmp_path, **LEARNING)
  assert results["test"]["recall@10"] > 2.5 * results["popularity"]["test"]["recall@10"]

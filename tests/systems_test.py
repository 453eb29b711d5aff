"""Systems beside BBQRec, through the whole program: they run, learn, and leave records."""

import importlib
import json

import numpy as np
import pytest
from ml_collections import config_dict

from bbqrec_jax import main, metrics, recommend
from bbqrec_jax.data import item_vectors
from bbqrec_jax.errors import UserError
from bbqrec_jax.evaluators import ranking

RANKERS = (
  "gru4rec", "sasrec", "bert4rec", "gru4rec_f", "sasrec_f", "nova_bert", "vq_rec", "missrec",
)  # fmt: skip
COUNTS = ("popularity", "item_knn")
GENERATORS = ("tiger", "letter")
FAST = ("sasrec", *COUNTS)
LEARNING = {"ranker.num_epochs": 60, "ranker.batch_size": 64, "ranker.eval_epochs": 6}
# Masked training learns next to nothing for a thousand steps and more.
LEARNING_MASKED = LEARNING | {"ranker.num_epochs": 120, "ranker.eval_epochs": 12}
# Of every prefix by itself, twice: fewer epochs of shorter ones by a smaller model.
LEARNING_PREFIXES = {
  "max_history": 8,
  "ranker.batch_size": 128,
  "pretrainer.batch_size": 256,
  **{
    f"{stage}.{field}": value
    for stage in ("pretrainer", "ranker")
    for field, value in (
      ("model.width", 32),
      ("model.dropout_rate", 0.1),
      ("length_groups", 1),
      ("num_epochs", 5),
      ("eval_epochs", 5),
    )
  },
}


def run(name, arg, workdir, **changes):
  config = importlib.import_module(f"configs.{name}").get_config(arg)
  config.parallel.num_devices = 1
  config.update_from_flattened_dict(changes)
  return config, main.run(config_dict.FrozenConfigDict(config), workdir)


@pytest.mark.parametrize(
  "name",
  [
    *FAST,
    *[pytest.param(n, marks=pytest.mark.slow) for n in (*RANKERS, *GENERATORS) if n not in FAST],
  ],
)
def test_a_smoke_run_leaves_what_every_run_leaves(tmp_path, name):
  config, results = run(name, "smoke", tmp_path)
  assert results == json.loads((tmp_path / "results.json").read_text())
  ranks = dict(np.load(tmp_path / "ranks.npz"))
  dataset = main.load_dataset(config)
  np.testing.assert_array_equal(ranks["user_ids"], dataset.user_ids)
  for split in ranking.SPLITS:
    assert metrics.summary(ranks[split], (5, 10)) == results[split]
  last = config.stages[-1]
  assert 0 < results["stages"][last]["test_seconds"] < results["seconds"][last]
  if name == "popularity":
    assert {split: results[split] for split in ranking.SPLITS} == results["popularity"]
  if name == "item_knn":
    assert results["test"]["recall@10"] > 1.5 * results["popularity"]["test"]["recall@10"]
  if name in RANKERS:
    vectors = item_vectors.load(tmp_path, dataset.item_ids)
    parts = 3 if name == "missrec" else 1  # Of the text, of the image, of the id.
    assert vectors.shape == (dataset.num_items, 16 * parts)
    assert np.all(np.any(vectors != 0, axis=1))
  if name in GENERATORS:
    assert results["codebook"]["signals"] == ["text"]
    history = dataset.item_ids[:2].tolist()
    found = recommend.Recommender.load(tmp_path).recommend([history], k=5)[0]
    assert len(set(found.item_ids)) == 5
  else:
    with pytest.raises(UserError, match="recommendations come from a run with a generator"):
      recommend.Recommender.load(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", RANKERS)
def test_it_learns_the_synthetic_data(tmp_path, name):
  own = dict(missrec=LEARNING_PREFIXES, bert4rec=LEARNING_MASKED, nova_bert=LEARNING_MASKED)
  _, results = run(name, "", tmp_path, **own.get(name, LEARNING))
  assert results["test"]["recall@10"] > 2.5 * results["popularity"]["test"]["recall@10"]

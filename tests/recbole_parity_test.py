"""RecBole beside ours: the settings agree, the same examples are compared, failures are told.

A stand-in answers for RecBole, which has an environment of its own.
"""

import hashlib
import json
import os
import pathlib
import sys
import textwrap

import numpy as np
import pytest

from bbqrec_jax import run_record
from bbqrec_jax.data import atomic, synthetic
from bbqrec_jax.errors import UserError

ANSWERS = textwrap.dedent(
  """
  import json, sys
  for line in sys.stdin:
    request = json.loads(line)
    if request.get("do") == "fail":
      sys.exit("ValueError: of RecBole's own.")
    print(json.dumps({"asked": request, "users": 3}), flush=True)
  """
)


@pytest.fixture
def parity(load):
  return load("recbole_parity")


@pytest.fixture
def dataset():
  return synthetic.load(num_users=60, num_items=40)


@pytest.fixture
def answers(parity, tmp_path, monkeypatch):
  """Starts the stand-in in place of RecBole's driver."""
  path = tmp_path / "answers.py"
  path.write_text(ANSWERS)
  monkeypatch.setattr(parity, "DRIVER", path)
  return lambda: parity.Recbole(sys.executable, dict(a=1), 2, tmp_path)


def test_a_digest_is_of_every_example_whatever_its_order(parity, dataset, monkeypatch):
  monkeypatch.setattr(parity, "MAX_HISTORY", 7)  # Some are longer.
  lines = {split: [] for split in ("train", "valid", "test")}
  for user in reversed(range(dataset.num_users)):
    items = [dataset.item_ids[item] for item in dataset.sequence(user)]
    for n in range(1, len(items)):
      behind = len(items) - 1 - n
      split = {0: "test", 1: "valid"}.get(behind, "train")
      history = items[:n][-parity.MAX_HISTORY :]
      lines[split].append("\t".join([dataset.user_ids[user], *history, items[n]]))
  assert max(len(line.split("\t")) for line in lines["test"]) == parity.MAX_HISTORY + 2
  for split, of_split in lines.items():
    text = "\n".join(sorted(of_split))
    assert parity.digest(dataset, split) == hashlib.sha256(text.encode()).hexdigest()


def test_other_examples_are_not_compared(parity, dataset):
  about = dict(
    users=dataset.num_users,
    items=dataset.num_items,
    interactions=len(dataset.items),
    hides_history=False,
    digests={split: parity.digest(dataset, split) for split in ("train", "valid", "test")},
  )
  parity.check_same(dataset, about)
  for key, other in (("items", 41), ("hides_history", True), ("digests", {})):
    with pytest.raises(UserError, match=f"do not compare: {key} is"):
      parity.check_same(dataset, about | {key: other})


def test_a_step_has_as_many_targets_as_recboles(parity, dataset):
  targets = sum(max(len(dataset.sequence(user)) - 3, 0) for user in range(dataset.num_users))
  windows = sum(
    -(-max(len(dataset.sequence(user)) - 3, 0) // parity.MAX_HISTORY)
    for user in range(dataset.num_users)
  )
  assert parity.batch_size(dataset) == round(2048 * windows / targets)


def test_written_files_are_read_back_as_they_were(parity, dataset, tmp_path):
  parity.write_atomic(dataset, tmp_path, "x")
  again = atomic.load(root=str(tmp_path), name="x", modalities=(), cache_dir=str(tmp_path / "c"))
  np.testing.assert_array_equal(again.items, dataset.items)
  np.testing.assert_array_equal(again.item_ids, dataset.item_ids)
  for split in ("train", "test"):
    assert parity.digest(again, split) == parity.digest(dataset, split)


@pytest.mark.parametrize("model", ["sasrec", "gru4rec", "bert4rec"])
def test_both_sides_have_the_same_settings(parity, tmp_path, model):
  settings = parity.recbole_settings(model, tmp_path, "x", 7, 24)
  fields = parity.our_fields(model, 7, 24)
  config = parity.our_config(model, ("atomic", f"data.root={tmp_path}", "data.name=x"), fields)
  ours = config.ranker.model
  assert settings["hidden_size"] == ours.width == 24
  assert settings["epochs"] == config.ranker.num_epochs == 7
  assert settings["stopping_step"] == config.ranker.patience
  assert settings["valid_metric"].lower() == config.ranker.monitor
  assert settings["MAX_ITEM_LIST_LENGTH"] == config.max_history
  assert settings["user_inter_num_interval"] == f"[{config.data.min_interactions},inf)"
  assert settings["learning_rate"] == config.ranker.optimizer.learning_rate
  assert (config.ranker.loss, settings["loss_type"]) == ("softmax", "CE")
  assert config.ranker.optimizer.weight_decay == 0 and config.data.root == str(tmp_path)
  if model == "gru4rec":
    assert settings["embedding_size"] == ours.hidden_dim == 24
    assert (settings["num_layers"], settings["dropout_prob"]) == (ours.num_layers, 0.3)
  else:
    assert settings["inner_size"] == ours.mlp_dim
    assert (settings["n_layers"], settings["n_heads"]) == (ours.num_layers, ours.num_heads)
    assert settings["hidden_dropout_prob"] == settings["attn_dropout_prob"] == ours.dropout_rate
  json.dumps(settings)


def test_requests_are_answered_one_by_one_and_a_failure_is_told(answers, tmp_path):
  with answers() as recbole:
    assert recbole.about == dict(asked=dict(settings=dict(a=1), threads=2), users=3)
    assert recbole.ask(do="steps", count=4)["asked"] == dict(do="steps", count=4)
    with pytest.raises(UserError, match=r"RecBole failed: ValueError: of RecBole's own\. \(all"):
      recbole.ask(do="fail")
    with pytest.raises(UserError, match="RecBole failed"):
      recbole.ask(do="steps")


def test_a_python_that_is_none_is_told(parity, tmp_path):
  with pytest.raises(UserError, match="--recbole_python=nowhere cannot be run"):
    parity.Recbole("nowhere", {}, 1, tmp_path)


def test_a_finished_training_is_kept_for_its_settings_alone(parity, tmp_path):
  path, made = tmp_path / "fit.json", []
  make = lambda: made.append(1) or dict(epochs=len(made))
  settings = dict(epochs=3, topk=(5, 10))
  assert [parity.kept(path, settings, make)["epochs"] for _ in range(2)] == [1, 1]
  assert parity.kept(path, settings | dict(epochs=4), make) == dict(epochs=2)
  assert run_record.read_json(path)["settings"]["epochs"] == 4


@pytest.mark.slow
def test_recbole_itself(parity, tmp_path):
  python = os.environ.get("RECBOLE_PYTHON")
  if not python:
    pytest.skip("RECBOLE_PYTHON does not name the Python of RecBole's environment.")
  out = tmp_path / "parity.json"
  argv = [f"--recbole_python={python}", f"--workdir={tmp_path}", "--quick", f"--out={out}"]
  harness = sys.modules["lib.harness"]
  options = [*argv, "--models", "sasrec", "--rounds=1"]
  assert harness.main(parity.run, parity.__doc__, parity.add_options, options) == 0
  record = json.loads(pathlib.Path(out).read_text())
  assert set(record["ratios"]) == {"sasrec_recall10", "sasrec_ndcg10", "sasrec_epoch"}
  assert not record["details"]["models"]["sasrec"]["data"]["hides_history"]

"""The whole program, tiny: what a run leaves behind, and what becomes of one that is stopped."""

import hashlib
import json
import os
import pathlib
import re
import signal
import sys

import numpy as np
import pytest

from bbqrec_jax import main, metrics, partition, run_record, validate
from bbqrec_jax.errors import Stopped, UserError
from bbqrec_jax.evaluators import ranking
from bbqrec_jax.tables import systems
from bbqrec_jax.trainers import counts as counting
from tests import smoke_run

METRICS = ("recall@5", "ndcg@5", "recall@10", "ndcg@10")


@pytest.fixture(scope="module")
def finished() -> smoke_run.Finished:
  return smoke_run.finished()


def digests(folder: pathlib.Path) -> dict[str, str]:
  return {
    str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
    for path in folder.rglob("*")
    if path.is_file()
  }


def arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
  with np.load(path, allow_pickle=False) as file:
    return dict(file)


def test_results_say_what_was_reached_and_how(finished):
  results = json.loads((finished.workdir / "results.json").read_text())
  assert results == finished.results
  for split in ranking.SPLITS:
    assert set(results[split]) == set(results["popularity"][split]) == set(METRICS)
    for row in (results[split], results["popularity"][split]):
      assert 0 <= row["recall@5"] <= row["recall@10"] <= 1
      assert row["ndcg@5"] <= row["recall@5"] and row["ndcg@10"] <= row["recall@10"]
  assert list(results["stages"]) == list(finished.config.stages)
  for stage, record in results["stages"].items():
    assert 0 < record["train_seconds"] < results["seconds"][stage]
    assert results["peak_memory_mb"][stage] > 0
    assert record["epochs"] == 2.0
  assert results["codebook"]["num_items"] == 69
  assert results["data"]["table1"]["users"] == 150
  assert {"commit", "command", "date", "versions", "num_devices"} <= set(results["provenance"])


def test_what_changes_while_a_run_goes_on_did_not_make_it(tmp_path, monkeypatch):
  train, sources = counting.train, run_record.provenance()["sources"]

  def change(*args):
    monkeypatch.setattr(run_record, "_PACKAGE", tmp_path)  # As a `git pull` would.
    monkeypatch.setattr(run_record, "now", lambda: "later")
    assert run_record.provenance()["sources"] != sources
    return train(*args)

  monkeypatch.setattr(counting, "train", change)
  main.run(systems.load_config("popularity", "smoke"), tmp_path / "run")
  provenance = run_record.read_json(tmp_path / "run" / "results.json")["provenance"]
  assert provenance["sources"] == sources and provenance["date"] == "later"


def test_the_popularity_baseline_is_a_count(finished):
  dataset = main.load_dataset(finished.config)
  counts = np.zeros(dataset.num_items)
  sequences = [dataset.sequence(user) for user in range(dataset.num_users)]
  for sequence in sequences:
    np.add.at(counts, sequence[:-2], 1)
  order = sorted(range(dataset.num_items), key=lambda item: (-counts[item], item))
  hits = [sequence[-1] in order[:10] for sequence in sequences]
  new = [[item for item in order if item not in sequence[:-1]] for sequence in sequences]
  new_hits = [sequence[-1] in items[:10] for sequence, items in zip(sequences, new)]
  baseline = main.popularity_baseline(dataset)
  assert baseline["test"]["recall@10"] == pytest.approx(np.mean(hits))
  assert baseline["test_unseen"]["recall@10"] == pytest.approx(np.mean(new_hits))
  assert np.mean(new_hits) > np.mean(hits)
  assert baseline == finished.results["popularity"]


def test_the_workdir_holds_everything(finished):
  workdir = finished.workdir
  assert json.loads((workdir / "config.json").read_text())["config"]["max_history"] == 2
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  for stage in finished.config.stages:
    assert any((workdir / "tensorboard" / stage).iterdir())
    assert any((workdir / "checkpoints" / stage).iterdir())
    names = {name for line in lines if line["stage"] == stage for name in line["metrics"]}
    assert {"loss", "grad_norm", "epoch", "valid/recall@10"} <= names
  ids = arrays(workdir / "semantic_ids.npz")
  dataset = main.load_dataset(finished.config)
  np.testing.assert_array_equal(ids["item_ids"], dataset.item_ids)
  assert ids["codes"].shape == (69, 3, 3) and ids["vectors"].shape == (69, 3 * 8)
  assert list(ids["signals"]) == ["id", "text", "image"]
  # A vector is the sum of its code vectors, signal by signal.
  levels = np.arange(3)[None, :, None]
  rebuilt = ids["codebooks"][0, levels, ids["codes"]].sum(axis=1).reshape(69, -1)
  np.testing.assert_allclose(ids["vectors"], rebuilt, atol=1e-6)


def test_ranks_give_the_results(finished):
  ranks = arrays(finished.workdir / "ranks.npz")
  np.testing.assert_array_equal(ranks["user_ids"], main.load_dataset(finished.config).user_ids)
  for split in ranking.SPLITS:
    assert ranks[split].shape == (150,)
    assert metrics.summary(ranks[split], (5, 10)) == finished.results[split]
  for split in ("valid", "test"):  # Nobody has an item twice here.
    assert np.all(ranks[f"{split}_unseen"] <= ranks[split])
    assert np.any(ranks[f"{split}_unseen"] < ranks[split])


def test_running_again_does_nothing_and_says_so(finished, capsys):
  before = digests(finished.workdir)
  assert main.run(finished.config, finished.workdir) == finished.results
  assert "All stages are done" in capsys.readouterr().out
  assert digests(finished.workdir) == before


def test_another_config_is_refused_by_the_name_of_its_key(finished):
  config = smoke_run.make_config(**{"tokenizer.rec_weight": 0.5})
  with pytest.raises(UserError, match=r"config\.tokenizer\.rec_weight is 1\.0 there and 0\.5 here"):
    main.run(config, finished.workdir)


def test_a_run_stopped_in_each_stage_ends_as_if_it_never_was(
  finished, tmp_path, monkeypatch, capsys
):
  num_steps = finished.results["stages"]["tokenizer"]["steps"]
  stops, taken = [3, num_steps + 5], 0  # Neither is at an evaluation.
  compile_chunk = partition.Partition.compile_chunk

  def interrupted(self, train_chunk, state):
    train_chunk = compile_chunk(self, train_chunk, state)

    def wrapped(state, epoch, first, count, *args):
      nonlocal taken
      taken += count
      if stops and taken >= stops[0]:
        del stops[0]
        os.kill(os.getpid(), signal.SIGINT)
      return train_chunk(state, epoch, first, count, *args)

    return wrapped

  monkeypatch.setattr(partition.Partition, "compile_chunk", interrupted)
  saved_at = []
  for stage in ("tokenizer", "generator"):
    with pytest.raises(Stopped, match=f"{stage} is saved at step") as stopped:
      main.run(finished.config, tmp_path)
    saved_at.append(int(re.search(r"step (\d+) of", str(stopped.value)).group(1)))
    assert not (tmp_path / "results.json").exists()
  assert saved_at[0] < num_steps
  results = main.run(finished.config, tmp_path)
  assert f"generator: going on from step {saved_at[1]} of" in capsys.readouterr().out
  assert taken == sum(record["steps"] for record in results["stages"].values())

  for name in ("semantic_ids.npz", "ranks.npz"):
    ours, theirs = arrays(tmp_path / name), arrays(finished.workdir / name)
    assert ours.keys() == theirs.keys()
    for key in ours:
      np.testing.assert_array_equal(ours[key], theirs[key], err_msg=key)
  for key in ("valid", "test", "popularity", "data"):
    assert results[key] == finished.results[key]
  for stage in ("tokenizer", "generator"):
    for key in ("steps", "best_step", "best_valid"):
      assert results["stages"][stage][key] == finished.results["stages"][stage][key]


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_command_says_what_a_stopped_run_needs(tmp_path, monkeypatch, capsys, signum, status):
  def stop(*args):
    raise Stopped("tokenizer is saved at step 3 of 58", signum)

  monkeypatch.setattr(main, "run", stop)
  assert smoke_run.command(smoke_run.make_config(), tmp_path) == status
  said = capsys.readouterr().err
  assert said.strip() == "Stopped: tokenizer is saved at step 3 of 58. The same command goes on."


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_outside_of_training_ends_the_command_at_once(
  tmp_path, monkeypatch, capfd, signum, status
):
  class CannotTellAnyone:
    def __del__(self):  # What is raised in here is printed and dropped.
      os.kill(os.getpid(), signum)

  left = []
  monkeypatch.setattr(os, "_exit", left.append)
  monkeypatch.setattr(main, "run", lambda *args: CannotTellAnyone() and sys.exit(1))
  previous = signal.getsignal(signum)
  with pytest.raises(SystemExit):
    smoke_run.command(smoke_run.make_config(), tmp_path)
  assert left == [status]
  assert signal.getsignal(signum) is previous
  said = capfd.readouterr().err
  assert said.strip() == "Stopped: nothing was lost. The same command goes on."


def test_the_command_shows_metrics_and_examples(finished, capsys):
  assert smoke_run.command(finished.config, finished.workdir) == 0
  said = capsys.readouterr().out
  assert f"{finished.results['test']['recall@10']:.4f}" in said
  assert said.count("chose next") == 3 and said.count("recommended") == 3 * 5


def test_a_workdir_that_another_process_works_on_is_left_alone(tmp_path, capsys):
  config = smoke_run.make_config()
  run_record.claim_workdir(tmp_path, config.to_dict(), main.load_dataset(config).fingerprint)
  with run_record.held(tmp_path):
    before = digests(tmp_path)
    assert smoke_run.command(config, tmp_path) == 1
    assert f"Another process is at work on {tmp_path}" in capsys.readouterr().err
    assert digests(tmp_path) == before
  assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_the_tokenizer_alone_is_a_run(finished, monkeypatch, tmp_path, capsys):
  monkeypatch.setattr(main, "run", lambda *args: finished.results | dict(stages={}))
  config = smoke_run.make_config(stages=("tokenizer",))
  assert smoke_run.command(config, tmp_path) == 0
  assert "recommended" not in capsys.readouterr().out


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    ({"tokenizer.batch_size": 151}, "150 users are fewer than tokenizer.batch_size=151"),
    ({"tokenizer.model.use_id": False, "data.modalities": ()}, "No signal is left"),
    ({"data.source": "synthetics"}, "did you mean 'synthetic'?"),
    ({"tokenizer.monitor": "recal@10"}, "tokenizer.monitor='recal@10' must be one of recall@5"),
    ({"generator.length_groups": 7}, "generator.length_groups=7 must be one of 1, 2, 3, 4"),
    ({"data.mean_length": 2.0}, "mean_length=2.0 must be at least"),
    (
      {"data.mean_length": 3.0, "data.min_interactions": 3},
      "no user has more than 3 interactions; two are held out",
    ),
    ({"data": {"source": "table", "interactions": "nowhere.csv"}}, "nowhere.csv: no such file."),
  ],
)
def test_what_cannot_work_is_said_in_one_line(tmp_path, capsys, changes, said):
  assert smoke_run.command(smoke_run.make_config(**changes), tmp_path / "workdir") == 1
  error = capsys.readouterr().err
  assert error.startswith("Error: ") and error.count("\n") == 1
  assert said in error
  assert not (tmp_path / "workdir").exists()


def test_too_few_codes_are_worth_a_warning_with_numbers(finished, capsys):
  dataset = main.load_dataset(finished.config)
  validate.check_data(finished.config, dataset)
  assert capsys.readouterr().err == ""
  validate.check_data(smoke_run.make_config(num_levels=2, codebook_size=2), dataset)
  said = capsys.readouterr().err
  assert said.startswith("Warning: 2 codes at 2 levels of 3 signals give 64 semantic IDs")
  assert "for 69 items" in said

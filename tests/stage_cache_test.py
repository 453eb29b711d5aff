"""Stages that runs share: what is taken is what would have been made, and nothing else is taken.

Of runs at the same time one makes what they share.
"""

import os
import pathlib
import shutil

import numpy as np
import pytest
from ml_collections import config_dict

from bbqrec_jax import compile_cache, fields, main, record, run_record, stage_cache
from bbqrec_jax.data import semantic_ids
from bbqrec_jax.tables import systems
from bbqrec_jax.trainers import generator, tokenizer
from tests import smoke_run

OTHER_GENERATOR = {"generator.model.dropout_rate": 0.3, "generator.num_epochs": 1}


@pytest.fixture(scope="module")
def finished() -> smoke_run.Finished:
  return smoke_run.finished()


@pytest.fixture
def cache(finished, tmp_path) -> pathlib.Path:
  """A folder with the entry of `finished`'s tokenizer."""
  workdir, folder = tmp_path / "as_it_was", tmp_path / "cache"
  shutil.copytree(finished.workdir, workdir)
  (workdir / "stages" / "generator.json").unlink()
  shutil.rmtree(workdir / "checkpoints" / "generator")
  (workdir / "ranks.npz").unlink()
  cache_of(finished.config, folder).keep(workdir, "tokenizer")
  return folder


def cache_of(config, folder: pathlib.Path, fingerprint: str | None = None):
  fingerprint = fingerprint or main.load_dataset(config).fingerprint
  return stage_cache.StageCache(folder, config.to_dict(), fingerprint)


def names(folder: pathlib.Path) -> set[str]:
  return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def stages_taken(config, folder: pathlib.Path, workdir: pathlib.Path, **kwargs) -> set[str]:
  """The stages that an empty workdir is given."""
  workdir.mkdir()
  cache_of(config, folder, **kwargs).restore(workdir)
  return {path.stem for path in (workdir / "stages").glob("*.json")}


def refuse(*args, **kwargs):
  raise AssertionError("a stage is trained that was there")


def test_a_run_with_the_stage_of_another_ends_as_that(finished, cache, tmp_path, monkeypatch):
  monkeypatch.setattr(tokenizer, "train", refuse)
  workdir = tmp_path / "workdir"
  results = main.run(finished.config, workdir, str(cache))
  for key in ("valid", "test", "codebook", "popularity", "data"):
    assert results[key] == finished.results[key]
  with np.load(workdir / "ranks.npz") as ours, np.load(finished.workdir / "ranks.npz") as theirs:
    for key in theirs:
      np.testing.assert_array_equal(ours[key], theirs[key])
  # It can be told from the record, as can what made it.
  made_by = results["stages"]["tokenizer"].pop("made_by")
  assert {"command", "commit", "date"} <= set(made_by)
  assert results["stages"]["tokenizer"] == finished.results["stages"]["tokenizer"]
  assert "made_by" not in results["stages"]["generator"]
  ours, theirs = ((w / "metrics.jsonl").read_text() for w in (workdir, finished.workdir))
  assert ours.count('"tokenizer"') == theirs.count('"tokenizer"') > 0
  assert any((workdir / "tensorboard" / "tokenizer").iterdir())


def test_a_run_keeps_what_others_go_on_from_and_no_more(finished, tmp_path, monkeypatch, capsys):
  def stop(*args):
    raise KeyboardInterrupt

  cache = tmp_path / "cache"
  with monkeypatch.context() as context:
    context.setattr(generator, "train", stop)
    with pytest.raises(KeyboardInterrupt):
      main.run(finished.config, tmp_path / "run", str(cache))
    context.setattr(tokenizer, "train", refuse)
    assert smoke_run.command(finished.config, tmp_path / "second", cache) == 130
  assert f"tokenizer: taken from {cache}" in capsys.readouterr().out
  (entry,) = cache.iterdir()
  kept = names(entry)
  assert {"stages/tokenizer.json", "semantic_ids.npz", "metrics.jsonl"} <= kept
  assert not any(name in kept for name in ("config.json", "results.json", "stages/generator.json"))
  events = [name for name in kept if name.startswith("tensorboard/tokenizer/")]
  assert events  # All of the stage's, which are written in the background.
  for name in events:
    assert (entry / name).read_bytes() == (tmp_path / "run" / name).read_bytes()
  ours, theirs = (semantic_ids.load(folder) for folder in (entry, finished.workdir))
  np.testing.assert_array_equal(ours.codes, theirs.codes)
  cache_of(finished.config, cache).keep(finished.workdir, "generator")  # Nothing comes after it.
  assert list(cache.iterdir()) == [entry]


@pytest.mark.parametrize(
  "changes",
  [
    {"seed": 1},
    {"max_history": 3},
    {"tokenizer.rec_weight": 0.5},
    {"num_levels": 2},
    {"data.seed": 1},
    {"dtype": "bfloat16"},
  ],
)
def test_what_a_stage_reads_makes_it_another(cache, tmp_path, changes):
  assert stages_taken(smoke_run.make_config(**changes), cache, tmp_path / "workdir") == set()


def test_so_do_other_data_programs_and_machines(finished, cache, tmp_path, monkeypatch):
  def taken(name, **kwargs):
    return stages_taken(finished.config, cache, tmp_path / name, **kwargs)

  assert taken("same") == {"tokenizer"}
  assert taken("data", fingerprint="0" * 64) == set()
  with monkeypatch.context() as context:
    context.setattr(run_record, "_PACKAGE", pathlib.Path(__file__).parent)
    assert taken("sources") == set()
  with monkeypatch.context() as context:
    context.setattr(run_record, "num_cpus", lambda: 77)
    assert taken("cpus") == set()
  with monkeypatch.context() as context:
    context.setattr(compile_cache, "processor", lambda: "another")
    assert taken("processor") == set()


def test_what_only_a_later_stage_reads_makes_no_difference(cache, tmp_path):
  config = smoke_run.make_config(**OTHER_GENERATOR)
  assert stages_taken(config, cache, tmp_path / "generator") == {"tokenizer"}
  config = smoke_run.make_config(stages=("tokenizer",))
  assert stages_taken(config, cache, tmp_path / "alone") == {"tokenizer"}


def test_the_ranker_of_letter_does_not_depend_on_the_length_of_ids(tmp_path):
  def entries(num_levels):
    system = systems.SYSTEMS[f"letter_ids_l{num_levels}"]
    config = systems.load_module(system.config).get_config("smoke")
    config.update_from_flattened_dict(dict(system.overrides))
    return stage_cache.StageCache(tmp_path, config.to_dict(), "0" * 64)._entries

  two, four = entries(2), entries(4)
  assert two[0] == four[0] and two[1] != four[1]


def test_a_workdir_that_has_begun_goes_on_with_its_own(finished, cache, tmp_path):
  for begun in ("checkpoints/tokenizer/3/state", "stages/tokenizer.json"):
    workdir = tmp_path / begun.split("/")[0]
    (workdir / begun).parent.mkdir(parents=True)
    for name in (begun, "config.json"):
      (workdir / name).write_text("{}")
    cache_of(finished.config, cache).restore(workdir)
    assert names(workdir) == {begun, "config.json"}


@pytest.mark.parametrize("moves", [0, 1])  # Nothing, or the checkpoints alone.
def test_a_restoration_that_is_cut_short_loses_nothing(
  finished, cache, tmp_path, monkeypatch, moves
):
  replace, left = os.replace, [moves]

  def cut_short(*args):
    if not left[0]:
      raise OSError(28, "No space left on device")
    left[0] -= 1
    replace(*args)

  workdir = tmp_path / "workdir"
  workdir.mkdir()
  with monkeypatch.context() as context:
    context.setattr(os, "replace", cut_short)
    with pytest.raises(OSError, match="No space left"):
      cache_of(finished.config, cache).restore(workdir)
  assert not (workdir / "stages").exists()
  begun = fields.first_stages(finished.config.to_dict(), 1)  # Nothing else is read by the stage.
  results = main.run(config_dict.FrozenConfigDict(begun), workdir, str(cache))
  assert results["codebook"] == finished.results["codebook"]
  codes = [semantic_ids.load(folder).codes for folder in (workdir, finished.workdir)]
  np.testing.assert_array_equal(*codes)
  assert not list(workdir.glob("*.tmp"))


@pytest.mark.parametrize("how", ["a file", "the list", "bytes"])
def test_an_entry_that_has_lost_files_is_made_again(finished, cache, tmp_path, capsys, how):
  (entry,) = cache.iterdir()
  before = names(entry)
  path = entry / ("files.json" if how == "the list" else "semantic_ids.npz")
  path.write_bytes(path.read_bytes()[:-1]) if how == "bytes" else path.unlink()
  assert stages_taken(finished.config, cache, tmp_path / "first") == set()
  said = f"{entry} has lost files; it is removed and made again.\n"
  assert capsys.readouterr().err == said and not entry.exists()
  cache_of(finished.config, cache).keep(finished.workdir, "tokenizer")
  assert names(entry) >= before
  assert stages_taken(finished.config, cache, tmp_path / "second") >= {"tokenizer"}
  assert not (tmp_path / "second" / "files.json").exists()
  assert capsys.readouterr().err == ""


def test_a_run_that_was_begun_on_other_cpus_leaves_nothing(finished, tmp_path, monkeypatch, capsys):
  folder, workdir = tmp_path / "cache", tmp_path / "workdir"
  with monkeypatch.context() as context:
    context.setattr(run_record, "num_cpus", lambda: 77)
    context.setattr(tokenizer, "train", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
      main.run(finished.config, workdir, str(folder))
  assert capsys.readouterr().err == ""
  main.run(finished.config, workdir, str(folder))
  said = f"num_cpus is 77 there and {run_record.num_cpus()} here"
  assert said in capsys.readouterr().err and not any(folder.iterdir())
  made = record.make_record(workdir)
  cpus = [made_by["num_cpus"] for made_by in (made["provenance"], *made["resumed"])]
  assert cpus == [77, run_record.num_cpus()]


def test_a_folder_that_cannot_be_written_costs_a_line(finished, tmp_path, capsys):
  folder = tmp_path / "file"
  folder.write_text("")
  cache_of(finished.config, folder).keep(finished.workdir, "tokenizer")
  assert capsys.readouterr().err == f"tokenizer: not kept in {folder} (Not a directory).\n"


def test_of_two_runs_that_keep_the_same_one_is_enough(finished, tmp_path, monkeypatch, capsys):
  folder, copytree = tmp_path / "cache", shutil.copytree

  def overtaken(source, target, ignore):
    monkeypatch.undo()
    copytree(source, target, ignore=ignore)
    copytree(target, target.parent / target.name.split(".")[0])

  monkeypatch.setattr(shutil, "copytree", overtaken)
  cache_of(finished.config, folder).keep(finished.workdir, "tokenizer")
  assert capsys.readouterr().err == ""
  (entry,) = folder.iterdir()
  assert "stages/tokenizer.json" in names(entry)


def during_waits(monkeypatch, *events) -> list:
  """Has an event happen at each wait, in order; returns those that are still to come."""
  left = list(events)
  monkeypatch.setattr(stage_cache.time, "sleep", lambda seconds: left.pop(0)())
  return left


def nothing():
  pass


def test_a_run_waits_for_the_one_that_makes_what_it_needs(finished, tmp_path, monkeypatch, capsys):
  folder = tmp_path / "cache"
  first = cache_of(finished.config, folder)
  first.restore(tmp_path)
  left = during_waits(monkeypatch, nothing, lambda: first.keep(finished.workdir, "tokenizer"))
  assert stages_taken(finished.config, folder, tmp_path / "second") >= {"tokenizer"}
  assert not left
  out = capsys.readouterr().out
  assert out.count("tokenizer: another run is making it; this one waits for that.\n") == 1
  assert [path.suffix for path in folder.iterdir()] == [""]  # The entry alone.


def test_a_run_that_another_gives_up_for_makes_it_itself(finished, tmp_path, monkeypatch):
  folder, other = tmp_path / "cache", smoke_run.make_config(seed=1)
  with cache_of(finished.config, folder) as first:
    first.restore(tmp_path)
    assert stages_taken(other, folder, tmp_path / "other") == set()  # Waits for nothing.
    second = cache_of(finished.config, folder)
    left = during_waits(monkeypatch, nothing, lambda: first.__exit__(None, None, None))
    second.restore(tmp_path)
    assert not left
  during_waits(monkeypatch, lambda: second.keep(finished.workdir, "tokenizer"))
  assert stages_taken(finished.config, folder, tmp_path / "third") >= {"tokenizer"}


def test_what_was_made_just_before_the_lock_was_had_is_taken(finished, tmp_path, monkeypatch):
  folder = tmp_path / "cache"
  first, second = (cache_of(finished.config, folder) for _ in range(2))
  first.restore(tmp_path)
  acquire = stage_cache.FileLock.acquire

  def late(lock):
    monkeypatch.undo()
    first.keep(finished.workdir, "tokenizer")
    return acquire(lock)

  monkeypatch.setattr(stage_cache.FileLock, "acquire", late)
  workdir = tmp_path / "workdir"
  workdir.mkdir()
  second.restore(workdir)
  assert (workdir / "stages" / "tokenizer.json").exists()


@pytest.mark.parametrize("resumed", [[], [{}]])  # Under other conditions it would keep nothing.
def test_a_run_that_goes_on_is_waited_for_as_well(finished, tmp_path, monkeypatch, resumed):
  folder, workdir = tmp_path / "cache", tmp_path / "first"
  (workdir / "checkpoints").mkdir(parents=True)
  run_record.write_json(workdir / "config.json", dict(resumed=resumed))
  first = cache_of(finished.config, folder)
  first.restore(workdir)
  waits = [] if resumed else [lambda: first.keep(finished.workdir, "tokenizer")]
  left = during_waits(monkeypatch, *waits)
  taken = stages_taken(finished.config, folder, tmp_path / "second")
  assert not left and ("tokenizer" in taken) == (not resumed)


def test_a_run_that_must_not_wait_does_not(finished, tmp_path, monkeypatch):
  first, second = (cache_of(finished.config, tmp_path / "cache") for _ in range(2))
  first.restore(tmp_path)
  during_waits(monkeypatch)
  second.restore(tmp_path, waits=False)
  second.keep(finished.workdir, "tokenizer")  # Does not end what the first has.
  first.keep(finished.workdir, "tokenizer")


def test_where_locks_are_not_to_be_had_nobody_waits(finished, tmp_path, monkeypatch):
  def fail(lock):
    raise OSError(37, "No locks available")

  monkeypatch.setattr(stage_cache.FileLock, "acquire", fail)
  during_waits(monkeypatch)
  for name in ("first", "second"):
    assert stages_taken(finished.config, tmp_path / "cache", tmp_path / name) == set()


def test_of_several_stages_each_is_waited_for(tmp_path, monkeypatch, capsys):
  """LETTER's: the second run shares two of the first's three stages, the third one of them."""

  def make_cache(**changes):
    config = systems.load_module("letter").get_config("smoke")
    config.update_from_flattened_dict(changes)
    return stage_cache.StageCache(tmp_path / "cache", config.to_dict(), "0" * 64)

  def keep(stage):
    path = workdir / "stages" / f"{stage}.json"
    path.parent.mkdir(exist_ok=True)
    run_record.write_json(path, {})
    first.keep(workdir, stage)

  workdir = tmp_path / "first"
  workdir.mkdir()
  run_record.write_json(workdir / "config.json", {})
  first = make_cache()
  first.restore(workdir)
  changes = ({"generator.temperature": 0.5}, {"rqvae.alignment_weight": 0.5})
  second, third = (make_cache(**change) for change in changes)
  left = during_waits(monkeypatch, nothing, lambda: keep("ranker"))
  third.restore(tmp_path / "third")
  assert not left
  left = during_waits(monkeypatch, nothing, lambda: keep("rqvae"))
  second.restore(tmp_path / "second")
  assert not left
  for name, stages in (("second", {"ranker", "rqvae"}), ("third", {"ranker"})):
    assert {path.stem for path in (tmp_path / name / "stages").iterdir()} == stages
  assert capsys.readouterr().out.count("rqvae: another run is making it") == 1

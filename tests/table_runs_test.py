"""The table's command: what it runs, resumes, refuses and records. Runs are stand-ins."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from bbqrec_jax import table
from bbqrec_jax.errors import Stopped, UserError
from bbqrec_jax.evaluators import ranking
from bbqrec_jax.ranks import unpack
from bbqrec_jax.tables import experiments, options, records, runs, systems, watch
from tests import table_records

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture
def fake(tmp_path, monkeypatch):
  """A folder that runs are made in, in place of bbqrec_jax.main; orders go into SYSTEM.json."""
  folder = table_records.make_fake(tmp_path / "fake")
  monkeypatch.setattr(runs, "PYTHON", (sys.executable, str(folder / "python.py")))
  monkeypatch.setattr(runs, "devices", lambda: [])
  monkeypatch.chdir(ROOT)
  return folder


def order(fake: pathlib.Path, system: str, **orders) -> None:
  (fake / f"{system}.json").write_text(json.dumps(orders))


def started(fake: pathlib.Path) -> list[str]:
  """The commands that were run so far."""
  path = fake / "started.txt"
  return path.read_text().splitlines() if path.exists() else []


def command(tmp_path: pathlib.Path, *args: str) -> int:
  folders = [f"--workdir={tmp_path / 'runs'}", f"--out={tmp_path / 'out'}"]
  return table.main(["--datasets=synthetic", "--seeds=1", *folders, *args])


def test_what_is_missing_is_run_recorded_and_not_run_again(tmp_path, fake, capsys):
  assert command(tmp_path, "--systems=sasrec") == 0
  assert "[1/1] synthetic sasrec seed 0: done after" in capsys.readouterr().out
  assert command(tmp_path, "--systems=sasrec,bbqrec", "--seeds=2") == 0
  printed = capsys.readouterr().out
  assert "[1/4] synthetic sasrec seed 0: recorded before" in printed
  assert "[4/4] synthetic bbqrec seed 1: done after" in printed
  assert len(started(fake)) == 4
  assert started(fake)[0] == (
    "bbqrec_jax.main --config=configs/sasrec.py:data=synthetic --config.seed=0 "
    f"--workdir={tmp_path}/runs/synthetic/sasrec/0 --stage_cache={tmp_path}/runs/stage_cache"
  )
  record = records.read(records.path(tmp_path / "out", "synthetic", "sasrec", 0))
  ranks = unpack(record["test_ranks"]["packed"])
  np.testing.assert_array_equal(ranks <= 10, table_records.some_ranks(0) <= 10)
  assert record["run"]["overrides"] == [] and record["config"]["seed"] == 0
  assert record["provenance"]["commit"] == "c0ffee"
  assert records.quantity(record, "ms_per_user") == pytest.approx(2.0)
  assert "| SASRec | 2 |" in (tmp_path / "out" / "table2.md").read_text()


def test_a_failed_run_is_named_and_the_rest_goes_on(tmp_path, fake, capsys):
  order(fake, "sasrec", status=1, said="Error: no such luck.")
  assert command(tmp_path, "--systems=sasrec,bbqrec") == 1
  printed, said = capsys.readouterr()
  assert "[1/2] synthetic sasrec seed 0: FAILED after" in printed
  assert "Error: no such luck. (all of it: " in printed
  assert "[2/2] synthetic bbqrec seed 0: done" in printed
  assert "Missing: SASRec (`sasrec`): no run." in printed
  assert said.startswith("Failed: synthetic sasrec seed 0; see ")
  log = tmp_path / "runs" / "synthetic" / "sasrec" / "0.log"
  assert log.read_text().splitlines()[1:] == ["beginning", "Error: no such luck."]
  order(fake, "sasrec")
  assert command(tmp_path, "--systems=sasrec,bbqrec") == 0  # Only what failed is run again.
  assert [line.split("/")[1].split(".")[0] for line in started(fake)] == [
    "sasrec",
    "bbqrec",
    "sasrec",
  ]


def test_a_killed_run_and_one_without_results_are_failures(tmp_path, fake, capsys):
  source = "import os, sys\nif 'sasrec' in sys.argv[2]: os.kill(os.getpid(), 9)\n"
  (fake / "python.py").write_text(source)
  assert command(tmp_path, "--systems=sasrec,bbqrec") == 1
  printed = capsys.readouterr().out
  assert "killed by signal 9" in printed
  assert "bbqrec seed 0: FAILED" in printed and "config.json does not exist" in printed


def test_overrides_reach_those_who_know_them_and_the_record(tmp_path, fake):
  changes = ["ranker.num_epochs=3", "smoke", "cpu", "bbqrec:generator.num_epochs=5"]
  assert command(tmp_path, "--systems=sasrec,bbqrec", "--overrides", *changes) == 0
  sasrec, bbqrec = started(fake)
  assert "configs/sasrec.py:data=synthetic,smoke " in sasrec
  assert "--config.ranker.num_epochs=3 " in sasrec and "generator" not in sasrec
  assert "configs/bbqrec.py:data=synthetic,smoke,cpu " in bbqrec
  assert "--config.generator.num_epochs=5 " in bbqrec and "ranker" not in bbqrec
  record = records.read(records.path(tmp_path / "out", "synthetic", "bbqrec", 0))
  assert record["run"]["overrides"] == ["smoke", "cpu", "generator.num_epochs=5"]


def test_a_record_of_other_settings_is_not_taken_for_this_one(tmp_path, fake, capsys):
  assert command(tmp_path, "--systems=sasrec", "--overrides", "smoke") == 0
  capsys.readouterr()
  assert command(tmp_path, "--systems=sasrec", "--overrides") == 1
  said = capsys.readouterr().err
  assert "is a run with the --overrides ['smoke'], not []" in said and said.count("\n") == 1
  assert len(started(fake)) == 1


def test_what_is_added_has_the_overrides_of_what_is_recorded(tmp_path, fake, capsys):
  changes = ["smoke", "bbqrec:generator.num_epochs=5"]
  assert command(tmp_path, "--systems=bbqrec,sasrec", "--overrides", *changes) == 0
  capsys.readouterr()
  out = ("--systems=bbqrec,sasrec,gru4rec", "--seeds=2")
  assert command(tmp_path, *out) == 0
  added = started(fake)[2:]
  expected = dict(gru4rec=("synthetic ",), sasrec=("smoke ",), bbqrec=("smoke ", "num_epochs=5 "))
  assert len(added) == 4
  for line in added:
    system = line.partition("configs/")[2].partition(".py")[0]
    assert all(part in line for part in expected[system])
  assert "synthetic bbqrec: --overrides smoke generator.num_epochs=5, as recorded" in (
    capsys.readouterr().out
  )
  # A variant takes what was changed of the system itself, as it does what was tuned.
  assert command(tmp_path, "--experiment=table4", "--systems=bbqrec_inherited") == 0
  assert "inherited,smoke " in started(fake)[-1] and "num_epochs=5 " in started(fake)[-1]


def test_what_is_recorded_does_not_replace_what_a_variant_is(tmp_path, fake, capsys):
  assert command(tmp_path, "--systems=bbqrec", "--overrides", "num_levels=4") == 0
  capsys.readouterr()
  assert command(tmp_path, "--experiment=figure3", "--systems=bbqrec_l1") == 1
  assert "num_levels of bbqrec_l1 is not to be changed" in capsys.readouterr().err
  assert len(started(fake)) == 1


def test_records_that_do_not_agree_say_nothing_of_what_is_added(tmp_path, fake, capsys):
  assert command(tmp_path, "--systems=sasrec", "--overrides", "smoke") == 0
  first = records.path(tmp_path / "out", "synthetic", "sasrec", 0)
  other = json.loads(first.read_text())
  other["run"] |= dict(seed=1, overrides=[])
  first.with_name("1.json").write_text(json.dumps(other))
  capsys.readouterr()
  assert command(tmp_path, "--systems=sasrec", "--seeds=3") == 1
  said = capsys.readouterr().err
  assert f"{first.with_name('1.json')} is a run with the --overrides [], {first} one with" in said
  assert said.count("\n") == 1 and len(started(fake)) == 1


def test_what_was_tuned_is_used_and_variants_keep_their_own(tmp_path, fake):
  path = tmp_path / "out" / "tuning" / "synthetic" / "bbqrec.json"
  path.parent.mkdir(parents=True)
  choice = {"generator.model.dropout_rate": 0.2}
  path.write_text(json.dumps(dict(choice=choice, trials=[])))
  names = "--systems=bbqrec,bbqrec_no_similarity"
  assert command(tmp_path, names, "--experiment=table4") == 0
  for line, arg in zip(started(fake), ("no_similarity ", "synthetic "), strict=True):
    assert arg in line and "--config.generator.model.dropout_rate=0.2 " in line
  record = records.read(records.path(tmp_path / "out", "synthetic", "bbqrec", 0))
  assert record["run"]["tuned"] == ["generator.model.dropout_rate=0.2"]


def test_what_was_tuned_of_a_stage_that_is_not_run_is_left_out(tmp_path, fake):
  path = tmp_path / "out" / "tuning" / "synthetic" / "letter.json"
  path.parent.mkdir(parents=True)
  choice = {"rqvae.alignment_weight": 0.5, "generator.temperature": 0.9}
  path.write_text(json.dumps(dict(choice=choice, trials=[])))
  assert command(tmp_path, "--systems=letter_ids_l2", "--experiment=table5") == 0
  assert command(tmp_path, "--systems=letter") == 0
  alone, whole = started(fake)
  assert "--config.rqvae.alignment_weight=0.5 " in alone and "temperature" not in alone
  assert "--config.rqvae.alignment_weight=0.5 --config.generator.temperature=0.9 " in whole
  record = records.read(records.path(tmp_path / "out", "synthetic", "letter_ids_l2", 0))
  assert record["run"]["tuned"] == ["rqvae.alignment_weight=0.5"]


RATE, DROPOUT = "ranker.optimizer.learning_rate", "ranker.model.dropout_rate"


@pytest.mark.parametrize("choice", [{DROPOUT: 0.3}, {RATE: 0.002, DROPOUT: 0.3}])
def test_an_override_takes_the_place_of_what_was_tuned(tmp_path, fake, choice):
  path = tmp_path / "out" / "tuning" / "synthetic" / "sasrec.json"
  path.parent.mkdir(parents=True)
  path.write_text(json.dumps(dict(choice=choice, trials=[])))
  args = ("--systems=sasrec", "--overrides", f"{DROPOUT}=0.4")
  assert command(tmp_path, *args) == 0
  (line,) = started(fake)
  assert f"{DROPOUT}=0.4 " in line and f"{DROPOUT}=0.3" not in line
  assert (f"{RATE}=0.002 " in line) == (RATE in choice)
  run = records.read(records.path(tmp_path / "out", "synthetic", "sasrec", 0))["run"]
  rates = [f"{RATE}=0.002"] if RATE in choice else []
  assert (run["overrides"], run["tuned"]) == ([f"{DROPOUT}=0.4"], rates)
  if not rates:  # A stand-in's config knows no rate.
    assert command(tmp_path, *args) == 0 and len(started(fake)) == 1


@pytest.mark.parametrize(
  ("choice", "before", "fits"),
  [
    ({"ranker.model.dropout_rate": 0.5}, [], True),  # What the config had anyway.
    ({"ranker.model.dropout_rate": 0.2}, [], False),
    ({"ranker.model.layers": 2}, [], False),  # A field that the record does not have.
    ({"ranker.model.dropout_rate": 0.5}, ["ranker.model.dropout_rate=0.5"], True),
    ({"ranker.model.dropout_rate": 0.5}, ["ranker.optimizer.learning_rate=0.1"], False),
    ({}, ["ranker.model.dropout_rate=0.5"], False),
  ],
)
def test_a_record_fits_what_was_tuned_if_its_config_has_it(
  tmp_path, fake, capsys, choice, before, fits
):
  table_records.write_record(
    tmp_path / "out", "synthetic", "sasrec", 0, table_records.some_ranks(0),
    run=dict(dataset="synthetic", system="sasrec", seed=0, overrides=[], tuned=before),
    config=dict(
      ranker=dict(model=dict(dropout_rate=0.5)),
      data=dict(features=dict(text=None, image=None)),
    ),
  )  # fmt: skip
  path = tmp_path / "out" / "tuning" / "synthetic" / "sasrec.json"
  path.parent.mkdir(parents=True)
  path.write_text(json.dumps(dict(choice=choice, trials=[])))
  assert command(tmp_path, "--systems=sasrec") == (0 if fits else 1)
  if not fits:
    assert "is a run with the tuned settings" in capsys.readouterr().err
  assert not started(fake)


def test_table_6_times_decoding_once_also_of_a_run_that_is_recorded(tmp_path, fake):
  assert command(tmp_path, "--systems=bbqrec") == 0
  for _ in range(2):
    assert command(tmp_path, "--systems=bbqrec", "--experiment=table6") == 0
  assert [line.split()[0] for line in started(fake)] == [
    "bbqrec_jax.main",
    "bbqrec_jax.main",  # Says that all is done.
    "bbqrec_jax.latency",
  ]
  assert "--num_beams 50 100" in started(fake)[-1]
  assert "0.2500" in (tmp_path / "out" / "table6.md").read_text()


def test_a_run_that_is_made_again_leaves_what_its_record_was(tmp_path, fake):
  assert command(tmp_path, "--systems=bbqrec", "--experiment=table6") == 0
  path = records.path(tmp_path / "out", "synthetic", "bbqrec", 0)
  before = path.read_bytes()
  shutil.rmtree(tmp_path / "runs")  # What it was trained and timed in is gone.
  assert command(tmp_path, "--systems=bbqrec", "--experiment=table2_unseen") == 0
  assert "latency" not in records.read(path)
  assert path.with_name("0.json.before").read_bytes() == before
  assert len(records.read_all(tmp_path / "out", "synthetic", "bbqrec")) == 1


def test_only_ids_are_made_for_table_5(tmp_path, fake):
  assert command(tmp_path, "--experiment=table5", "--systems=bbqrec_ids_l2") == 0
  assert "--config.num_levels=2 --config.stages=('tokenizer',) " in started(fake)[0]
  assert "| BBQRec | 1 | 13 |" in (tmp_path / "out" / "table5.md").read_text()


@pytest.mark.parametrize(
  ("args", "said"),
  [
    (["--systems=sasrek"], "--systems=sasrek: table2 is of popularity, item_knn,"),
    (["--systems="], "--systems=: table2 is of"),
    (["--overrides", "smoek"], "--overrides: 'smoek' fits none of popularity,"),
    (["--overrides", "ranker.epochs=3"], "'ranker.epochs=3' fits none of"),
    (["--overrides", "tiger:smoke"], "'tiger:smoke' fits none of"),
    (["--datasets=beauty", "--root=nowhere"], "nowhere/beauty/beauty.inter does not exist"),
    (["--datasets=beuaty"], "data='beuaty': the data are one of"),
    (["--datasets=beuaty", "--overrides", "smoke"], "data='beuaty': the data are one of"),
    (["--overrides", "seed=5"], "seed of popularity is not to be changed"),
    (
      ["--experiment=table5", "--systems=bbqrec_ids_l2", "--overrides", "num_levels=3"],
      "num_levels of bbqrec_ids_l2 is not to be changed",
    ),
    (["--workdir=/dev/null/runs"], "/dev/null/runs cannot be made (Not a directory)"),
    (["--out=pyproject.toml"], "pyproject.toml cannot be made (File exists)"),
  ],
)
def test_mistakes_are_told_in_a_sentence(tmp_path, fake, capsys, args, said):
  systems_ = [] if any("--systems" in arg for arg in args) else ["--systems=popularity,sasrec"]
  assert command(tmp_path, *systems_, *args) == 1
  error = capsys.readouterr().err
  assert error.startswith("Error: ") and error.count("\n") == 1 and said in error
  assert not started(fake)


@pytest.mark.parametrize(
  ("args", "said"),
  [
    (["--workdir="], "argument --workdir: is empty; give a folder"),
    (["--out="], "argument --out: is empty; give a folder"),
    (["--seeds=x"], "argument --seeds: 'x' is no whole number from 1"),
    (["--jobs=0"], "argument --jobs: '0' is no whole number from 1"),
  ],
)
def test_what_is_no_folder_or_no_number_is_refused(tmp_path, fake, capsys, args, said):
  with pytest.raises(SystemExit) as exit_:
    command(tmp_path, "--systems=sasrec", *args)
  assert exit_.value.code == 2 and said in capsys.readouterr().err and not started(fake)


def test_runs_need_a_workdir(fake, capsys):
  assert table.main(["--datasets=synthetic", "--systems=sasrec"]) == 1
  assert "--workdir is missing" in capsys.readouterr().err and not started(fake)


def test_a_folder_of_the_user_is_found(tmp_path, fake, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  assert command(tmp_path, "--systems=sasrec", "--workdir=~/runs", "--out=~/out") == 0
  assert f"--workdir={tmp_path}/runs/synthetic/sasrec/0 " in started(fake)[0]
  assert records.path(tmp_path / "out", "synthetic", "sasrec", 0).exists()


def test_a_tilde_that_names_no_user_is_left_as_a_shell_leaves_it():
  assert options.folder("~no_such_user/runs") == pathlib.Path("~no_such_user/runs")


def test_atomic_files_are_found_below_the_root(tmp_path, capsys):
  folder = tmp_path / "toys"
  folder.mkdir()
  for name in ("toys.inter", "toys.item", "text_a.npy"):
    (folder / name).touch()
  assert runs.data_of("toys", tmp_path) == (
    "atomic",
    f"data.root={folder}",
    "data.name=toys",
    f"data.features.text={folder}/text_a.npy",
  )
  assert runs.data_of("toys", None) == ("toys",)
  assert runs.data_of("synthetic", tmp_path) == ("synthetic",)
  (folder / "text_b.npy").touch()
  with pytest.raises(UserError, match=r"several files of text features: text_a\.npy, text_b\.npy"):
    runs.data_of("toys", tmp_path)


def job(tmp_path, name: str, source: str, *more: str) -> runs.Job:
  commands = [(sys.executable, "-c", text) for text in (source, *more)]
  return runs.Job(name, tuple(commands), tmp_path / f"{name}.log")


def test_runs_share_the_gpus(tmp_path, monkeypatch):
  monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
  assert runs.devices() == ["4", "7"]
  source = "import os, time; time.sleep(0.3); print(os.environ['CUDA_VISIBLE_DEVICES'])"
  jobs = [job(tmp_path, name, source) for name in "abc"]
  said = [outcome.said for outcome in runs.execute(jobs)]
  assert sorted(said[:2]) == ["4", "7"] and said[2] in ("4", "7")
  assert [x.said for x in runs.execute([job(tmp_path, "d", source)], 1)] == ["4,7"]
  monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
  assert runs.devices() == []


def test_a_command_that_fails_ends_its_job(tmp_path):
  told = tmp_path / "told"
  touch = f"open({str(told)!r}, 'w')"
  outcome = next(runs.execute([job(tmp_path, "a", "raise SystemExit(3)", touch)]))
  assert outcome.status == 3 and not told.exists()
  assert next(runs.execute([job(tmp_path, "b", "pass", touch)])).status == 0
  assert told.exists()


def test_a_terminals_ctrl_c_reaches_no_run_by_itself(tmp_path):
  source = "import os; print(os.getsid(0) == os.getpid())"
  assert next(runs.execute([job(tmp_path, "a", source)])).said == "True"


def test_what_a_run_says_is_shown_while_it_goes_on(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(watch, "LINE_SECONDS", 0.0)
  source = "import time; print('1/2 steps', flush=True); time.sleep(1); print('2/2 steps')"
  assert next(runs.execute([job(tmp_path, "a", source)])).said == "2/2 steps"
  assert "a: 1/2 steps\n" in capsys.readouterr().err


def test_a_signal_stops_all_runs_once_and_starts_no_more(tmp_path):
  saves = (
    "import pathlib, signal, sys, time\n"
    "def save(*args):\n  print('saved'); sys.exit(143)\n"
    "signal.signal(signal.SIGTERM, save)\n"
    f"pathlib.Path({str(tmp_path / 'ready')!r}).touch()\ntime.sleep(30)"
  )
  jobs = [job(tmp_path, "a", saves), job(tmp_path, "b", "print('never')")]

  def interrupt():
    while not (tmp_path / "ready").exists():
      time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGINT)

  previous = signal.getsignal(signal.SIGINT)
  threading.Thread(target=interrupt).start()
  with pytest.raises(Stopped) as stopped:
    list(runs.execute(jobs, 1))
  assert stopped.value.signum == signal.SIGINT
  assert (tmp_path / "a.log").read_text().endswith("saved\n")
  assert not (tmp_path / "b.log").exists()
  assert signal.getsignal(signal.SIGINT) is previous


def test_a_run_that_was_stopped_stops_the_rest(tmp_path, fake, capsys):
  order(fake, "sasrec", status=143, said="Stopped: saved.")
  assert command(tmp_path, "--systems=sasrec,bbqrec") == 143
  assert "The same command goes on." in capsys.readouterr().err
  assert len(started(fake)) == 1


def test_a_reader_that_has_enough_ends_it_without_a_traceback():
  reader, writer = os.pipe()
  os.close(reader)
  argv = (sys.executable, "-m", "bbqrec_jax.table", "--list")
  done = subprocess.run(argv, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True)
  os.close(writer)
  assert done.returncode == 128 + signal.SIGPIPE and done.stderr == ""


def test_the_list_names_every_system_with_files_that_exist(capsys, monkeypatch):
  monkeypatch.chdir(ROOT)
  assert table.main(["--list"]) == 0
  lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
  assert list(lines) == list(systems.SYSTEMS)
  for name in experiments.EXPERIMENTS["table2"].systems:
    files = [part for part in lines[name].split() if part.endswith(".py")]
    assert len(files) >= 2 and all(pathlib.Path(path).exists() for path in files), lines[name]


@pytest.mark.slow
def test_a_table_of_real_runs(tmp_path):
  argv = [sys.executable, "-m", "bbqrec_jax.table", "--datasets=synthetic", "--seeds=1"]
  argv += ["--systems=popularity,sasrec,tiger,bbqrec", "--overrides", "smoke"]
  argv += [f"--workdir={tmp_path / 'runs'}", f"--out={tmp_path / 'out'}"]
  done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stdout + done.stderr
  text = (tmp_path / "out" / "table2.md").read_text()
  assert text in done.stdout and "Missing" not in text
  for name in ("popularity", "sasrec", "tiger", "bbqrec"):
    record = records.read(records.path(tmp_path / "out", "synthetic", name, 0))
    assert {*ranking.SPLITS, "test_ranks", "test_unseen_ranks"} <= set(record)
    assert "bbqrec_jax.main --config=configs/" in record["provenance"]["command"]
    assert records.quantity(record, "ms_per_user") > 0

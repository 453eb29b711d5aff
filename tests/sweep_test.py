"""Tuning: one budget, selection by validation, resumption. Runs are stand-ins."""

import importlib.util
import json
import pathlib
import sys

import pytest

from bbqrec_jax.errors import UserError
from bbqrec_jax.tables import runs, systems, tuning
from configs import common
from tests import table_records

ROOT = pathlib.Path(__file__).resolve().parents[1]
RATE = "ranker.optimizer.learning_rate"
NUM_TRIALS = 4


@pytest.fixture(scope="module")
def sweep():
  spec = importlib.util.spec_from_file_location("sweep", ROOT / "launch" / "sweep.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.fixture
def fake(tmp_path, monkeypatch):
  """Runs whose validation metrics follow from the learning rate, and test metrics from nothing."""
  folder = table_records.make_fake(tmp_path / "fake")
  valid = (RATE, {"0.0005": 0.03, "0.001": 0.05})
  (folder / "sasrec.json").write_text(json.dumps(dict(valid=valid)))
  monkeypatch.setattr(runs, "PYTHON", (sys.executable, str(folder / "python.py")))
  monkeypatch.setattr(runs, "devices", lambda: [])
  monkeypatch.chdir(ROOT)
  return folder


def command(sweep, tmp_path, *args: str) -> int:
  folders = [f"--workdir={tmp_path / 'tuning'}", f"--out={tmp_path / 'out'}"]
  return sweep.main(["--dataset=synthetic", "--systems=sasrec", *folders, *args])


def tuned(tmp_path) -> dict:
  return json.loads((tmp_path / "out" / "tuning" / "synthetic" / "sasrec.json").read_text())


def test_every_system_has_a_sweep_of_the_same_budget_and_of_fields_that_it_has(sweep):
  trials = {s.name: tuning.trials_of(s) for s in (*systems.BASELINES, systems.BBQREC)}
  sweep.check_budget(trials)
  assert {name for name, of_system in trials.items() if not of_system} == {"popularity"}
  for system in (*systems.BASELINES, systems.BBQREC):
    for trial in trials[system.name]:
      changes = systems.as_text(trial)
      assert runs.applicable(system, "synthetic", changes) == changes
    distinct = {json.dumps(trial, sort_keys=True) for trial in trials[system.name]}
    assert len(distinct) == len(trials[system.name]) in (0, NUM_TRIALS)


def test_trials_are_all_combinations():
  trials = []
  common.add_trials(lambda **trial: trials.append(trial), dict(a=(1, 2), b=("x", "y")))
  assert trials == [dict(a=1, b="x"), dict(a=1, b="y"), dict(a=2, b="x"), dict(a=2, b="y")]


def test_validation_alone_chooses_and_the_budget_is_written(sweep, tmp_path, fake, capsys):
  assert command(sweep, tmp_path, "--overrides", "ranker.num_epochs=3") == 0
  assert f"sasrec: {RATE}=0.001 ranker.model.dropout_rate=0.2" in capsys.readouterr().out
  state = tuned(tmp_path)
  assert state["choice"] == {
    RATE: 0.001,
    "ranker.model.dropout_rate": 0.2,
  }  # The earlier of equals.
  assert state["budget"] == dict(
    num_trials=4, seed=0, monitor="valid ndcg@10", overrides=["ranker.num_epochs=3"]
  )
  assert [trial["valid"]["ndcg@10"] for trial in state["trials"]] == [0.03, 0.03, 0.05, 0.05]
  assert [trial["epochs"] for trial in state["trials"]] == [{"ranker": 3.0}] * 4
  assert '"test"' not in json.dumps(state)
  lines = (fake / "started.txt").read_text().splitlines()
  assert all("--config.ranker.num_epochs=3" in line for line in lines)


def test_what_the_test_split_says_is_not_read(sweep, tmp_path, fake):
  assert command(sweep, tmp_path) == 0
  workdir = tmp_path / "tuning" / "synthetic" / "sasrec" / "0"
  results = json.loads((workdir / "results.json").read_text())
  before = sweep.validation_of(workdir)
  del results["test"]
  (workdir / "results.json").write_text(json.dumps(results))
  assert sweep.validation_of(workdir) == before


def test_a_sweep_goes_on_where_it_stopped(sweep, tmp_path, fake, capsys):
  whole = table_records.FAKE_PYTHON
  broken = "import sys\nif 'dropout_rate=0.5' in ' '.join(sys.argv): sys.exit('no.')\n"
  (fake / "python.py").write_text(broken + whole)
  assert command(sweep, tmp_path) == 1
  assert "Failed: synthetic sasrec trial 1" in capsys.readouterr().err
  assert tuned(tmp_path)["choice"] is None  # Not all of the budget is spent.
  (fake / "python.py").write_text(whole)
  assert command(sweep, tmp_path) == 0
  assert "2 of 4 trials were made before." in capsys.readouterr().out
  assert tuned(tmp_path)["choice"] is not None
  assert len((fake / "started.txt").read_text().splitlines()) == 4
  assert command(sweep, tmp_path) == 0
  assert len((fake / "started.txt").read_text().splitlines()) == 4
  assert command(sweep, tmp_path, "--overrides", "smoke") == 1
  assert "is of another budget" in capsys.readouterr().err


def test_a_sweep_goes_on_with_its_own_overrides(sweep, tmp_path, fake):
  whole = table_records.FAKE_PYTHON
  broken = "import sys\nif 'dropout_rate=0.5' in ' '.join(sys.argv): sys.exit('no.')\n"
  (fake / "python.py").write_text(broken + whole)
  assert command(sweep, tmp_path, "--overrides", "smoke") == 1
  (fake / "python.py").write_text(whole)
  assert command(sweep, tmp_path) == 0
  lines = (fake / "started.txt").read_text().splitlines()
  assert len(lines) == 4 and all("smoke" in line for line in lines)
  assert tuned(tmp_path)["budget"]["overrides"] == ["smoke"]


def test_trials_on_other_data_choose_nothing(sweep, tmp_path, fake, capsys):
  path = fake / "0" / "results.json"
  results = json.loads(path.read_text())
  path.write_text(json.dumps(results | dict(data=results["data"] | dict(sequences="s"))))
  assert command(sweep, tmp_path) == 0
  before = tuned(tmp_path)
  assert [trial["sequences"] for trial in before["trials"]] == ["s"] * NUM_TRIALS
  before["trials"][2]["valid"] = before["choice"] = None
  tuning.path(tmp_path / "out", "synthetic", "sasrec").write_text(json.dumps(before))
  path.write_text(json.dumps(results | dict(data=results["data"] | dict(sequences="t"))))
  assert command(sweep, tmp_path, f"--workdir={tmp_path / 'other'}") == 1
  assert "sasrec.json holds trials on other data; give another --out" in capsys.readouterr().out
  assert tuned(tmp_path) == before


def test_unequal_budgets_are_refused(sweep):
  with pytest.raises(UserError, match="they have a 2, b 3"):
    sweep.check_budget(dict(a=[{}] * 2, b=[{}] * 3, c=[]))


@pytest.mark.parametrize(
  ("args", "said"),
  [
    (["--systems=sasrec,sasrek"], "--systems=sasrec,sasrek: they are popularity,"),
    (["--dataset=beuaty"], "data='beuaty': the data are one of"),
    (["--overrides", "smoek"], "'smoek' fits none of sasrec"),
    (["--overrides", f"{RATE}=0.3"], f"'{RATE}=0.3' sets what the trials try"),
    (["--overrides", "seed=3"], "seed of sasrec is not to be changed"),
    (["--workdir=/dev/null/tuning"], "/dev/null/tuning cannot be made (Not a directory)"),
  ],
)
def test_mistakes_are_told_in_a_sentence(sweep, tmp_path, fake, capsys, args, said):
  assert command(sweep, tmp_path, *args) == 1
  error = capsys.readouterr().err
  assert error.startswith("Error: ") and error.count("\n") == 1 and said in error
  assert not (fake / "started.txt").exists()

"""config.json claims a workdir for one run, and no file is ever half written."""

import fcntl
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bbqrec_jax import compile_cache, run_record
from bbqrec_jax.errors import UserError

CONFIG = {"seed": 0, "ks": (5, 10), "tokenizer": {"model": {"num_levels": 3}, "weight": 1.0}}


def test_to_jsonable_takes_arrays_tuples_and_nan():
  obj = {
    "count": np.int64(2), "loss": jnp.float32(0.5), "codes": np.arange(3), "nan": (np.nan, np.inf),
    2: True, "none": None,
  }  # fmt: skip
  assert run_record.to_jsonable(obj) == {
    "count": 2, "loss": 0.5, "codes": [0, 1, 2], "nan": [None, None], "2": True, "none": None,
  }  # fmt: skip
  with pytest.raises(TypeError, match="object"):
    run_record.to_jsonable({"bad": object()})


def test_write_json_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
  path = tmp_path / "a.json"
  run_record.write_json(path, {"a": 1})

  def fail(*_):
    raise OSError("disk full")

  with monkeypatch.context() as patch:
    patch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
      run_record.write_json(path, {"a": 2})
  with pytest.raises(TypeError):
    run_record.write_json(path, {"a": object()})
  assert json.loads(path.read_text()) == {"a": 1}


def test_claim_writes_once_and_the_same_run_may_come_back(tmp_path):
  workdir = tmp_path / "runs" / "a"
  run_record.claim_workdir(workdir, CONFIG, "f00d")
  first = (workdir / "config.json").read_text()
  record = json.loads(first)
  assert record["config"] == {**CONFIG, "ks": [5, 10]}
  assert record["data"] == {"fingerprint": "f00d"}
  assert record["provenance"]["versions"]["numpy"] == np.__version__
  run_record.claim_workdir(workdir, CONFIG, "f00d")
  assert (workdir / "config.json").read_text() == first
  assert [path.name for path in workdir.iterdir()] == ["config.json"]


def test_where_there_are_no_locks_a_workdir_is_still_used(tmp_path, monkeypatch):
  def fail(*_):
    raise OSError("no locks available")

  monkeypatch.setattr(fcntl, "flock", fail)
  with run_record.held(tmp_path), run_record.held(tmp_path):
    pass
  monkeypatch.undo()
  with run_record.held(tmp_path), pytest.raises(UserError, match="Another process is at work"):
    with run_record.held(tmp_path):
      pass
  with run_record.held(tmp_path):  # It is free again.
    pass


@pytest.mark.parametrize(
  ("config", "fingerprint", "said"),
  [
    ({**CONFIG, "seed": 1}, "f00d", "config.seed is 0 there and 1 here"),
    ({**CONFIG, "ks": (5,)}, "f00d", r"config.ks is \[5, 10\] there and \[5\] here"),
    (
      {**CONFIG, "tokenizer": {"model": {"num_levels": 4}, "weight": 2.0}},
      "f00d",
      "config.tokenizer.model.num_levels is 3 there and 4 here",
    ),
    ({**CONFIG, "new": None}, "f00d", "config.new is absent there and None here"),
    ({"seed": 0, "ks": (5, 10)}, "f00d", "config.tokenizer is .* there and absent here"),
    (CONFIG, "beef", "data.fingerprint is 'f00d' there and 'beef' here"),
  ],
)
def test_another_run_is_refused_by_its_first_differing_key(tmp_path, config, fingerprint, said):
  run_record.claim_workdir(tmp_path, CONFIG, "f00d")
  with pytest.raises(UserError, match=said):
    run_record.claim_workdir(tmp_path, config, fingerprint)


def test_workdirs_that_cannot_be_used_are_refused(tmp_path, monkeypatch):
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match=r"Cannot write to workdir .*Not a directory"):
    run_record.claim_workdir(tmp_path / "file" / "a", CONFIG, "f00d")
  with pytest.raises(UserError, match=r"Cannot write to workdir .*File exists"):
    run_record.claim_workdir(tmp_path / "file", CONFIG, "f00d")
  monkeypatch.setattr(os, "access", lambda *_: False)  # Root may write anywhere.
  with pytest.raises(UserError, match=r"Cannot write to workdir .*permission denied"):
    run_record.claim_workdir(tmp_path, CONFIG, "f00d")


@pytest.mark.parametrize("text", ["{", "", "[]"])
def test_broken_config_json_is_refused(tmp_path, text):
  (tmp_path / "config.json").write_text(text)
  with pytest.raises(UserError, match="is not"):
    run_record.claim_workdir(tmp_path, CONFIG, "f00d")


def test_what_goes_on_under_other_conditions_is_told_and_kept_once(tmp_path, monkeypatch, capsys):
  path = tmp_path / "config.json"
  run_record.claim_workdir(tmp_path, CONFIG, "f00d")
  first = json.loads(path.read_text())
  run_record.resume(tmp_path)
  assert json.loads(path.read_text()) == first and capsys.readouterr().err == ""
  assert run_record.is_of_one_piece(tmp_path)
  with monkeypatch.context() as context:
    context.setattr(run_record, "num_cpus", lambda: 77)
    for _ in range(2):
      run_record.resume(tmp_path)
      said = f"num_cpus is {first['provenance']['num_cpus']} there and 77 here. The run goes on"
      assert said in capsys.readouterr().err
  (later,) = json.loads(path.read_text())["resumed"]
  assert later["num_cpus"] == 77 and "command" in later
  run_record.resume(tmp_path)  # As it was begun; it stays a run of two pieces.
  assert capsys.readouterr().err == ""
  assert json.loads(path.read_text()) == first | {"resumed": [later]}
  assert not run_record.is_of_one_piece(tmp_path)
  monkeypatch.setattr(run_record, "_PACKAGE", tmp_path)  # Other sources; another processor.
  monkeypatch.setattr(compile_cache, "processor", lambda: "another")
  run_record.resume(tmp_path)
  told = capsys.readouterr().err
  assert "sources is " in told and "processor is " in told and "num_cpus" not in told
  assert len(json.loads(path.read_text())["resumed"]) == 2


def test_settings_that_change_bits_are_conditions(tmp_path, monkeypatch, capsys):
  monkeypatch.delenv("XLA_FLAGS", raising=False)
  run_record.claim_workdir(tmp_path, CONFIG, "f00d")
  assert jax.config.jax_default_matmul_precision is None
  with jax.default_matmul_precision("highest"):
    run_record.resume(tmp_path)
  said = "settings.jax_default_matmul_precision is None there and 'highest' here. The run goes on"
  assert said in capsys.readouterr().err
  monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
  run_record.resume(tmp_path)
  said = "settings.XLA_FLAGS is None there and '--xla_cpu_enable_fast_math=true' here. The run goes"
  assert said in capsys.readouterr().err


@pytest.mark.parametrize("changes", [{"provenance": []}, {"resumed": {}}, {"resumed": None}])
def test_a_workdir_that_does_not_tell_its_processes_is_refused(tmp_path, changes):
  run_record.claim_workdir(tmp_path, CONFIG, "f00d")
  path = tmp_path / "config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))
  with pytest.raises(UserError, match="is damaged, what it says of its processes"):
    run_record.resume(tmp_path)


def test_every_change_of_a_module_makes_other_sources(tmp_path, monkeypatch):
  monkeypatch.setattr(run_record, "_PACKAGE", tmp_path)
  (tmp_path / "models").mkdir()
  seen = set()
  for name, text in [("a.py", "x"), ("a.py", "y"), ("models/b.py", "x"), ("models/b.py", "")]:
    (tmp_path / name).write_text(text)
    seen.add(run_record.provenance()["sources"])
  assert len(seen) == 4
  (tmp_path / "a.pyc").write_text("x")  # Only sources count.
  assert run_record.provenance()["sources"] in seen


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux alone binds processes")
def test_provenance_counts_the_cpus_that_the_process_is_bound_to():
  allowed = os.sched_getaffinity(0)
  try:
    os.sched_setaffinity(0, {min(allowed)})
    assert run_record.provenance()["num_cpus"] == 1
  finally:
    os.sched_setaffinity(0, allowed)
  assert run_record.provenance()["num_cpus"] == len(allowed)


def test_provenance_agrees_with_git_and_outlives_its_absence(monkeypatch):
  record = run_record.provenance()
  assert set(record["versions"]) >= {"python", "jax", "jaxlib", "flax", "optax", "numpy"}
  assert record["num_devices"] == 8 and record["device_kind"] == "cpu"  # conftest.py's.
  git = ["git", "-C", os.path.dirname(run_record.__file__), "rev-parse", "HEAD"]
  head = subprocess.run(git, capture_output=True, text=True)
  assert record["commit"] in (None, head.stdout.strip())
  monkeypatch.setenv("PATH", "")
  assert run_record.provenance()["commit"] is None


def test_peak_memory_counts_what_was_held():
  before = run_record.peak_memory_mb()
  held = np.ones(2**25 + int(before * 2**17))  # 256 MiB more than the peak so far.
  after = run_record.peak_memory_mb()
  assert held.nbytes / 2**20 < after < held.nbytes / 2**20 + before + 64
  assert "resource" in sys.modules

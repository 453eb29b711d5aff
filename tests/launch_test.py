"""The launch scripts, the packaging, and the arguments of configs."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib

import pytest

from configs import common

ROOT = pathlib.Path(__file__).resolve().parents[1]
SCRIPTS = ("launch/setup", "launch/run", "launch/test", ".ci/run")


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_executable_and_parse(script):
  assert os.access(ROOT / script, os.X_OK)
  subprocess.run(["bash", "-n", ROOT / script], check=True)
  if shutil.which("shellcheck"):
    subprocess.run(["shellcheck", ROOT / script], check=True)


@pytest.fixture
def clone(tmp_path):
  """A fresh copy of what the scripts need, beside stand-ins that are the only Pythons on PATH.

  A stand-in's `-m venv` makes a .venv whose Python writes its arguments, each before a "|", into
  calls.txt.
  """
  for name in (*SCRIPTS, "requirements.txt", "pyproject.toml"):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    shutil.copy(ROOT / name, tmp_path / name)
  bin_dir = tmp_path / "bin"
  bin_dir.mkdir()
  for tool in ("bash", "cat", "chmod", "cksum", "dirname", "env", "mkdir"):
    (bin_dir / tool).symlink_to(shutil.which(tool))

  def add_python(name: str, body: str) -> None:
    (bin_dir / name).write_text(f"#!/usr/bin/env bash\n{body}")
    (bin_dir / name).chmod(0o755)

  def run(script: str, *args: str, **env: str) -> subprocess.CompletedProcess:
    env = {"PATH": str(bin_dir), "HOME": str(tmp_path), **env}
    return subprocess.run([tmp_path / script, *args], env=env, capture_output=True, text=True)

  def calls() -> list[str]:
    lines = (tmp_path / "calls.txt").read_text().splitlines()
    return [line for line in lines if not line.startswith(("-c", "--version"))]

  class Clone:
    pass

  Clone.path, Clone.add_python, Clone.run, Clone.calls = tmp_path, add_python, run, calls
  return Clone


MAKES_VENV = r"""
if [[ "$1" == -m ]]; then
  mkdir -p .venv/bin
  cat > .venv/bin/python <<END
#!/usr/bin/env bash
(printf "%s|" "\$@"; echo) >> calls.txt
$VENV_PYTHON
END
  chmod +x .venv/bin/python
fi
"""


def test_setup_skips_pythons_that_do_not_work_and_installs_once(clone):
  clone.add_python("python3.13", "exit 127")
  clone.add_python("python3.12", MAKES_VENV)
  for _ in range(2):
    done = clone.run("launch/run")
    assert done.returncode == 0, done.stderr
  quickstart = "--config=configs/quickstart.py|--workdir=runs/quickstart|"
  install, *runs = clone.calls()
  assert install.endswith("|install|--quiet|--disable-pip-version-check|--editable|.|")
  assert runs == [f"-m|bbqrec_jax.main|{quickstart}"] * 2


def test_arguments_pass_through_and_changed_requirements_install_again(clone):
  clone.add_python("python3", MAKES_VENV)
  clone.run("launch/run", "--workdir=runs/a b", BBQREC_EXTRAS="gpu,text")
  clone.run(".ci/run", "-k", "trie or beam")
  with (clone.path / "requirements.txt").open("a") as file:
    file.write("another\n")
  clone.run("launch/test", "-x")
  installs, runs = [], []
  for call in clone.calls():
    (installs if "|pip|" in call else runs).append(call)
  assert [call.split("|")[-2] for call in installs] == [
    ".[gpu,text]",
    ".[dev,report,table]",
    ".[dev,report,table]",
  ]
  assert runs == [
    "-m|bbqrec_jax.main|--workdir=runs/a b|",
    "-m|pytest|-k|trie or beam|",
    "benchmarks/kill_resume.py|--kills=3|--terms=1|",
    "-m|pytest|-m|slow|tests/systems_test.py|-k|smoke|",
    "-m|pytest|-x|",
  ]


def test_no_python_and_no_network_are_said_in_a_sentence(clone):
  done = clone.run("launch/run")
  assert done.returncode == 1 and "no working Python of version 3.11 or later" in done.stderr
  clone.add_python("python3", MAKES_VENV)
  broken = '[[ "$*" != *pip* ]]'
  for _ in range(2):  # A failure leaves no stamp.
    done = clone.run("launch/run", VENV_PYTHON=broken)
    assert done.returncode == 1 and "pip could not install" in done.stderr
  done = clone.run("launch/setup", "dev table")
  assert done.returncode == 1 and "'dev table'" in done.stderr


def test_every_requirement_has_a_range_and_says_what_it_is_for():
  lines = (ROOT / "requirements.txt").read_text().splitlines()
  for line in filter(lambda line: not line.startswith("#"), lines):
    assert re.fullmatch(r"[\w-]+(\[\w+\])?>=[\d.]+,<[\d.]+  # [A-Z].*\.", line), line


def test_packaging_names_files_and_extras_that_exist():
  pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
  assert (ROOT / pyproject["project"]["readme"]).exists()
  assert (ROOT / "LICENSE").exists()
  wanted = re.findall(r"launch/setup ([a-z,]+)$", (ROOT / "launch/test").read_text(), re.M)
  assert set(wanted[0].split(",")) <= set(pyproject["project"]["optional-dependencies"])


def test_ruff_is_clean():
  pytest.importorskip("ruff")
  ruff = [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format=concise", ROOT]
  done = subprocess.run(ruff, capture_output=True, text=True)
  assert done.returncode == 0, done.stdout


def test_parse_arg_reads_switches_and_typed_values():
  defaults = dict(smoke=False, shared=True, num_levels=3, weight=1.0, subset="beauty")
  assert common.parse_arg("", **defaults).to_dict() == defaults
  arg = common.parse_arg("smoke, num_levels=4,shared=false,weight=2,subset=toys", **defaults)
  want = dict(smoke=True, shared=False, num_levels=4, weight=2.0, subset="toys")
  assert arg.to_dict() == want
  assert [type(value) for value in arg.values()] == [type(want[name]) for name in arg]
  with pytest.raises(AttributeError):
    _ = arg.smok


@pytest.mark.parametrize(
  ("arg", "said"),
  [
    ("smokee", "'smokee': did you mean 'smoke'"),
    ("zzz", "knows: num_levels, smoke"),
    ("num_levels", "num_levels=<int>"),
    ("num_levels=three", "'three' does not read as int"),
    ("smoke=maybe", "'maybe' does not read as bool"),
  ],
)
def test_parse_arg_refuses(arg, said):
  with pytest.raises(ValueError, match=said):
    common.parse_arg(arg, smoke=False, num_levels=3)

"""Files that a command is to write: none that it reads, and none that cannot be written."""

import pathlib

import pytest

from bbqrec_jax import compare, latency, paths, record
from bbqrec_jax.errors import UserError


@pytest.mark.parametrize(
  "written", ["h.csv", "./h.csv", "sub/../h.csv", "hard.csv", "soft.csv", "new.csv"]
)
def test_one_file_under_any_name_is_the_same(tmp_path, monkeypatch, written):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "sub").mkdir()
  (tmp_path / "h.csv").write_text("mine")
  (tmp_path / "hard.csv").hardlink_to("h.csv")
  (tmp_path / "soft.csv").symlink_to("h.csv")
  read = tmp_path / ("new.csv" if written == "new.csv" else "h.csv")
  with pytest.raises(UserError, match=r"^--in and --out are the same file, .*csv; give another"):
    paths.check_apart("--in", read, "--out", written)


def test_other_files_are_apart(tmp_path):
  (tmp_path / "h.csv").write_text("mine")
  (tmp_path / "copy.csv").write_text("mine")
  for written in ("copy.csv", "new.csv", "H.csv", "gone/h.csv"):
    paths.check_apart("--in", tmp_path / "h.csv", "--out", str(tmp_path / written))


def test_a_file_is_writable_where_its_folder_is(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "old.json").touch()
  for path in ("new.json", tmp_path / "new.json", "old.json"):
    paths.check_writable(path)
  for path, said in (
    (tmp_path, "a folder stands where a file is to be written"),
    ("gone/x.json", "gone/x.json: there is no folder gone that can be written into"),
    ("old.json/x.json", "there is no folder old.json"),
  ):
    with pytest.raises(UserError, match=said):
      paths.check_writable(path)


@pytest.mark.parametrize(
  ("command", "args", "said"),
  [
    (record, ["RUN", "--out="], "argument --out: is empty; give a file"),
    (record, ["RUN", "--out=x.json", "--plot="], "argument --plot: is empty; give a file"),
    (record, ["", "--out=x.json"], "argument workdir: is empty; give a folder"),
    (compare, ["RUN_A", "RUN_B", "--out="], "argument --out: is empty; give a file"),
    (latency, ["RUN", "--out="], "argument --out: is empty; give a file"),
  ],
)
def test_a_path_out_of_an_unset_variable_is_refused(capsys, command, args, said):
  with pytest.raises(SystemExit) as exit_:
    command.main(args)
  assert exit_.value.code == 2
  assert capsys.readouterr().err.splitlines()[-1].endswith(f"error: {said}")


@pytest.mark.parametrize("option", ["--out", "--plot"])
@pytest.mark.parametrize("path", ["gone/x.png", "."])
def test_a_record_that_cannot_be_written_is_not_made(tmp_path, monkeypatch, capsys, option, path):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(record, "make_record", None)  # Not to be called.
  files = {"--out": "x.json", "--plot": "x.png"} | {option: path}
  assert record.main(["RUN", *(f"{name}={value}" for name, value in files.items())]) == 1
  assert capsys.readouterr().err.startswith(f"Error: {pathlib.Path(path)}: ")
  assert not list(tmp_path.iterdir())


def test_a_record_and_its_plot_are_two_files(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(record, "make_record", None)
  assert record.main(["RUN", f"--out={tmp_path}/same.png", f"--plot={tmp_path}/same.png"]) == 1
  said = capsys.readouterr().err
  assert said.startswith("Error: --out and --plot are the same file") and said.count("\n") == 1


@pytest.mark.parametrize("path", ["gone/x.json", "."])
def test_what_cannot_be_written_is_not_measured(tmp_path, monkeypatch, capsys, path):
  monkeypatch.setattr(latency, "measure", None)
  monkeypatch.setattr(compare, "load_seeds", None)
  assert latency.main(["RUN", f"--out={tmp_path / path}"]) == 1
  assert compare.main(["RUN_A", "RUN_B", f"--out={tmp_path / path}"]) == 1
  out, said = capsys.readouterr()
  assert out == "" and said.count("\n") == said.count(f"Error: {tmp_path / path}: ") == 2


@pytest.mark.parametrize("name", ["RUN_A", "RUN_B"])
def test_a_comparison_does_not_overwrite_a_record_that_it_reads(tmp_path, capsys, name):
  path = tmp_path / "a.json"
  path.write_text("{}")
  runs = {"RUN_A": "other", "RUN_B": "other"} | {name: str(path)}
  assert compare.main([*runs.values(), f"--out={path}"]) == 1
  assert f"Error: {name} and --out are the same file, {path};" in capsys.readouterr().err
  assert path.read_text() == "{}"

"""The benchmarks' report: verdicts, the table in the README, and what it refuses."""

import importlib.util
import json
import pathlib

import pytest

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "benchmarks"
README = "Before.\n<!-- benchmarks -->\nold table\n<!-- /benchmarks -->\nBehind.\n"


@pytest.fixture(scope="module")
def report():
  # By its path: `report` alone may be another module's name.
  spec = importlib.util.spec_from_file_location("benchmarks_report", FOLDER / "report.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.fixture
def records(tmp_path):
  folder = tmp_path / "records"
  folder.mkdir()
  write(folder / "decode.json", decode_vs_hf3_b1=8.0, own_figure=7.0)
  write(folder / "train.json", train_vs_hf_b16=2.0, sim_train_vs_plain=1.3)
  return folder


def write(path, quick=False, **ratios):
  path.write_text(json.dumps(dict(ratios=ratios, quick=quick)))


def test_figures_come_in_the_order_of_the_bars_and_only_they(report, records):
  names = [figure.name for figure in report.read(records)]
  assert names == ["train_vs_hf_b16", "sim_train_vs_plain", "decode_vs_hf3_b1"]


@pytest.mark.parametrize(
  ("name", "value", "verdict"),
  [
    ("decode_vs_hf3_b1", 8.0, "aim"),  # Higher is better: at least 5, aim 8.
    ("decode_vs_hf3_b1", 7.9, "yes"),
    ("decode_vs_hf3_b1", 4.9, "no"),
    ("decode_growth_1m", 1.15, "aim"),  # Lower is better: at most 1.35, aim 1.15.
    ("decode_growth_1m", 1.35, "yes"),
    ("decode_growth_1m", 1.36, "no"),
  ],
)
def test_verdicts(report, name, value, verdict):
  assert report.verdict(report.Figure(name, value, "x.json")) == verdict


def test_the_table_replaces_what_stood_between_the_marks(report, records, tmp_path, capsys):
  readme = tmp_path / "README.md"
  readme.write_text(README)
  for _ in range(2):  # A second time changes nothing.
    assert report.main([str(records), f"--readme={readme}"]) == 0
    printed = capsys.readouterr().out.strip()
    assert readme.read_text() == README.replace("old table", printed)
  rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines()[2:]]
  assert [row[1:] for row in rows] == [
    ["2", "at least 2.2", "2.8", "no"],
    ["1.3", "at most 1.5", "1.15", "yes"],
    ["8", "at least 5", "8", "aim"],
  ]
  assert all(f"({records.as_posix()}/" in row[0] for row in rows)


def test_a_plot_is_drawn(report, records, tmp_path):
  pytest.importorskip("matplotlib")
  assert report.main([str(records), f"--plot={tmp_path}/ratios.png"]) == 0
  assert (tmp_path / "ratios.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_what_the_report_refuses(report, records, tmp_path, capsys):
  readme = tmp_path / "README.md"
  readme.write_text("No marks.\n")
  assert report.main([str(records), f"--readme={readme}"]) == 1
  assert "lacks the marks" in capsys.readouterr().err and readme.read_text() == "No marks.\n"
  write(records / "quick.json", quick=True, train_vs_hf_b64=9.0)
  assert report.main([str(records)]) == 1
  assert "quick.json is of a --quick run" in capsys.readouterr().err
  assert report.main([str(tmp_path)]) == 1
  assert "holds no record" in capsys.readouterr().err

"""Tables out of records: means, marks, tests, what is missing; Markdown, CSV and LaTeX."""

import csv
import io
import json
import sys

import numpy as np
import pytest
import scipy.stats

from bbqrec_jax import metrics, run_record, table
from bbqrec_jax.errors import UserError
from bbqrec_jax.ranks import pack
from bbqrec_jax.tables import (
  experiments,
  figures,
  grids,
  paper,
  records,
  render,
  statistics,
  systems,
  tuning,
)
from tests import table_records
from tests.table_records import some_ranks, write_record

TABLE2, TABLE5 = experiments.EXPERIMENTS["table2"], experiments.EXPERIMENTS["table5"]


def make(out, *names, seeds=2, dataset="beauty", experiment=TABLE2):
  return grids.make(experiment, dataset, names, seeds, out)


def row(grid, label):
  return next(row for row in grid.rows if row.label == label)


def better(ranks, by):
  return np.maximum(1, ranks - by).astype(np.int32)


@pytest.fixture
def out(tmp_path):
  """Three systems on Beauty, two seeds each but for SASRec, the best BBQRec, GRU4Rec the worst."""
  for seed in range(2):
    write_record(tmp_path, "beauty", "bbqrec", seed, better(some_ranks(seed), 7))
    write_record(tmp_path, "beauty", "gru4rec", seed, some_ranks(seed))
  write_record(tmp_path, "beauty", "sasrec", 0, better(some_ranks(0), 4))
  return tmp_path


def test_means_and_deviations_are_over_seeds(out):
  grid = make(out, "gru4rec", "sasrec", "bbqrec")
  for n, column in enumerate(grid.columns[:4]):
    name = column.quantity
    per_seed = [metrics.summary(some_ranks(seed), (5, 10))[name] for seed in range(2)]
    value = row(grid, "GRU4Rec").cells[n].value
    assert value.mean == pytest.approx(sum(per_seed) / 2)
    assert value.std == pytest.approx(abs(per_seed[0] - per_seed[1]) / np.sqrt(2))
    assert value.count == 2
    assert row(grid, "SASRec").cells[n].value.std is None


def test_the_best_and_the_second_are_marked_in_every_form(out):
  grid = make(out, "gru4rec", "sasrec", "bbqrec", "popularity")
  places = {row.label: [cell.place for cell in row.cells] for row in grid.rows}
  assert places == {
    "Popularity": [0] * 6,
    "GRU4Rec": [0] * 6,
    "SASRec": [2] * 4 + [0] * 2,  # Collisions and time are not ranked.
    "BBQRec": [1] * 4 + [0] * 2,
  }
  sasrec = row(grid, "SASRec").cells[0].value.mean
  text, tex = render.markdown(TABLE2, [grid]), render.latex(TABLE2, [grid])
  assert f"| SASRec | 1 | <ins>{sasrec:.4f}</ins> | 0.0641 |" in text
  assert rf"\underline{{{sasrec:.4f}}} (0.0641) &" in tex
  bbqrec = row(grid, "BBQRec").cells[1].value
  assert f"**{bbqrec.mean:.4f} ± {bbqrec.std:.4f}** | 0.1147 |" in text
  assert rf"\textbf{{{bbqrec.mean:.4f} $\pm$ {bbqrec.std:.4f}}} (0.1147) &" in tex


def test_equal_means_share_a_place(tmp_path):
  for name in ("gru4rec", "sasrec", "bbqrec"):
    ranks = some_ranks(0) if name != "bbqrec" else better(some_ranks(0), 7)
    write_record(tmp_path, "beauty", name, 0, ranks)
  grid = make(tmp_path, "gru4rec", "sasrec", "bbqrec", seeds=1)
  assert [row.cells[0].place for row in grid.rows] == [2, 2, 1]


def test_collisions_are_those_behind_a_repair():
  raw = dict(codebook=dict(num_surplus_items=7))
  repaired = dict(codebook=dict(num_surplus_items=7, num_surplus_repaired=0))
  assert [records.quantity(found, "collisions") for found in (raw, repaired, {})] == [7, 0, None]


def test_few_collisions_are_better(tmp_path):
  for name, surplus in (("tiger_ids_l2", 50), ("letter_ids_l2", 70), ("bbqrec_ids_l2", 0)):
    codebook = dict(num_surplus_items=surplus)
    write_record(tmp_path, "toys", name, 0, some_ranks(0), codebook=codebook)
  grid = make(tmp_path, *TABLE5.systems, seeds=1, dataset="toys", experiment=TABLE5)
  assert [row.cells[0].place for row in grid.rows] == [2, 0, 1]
  assert [row.cells[0].value.mean for row in grid.rows] == [50, 70, 0]
  assert [row.cells[0].paper for row in grid.rows] == [2154, 2522, 12]
  text = render.markdown(TABLE5, [grid])
  assert "| RQ-VAE | 1 | <ins>50</ins> | 2154 | not run | 466 |" in text
  assert "Missing: RQ-VAE, L = 3 (`tiger_ids_l3`): no run." in text
  write_record(
    tmp_path, "toys", "bbqrec_ids_l2", 1, some_ranks(1), codebook=dict(num_surplus_items=1)
  )
  grid = make(tmp_path, *TABLE5.systems, dataset="toys", experiment=TABLE5)
  assert "| **0.5 ± 0.7** | 12 |" in render.markdown(TABLE5, [grid])


def test_the_t_test_is_paired_by_user_over_the_mean_of_seeds(out):
  tests = row(make(out, "gru4rec", "sasrec", "bbqrec"), "BBQRec").tests
  assert {n: test.against for n, test in tests.items()} == dict.fromkeys(range(4), "SASRec")
  ours = np.mean([better(some_ranks(seed), 7) <= 10 for seed in range(2)], axis=0)
  theirs = (better(some_ranks(0), 4) <= 10).astype(float)
  assert tests[1].p == pytest.approx(scipy.stats.ttest_rel(ours, theirs).pvalue)
  assert tests[1].gain == pytest.approx(ours.mean() / theirs.mean() - 1)
  said = f"| {tests[1].gain:+.1%} of SASRec, p = {tests[1].p:.2g} |"
  assert said in render.markdown(TABLE2, [make(out, "gru4rec", "sasrec", "bbqrec")])


def test_several_seeds_of_both_are_tested_as_well(out):
  write_record(out, "beauty", "sasrec", 1, better(some_ranks(8), 5))
  grid = make(out, "gru4rec", "sasrec", "bbqrec")
  test = row(grid, "BBQRec").tests[1]
  of_bbqrec = [np.mean(better(some_ranks(seed), 7) <= 10) for seed in range(2)]
  of_sasrec = [np.mean(better(some_ranks(seed), by) <= 10) for seed, by in ((0, 4), (8, 5))]
  expected = scipy.stats.ttest_ind(of_bbqrec, of_sasrec, equal_var=False).pvalue
  assert test.p_seeds == pytest.approx(expected)
  assert f", p = {test.p:.2g} (seeds: {expected:.2g}) |" in render.markdown(TABLE2, [grid])


@pytest.mark.parametrize(
  "changes",
  [dict(users="others"), dict(data=dict(table1=table_records.table1() | dict(items=98)))],
)
def test_other_users_are_not_paired(out, changes):
  write_record(out, "beauty", "sasrec", 0, better(some_ranks(0), 4), **changes)
  grid = make(out, "gru4rec", "sasrec", "bbqrec")
  assert row(grid, "BBQRec").tests[0].p is None
  assert "of SASRec, users differ" in render.markdown(TABLE2, [grid])


def test_what_is_missing_is_named_and_its_cells_say_so(out):
  text = render.markdown(TABLE2, [make(out, "sasrec", "tiger", "bbqrec", seeds=3)])
  assert "* Missing: SASRec (`sasrec`): no run of seed 1, 2." in text
  assert "* Missing: TIGER (`tiger`): no run." in text
  assert "* Missing: BBQRec (`bbqrec`): no run of seed 2." in text
  line = next(line for line in text.splitlines() if line.startswith("| TIGER"))
  assert line.count(grids.NOT_RUN) == 6
  # SASRec has no semantic IDs: nothing is missing there.
  line = next(line for line in text.splitlines() if line.startswith("| SASRec"))
  assert line.endswith("|  | 2.000 |") and grids.NOT_RUN not in line


def test_a_changed_or_tuned_run_is_marked_and_the_data_are_described(out):
  run = dict(dataset="beauty", system="sasrec", seed=0, overrides=["ranker.num_epochs=3"])
  for seed in (0, 1):
    run |= dict(seed=seed, tuned=["a=1", "b=2"])
    write_record(out, "beauty", "sasrec", seed, some_ranks(seed), run=run)
  text = render.markdown(TABLE2, [make(out, "sasrec", "bbqrec")])
  assert "| SASRec \\* |" in text and "* \\* SASRec: `ranker.num_epochs=3`\n" in text
  assert text.count("* \\* SASRec: `tuned: a=1 b=2`\n") == 1
  assert "| BBQRec |" in text
  assert "* Data: 211 users, 97 items, 1,009 interactions.\n" in text
  assert "* Data: text of 89 items (text_a.npy).\n" in text


def test_it_is_said_how_many_trials_each_system_has_had(out):
  chosen = ("popularity", "gru4rec", "sasrec", "tiger", "bbqrec")
  valid = {"ndcg@10": 0.5}
  for name, trials in (("gru4rec", [valid] * 4), ("tiger", [valid, None, None, None])):
    state = dict(choice=None, trials=[dict(valid=trial) for trial in trials])
    run_record.write_output(tuning_path(out, name), state)
  lines = render.markdown(TABLE2, [make(out, *chosen)]).splitlines()
  assert [line for line in lines if line.startswith("* Tuning")] == [
    "* Tuning: 4 of 4 trials: GRU4Rec.",
    "* Tuning: 1 of 4 trials: TIGER.",
    "* Tuning: 0 of 4 trials: SASRec, BBQRec.",  # Popularity has nothing to choose.
  ]
  table3 = experiments.EXPERIMENTS["table3"]
  text = render.markdown(table3, [make(out, *table3.systems, experiment=table3)])
  assert text.count("* Tuning: 0 of 4 trials: BBQRec.\n") == text.count("* Tuning") == 1
  text = render.markdown(TABLE5, [make(out, *TABLE5.systems, dataset="toys", experiment=TABLE5)])
  assert "Tuning" not in text
  tuning_path(out, "tiger").write_text('{"choice": null, "trials": [1]}')
  with pytest.raises(UserError, match=r"tiger\.json is damaged, its trials cannot be read"):
    make(out, *chosen)


def tuning_path(out, name: str):
  path = tuning.path(out, "beauty", name)
  path.parent.mkdir(parents=True, exist_ok=True)
  return path


def test_a_run_of_the_earlier_causal_model_is_marked(out):
  before, since = "2026-11-25T08:04:17+00:00", records.CAUSAL_SEES_LATEST
  for seed, encoder, date in (
    (0, "causal", since), (1, "causal", before), (2, "bidirectional", before)
  ):  # fmt: skip
    stages = dict(rqvae=dict(), generator=dict(encoder=encoder, test_seconds=1.0))
    changes = dict(stages=stages, provenance=dict(date=date))
    write_record(out, "beauty", "tiger", seed, some_ranks(seed), **changes)
  text = render.markdown(TABLE2, [make(out, "sasrec", "tiger")])
  assert "| TIGER \\* |" in text and "| SASRec |" in text
  remarks = [line for line in text.splitlines() if line.startswith("* \\* TIGER: ")]
  assert len(remarks) == 1 and "seed 1: by an earlier" in remarks[0]


def test_a_run_of_an_earlier_letter_is_marked(out):
  balanced = dict(alignment_weight=0.02, quantization_reduction="mean")
  for name, seed, rqvae in (
    ("letter", 0, balanced | dict(sinkhorn_temperature=0.003)),
    ("letter", 1, dict(alignment_weight=0.02)),
    ("letter", 2, balanced),
    ("tiger", 0, dict(alignment_weight=0.0)),
  ):
    write_record(out, "beauty", name, seed, some_ranks(seed), config=dict(rqvae=rqvae, data={}))
  text = render.markdown(TABLE2, [make(out, "tiger", "letter", seeds=3)])
  remarks = [line for line in text.splitlines() if ": by an earlier" in line]
  assert [line.split(", whose ")[0] for line in remarks] == [
    "* \\* LETTER: seed 1: by an earlier LETTER", "* \\* LETTER: seed 2: by an earlier LETTER"
  ]  # fmt: skip


@pytest.mark.parametrize(
  ("changed", "since", "before"),
  [
    ("sasrec_f", records.FUSED_CHANGED, "2026-11-29T12:44:17+00:00"),
    ("bert4rec", records.MASKED_CHANGED, "2026-11-29T17:49:59+00:00"),
  ],
)
def test_a_run_of_an_earlier_ranker_is_marked(out, changed, since, before):
  for name in ("sasrec", changed):
    for seed, date in ((0, since), (1, before)):
      config = dict(ranker=dict(model_name=name), data={})
      changes = dict(config=config, provenance=dict(date=date))
      write_record(out, "beauty", name, seed, some_ranks(seed), **changes)
  text = render.markdown(TABLE2, [make(out, "sasrec", changed)])
  remarks = [line for line in text.splitlines() if ": by an earlier" in line]
  label = {"sasrec_f": "SASRec_F", "bert4rec": "BERT4Rec"}[changed]
  assert len(remarks) == 1 and remarks[0].startswith(
    f"* \\* {label}: seed 1: by an earlier {label}, "
  )


def test_seeds_of_different_settings_are_told_apart(out):
  changes = ([], ["cpu"], ["cpu"], ["cpu", "ranker.num_epochs=3"])
  for seed, overrides in enumerate(changes):
    run = dict(dataset="beauty", system="sasrec", seed=seed, overrides=overrides, tuned=["a=1"])
    write_record(out, "beauty", "sasrec", seed, some_ranks(seed), run=run)
  lines = render.markdown(TABLE2, [make(out, "sasrec", "bbqrec", seeds=4)]).splitlines()
  remarks = [line.removeprefix("* \\* SASRec: ") for line in lines if "\\* SASRec: " in line]
  assert remarks == [
    "`tuned: a=1`", "seed 1, 2: `cpu`", "seed 3: `cpu ranker.num_epochs=3`"
  ]  # fmt: skip


def test_a_run_without_what_tuning_chose_says_so(out):
  choice = {"ranker.lr": 0.1, "ranker.rate": 0.5}
  run_record.write_output(tuning_path(out, "sasrec"), dict(trials=[], choice=choice))
  for seed, tuned, overrides, section in (
    (0, ["ranker.lr=0.1", "ranker.rate=0.5"], [], dict(lr=0.1, rate=0.5)),
    (1, [], [], dict(lr=0.1, rate=0.5)),  # The config had it anyway.
    (2, [], [], dict(lr=0.1, rate=0.2)),
    (3, ["ranker.lr=0.1"], ["ranker.rate=0.2"], dict(lr=0.1, rate=0.2)),  # The user's own.
    (4, [], ["ranker.rate=0.2"], dict(lr=0.3, rate=0.2)),
  ):
    run = dict(dataset="beauty", system="sasrec", seed=seed, overrides=overrides, tuned=tuned)
    config = dict(ranker=section, data={})
    write_record(out, "beauty", "sasrec", seed, some_ranks(seed), run=run, config=config)
  text = render.markdown(TABLE2, [make(out, "sasrec", "bbqrec", seeds=5)])
  assert [line for line in text.splitlines() if "without what tuning chose" in line] == [
    "* \\* SASRec: seed 2: without what tuning chose, `ranker.lr=0.1 ranker.rate=0.5`",
    "* \\* SASRec: seed 4: without what tuning chose, `ranker.lr=0.1`",
  ]


def test_it_is_said_who_reads_which_features(out):
  table1 = table_records.table1() | dict(texts=0)
  write_record(out, "beauty", "sasrec", 0, some_ranks(0), data=dict(table1=table1))
  text = render.markdown(TABLE2, [make(out, "gru4rec", "sasrec", "bbqrec")])
  assert "* Data: 211 users, 97 items, 1,009 interactions.\n" in text
  assert "* Data: ids alone: SASRec.\n" in text
  assert "* Data: text of 89 items (text_a.npy): GRU4Rec, BBQRec.\n" in text


def test_csv_holds_every_number(out):
  grid = make(out, "gru4rec", "sasrec", "bbqrec", "tiger")
  lines = list(csv.DictReader(io.StringIO(render.csv_text([grid]))))
  assert len(lines) == 4 * len(grid.columns)
  line = next(x for x in lines if (x["system"], x["metric"]) == ("BBQRec", "NDCG@10"))
  value, test = row(grid, "BBQRec").cells[3].value, row(grid, "BBQRec").tests[3]
  assert [float(line[name]) for name in ("mean", "std", "paper")] == [*value[:2], 0.0683]
  assert (line["best_other"], float(line["p"]), float(line["gain"])) == (
    "SASRec",
    test.p,
    test.gain,
  )
  line = next(x for x in lines if (x["system"], x["metric"]) == ("TIGER", "NDCG@10"))
  assert (line["mean"], line["seeds"], line["paper"]) == ("", "0", "0.0629")


def test_every_system_of_an_experiment_exists_and_the_papers_rows_are_its_rows():
  for experiment in experiments.EXPERIMENTS.values():
    assert set(experiment.systems) <= set(systems.SYSTEMS)
    for of_dataset in paper.OF.get(experiment.name, {}).values():
      assert set(of_dataset) <= set(experiment.rows)
      assert all(len(numbers) <= len(experiment.columns) for numbers in of_dataset.values())
  # Each is run once, whatever tables it stands in.
  assert len({s._replace(label="", overrides=str(s.overrides), name="") for s in
              systems.SYSTEMS.values()}) == len(systems.SYSTEMS)  # fmt: skip
  assert [label for label in TABLE2.rows][2:] == list(paper.TABLE2["beauty"])


def test_without_what_was_seen_the_figures_are_those_of_the_other_ranks(tmp_path):
  experiment = experiments.EXPERIMENTS["table2_unseen"]
  unseen = {name: np.maximum(some_ranks(n) - 3, 1) for n, name in enumerate(("sasrec", "bbqrec"))}
  for n, (name, ranks) in enumerate(unseen.items()):
    test, packed = metrics.summary(ranks, (5, 10)), dict(packed=pack(ranks), users="u")
    changes = dict(test_unseen=test, test_unseen_ranks=packed)
    write_record(tmp_path, "beauty", name, 0, some_ranks(n), **changes)
  write_record(tmp_path, "beauty", "tiger", 0, some_ranks(2))
  grid = make(tmp_path, "sasrec", "bbqrec", "tiger", seeds=1, experiment=experiment)
  cells = row(grid, "BBQRec").cells
  assert cells[1].value.mean == np.mean(unseen["bbqrec"] <= 10) and cells[1].paper == 0.1147
  hits = [np.where(unseen[name] <= 10, 1.0, 0.0) for name in ("bbqrec", "sasrec")]
  expected = scipy.stats.ttest_rel(*hits)
  np.testing.assert_allclose(row(grid, "BBQRec").tests[1].p, expected.pvalue)
  assert [(cell.value, cell.absence) for cell in row(grid, "TIGER").cells] == [
    (None, "missing")
  ] * 4
  assert grid.missing == ("TIGER (`tiger`): seed 0 was ranked among all items alone",)


def test_the_latency_of_table_6_is_a_medians(tmp_path):
  experiment = experiments.EXPERIMENTS["table6"]
  latency = dict(seconds_per_user={"50": 0.25, "100": 0.5})
  write_record(tmp_path, "beauty", "tiger", 0, some_ranks(0), latency=latency)
  write_record(tmp_path, "beauty", "bbqrec", 0, some_ranks(0))
  grid = make(tmp_path, "tiger", "bbqrec", seeds=1, experiment=experiment)
  assert [cell.value.mean for cell in row(grid, "TIGER").cells] == [0.25, 0.5]
  assert grid.missing == ("BBQRec (`bbqrec`): the decoding of seed 0 is not timed",)
  run = dict(dataset="beauty", system="tiger", seed=2, overrides=["cpu"], tuned=[])
  write_record(tmp_path, "beauty", "tiger", 2, some_ranks(0), run=run)  # Not timed.
  grid = make(tmp_path, "tiger", seeds=3, experiment=experiment)
  assert row(grid, "TIGER").cells[0].value.count == 1 and row(grid, "TIGER").remarks == ()
  assert grid.missing == (
    "TIGER (`tiger`): no run of seed 1; the decoding of seed 2 is not timed",
  )  # fmt: skip


@pytest.mark.parametrize("name", ["figure3", "figure4", "table2"])
def test_plots_are_drawn_from_records(tmp_path, capsys, name):
  pytest.importorskip("matplotlib")
  for system in experiments.EXPERIMENTS[name].systems[1:]:
    write_record(tmp_path, "beauty", system, 0, some_ranks(0))
  argv = ["--render_only", f"--experiment={name}", "--datasets=beauty", "--seeds=1"]
  assert table.main([*argv, f"--out={tmp_path}"]) == 0
  assert (tmp_path / f"{name}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
  assert "no run" in capsys.readouterr().out


def test_bars_are_the_means_and_marks_the_papers(out, monkeypatch):
  pytest.importorskip("matplotlib")
  import matplotlib.figure

  saved = []
  monkeypatch.setattr(matplotlib.figure.Figure, "savefig", lambda fig, *_, **__: saved.append(fig))
  grid = make(out, "gru4rec", "sasrec", "bbqrec", "tiger", "popularity")
  figures.draw(TABLE2, [grid], out)
  axis = saved[0].axes[1]
  assert axis.get_title() == "beauty: ndcg@10"
  labels = [label.get_text() for label in axis.get_yticklabels()]
  assert labels == [row.label for row in grid.rows]
  bars = {
    labels[round(bar.get_y() + bar.get_height() / 2)]: bar.get_width() for bar in axis.patches
  }
  assert bars == {
    label: row(grid, label).cells[3].value.mean for label in ("GRU4Rec", "SASRec", "BBQRec")
  }
  (marks,) = [line for line in axis.lines if line.get_label() == "the paper's"]
  found = {labels[place]: number for number, place in zip(*marks.get_data())}
  assert found == {x: paper.TABLE2["beauty"][x][3] for x in labels if x != "Popularity"}


def test_only_a_figure_needs_matplotlib(tmp_path, monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, "matplotlib", None)
  write_record(tmp_path, "beauty", "bbqrec", 0, some_ranks(0))
  argv = ["--render_only", "--datasets=beauty", f"--out={tmp_path}"]
  assert table.main([*argv, "--experiment=table2"]) == 0
  assert "table2.png" not in capsys.readouterr().out
  assert table.main([*argv, "--experiment=figure4"]) == 1
  assert "install the extra [report]" in capsys.readouterr().err


def test_a_table_without_any_record_is_all_missing(tmp_path, capsys):
  for dataset in ("beauty", "sports"):
    (tmp_path / "runs" / dataset).mkdir(parents=True)
  argv = ["--render_only", "--datasets=beauty,sports", "--systems=sasrec,bbqrec"]
  assert table.main([*argv, f"--out={tmp_path}"]) == 0
  printed = capsys.readouterr().out
  assert (tmp_path / "table2.md").read_text() in printed
  assert printed.count(": no run.") == 4 and "## sports" in printed


@pytest.mark.parametrize(
  ("args", "said"),
  [
    (["--datasets=beuaty"], "runs/beuaty does not exist: there are no records"),
    (["--datasets=beauty,toys"], "runs/toys does not exist: there are no records"),
    (["--datasets=,"], "--datasets=, names none"),
  ],
)
def test_a_misspelt_dataset_costs_no_table(out, capsys, args, said):
  assert table.main(["--render_only", "--systems=sasrec", f"--out={out}"]) == 0
  before = (out / "table2.md").read_text()
  assert table.main(["--render_only", *args, f"--out={out}"]) == 1
  assert said in capsys.readouterr().err
  assert (out / "table2.md").read_text() == before
  assert table.main(["--render_only", f"--out={out / 'nowhere'}"]) == 1
  assert not (out / "nowhere").exists()


def test_seeds_of_other_features_stand_in_no_row(out):
  for system in ("tiger", "letter"):  # Systems may differ, as they read what they can.
    files = dict(text="some/minilm.npy" if system == "tiger" else "t5.npy")
    write_record(out, "beauty", system, 0, some_ranks(0), config=dict(data=dict(features=files)))
  make(out, "tiger", "letter")
  other = dict(data=dict(features=dict(text="t5.npy")))
  write_record(out, "beauty", "tiger", 1, some_ranks(0), config=other)
  with pytest.raises(
    UserError, match=r"tiger/0\.json and .*1\.json .* the items' features are not"
  ):
    make(out, "tiger", "letter")


def test_records_of_other_sequences_stand_in_no_table(out):
  write_record(out, "beauty", "sasrec", 5, some_ranks(0))  # Of before it was told.
  data = dict(name="beauty", fingerprint="f", table1=table_records.table1())
  write_record(out, "beauty", "sasrec", 6, some_ranks(0), data=data | dict(sequences="s"))
  write_record(out, "beauty", "tiger", 6, some_ranks(0), data=data | dict(sequences="s"))
  make(out, "sasrec", "tiger")
  write_record(out, "beauty", "tiger", 7, some_ranks(0), data=data | dict(sequences="t"))
  with pytest.raises(UserError, match=r"sasrec/6\.json and .*tiger/7\.json are of different data"):
    make(out, "sasrec", "tiger")


@pytest.mark.parametrize("name", ["0 (copy).json", "../../sports/sasrec/0.json"])
def test_a_record_that_is_not_what_its_path_says_is_refused(out, name):
  path = records.path(out, "beauty", "sasrec", 0)
  copied = path.parent / name
  copied.parent.mkdir(parents=True, exist_ok=True)
  copied.write_text(path.read_text())
  with pytest.raises(UserError, match="is the record of beauty, sasrec, seed 0; put it"):
    make(out, "sasrec", dataset="sports" if "sports" in name else "beauty")


def test_damaged_records_are_told_in_a_sentence(tmp_path, capsys):
  write_record(tmp_path, "beauty", "sasrec", 0, some_ranks(0))
  path = records.path(tmp_path, "beauty", "sasrec", 0)
  argv = ["--render_only", "--datasets=beauty", "--systems=sasrec", f"--out={tmp_path}"]
  whole = json.loads(path.read_text())
  changed = [{k: v for k, v in whole.items() if k != "run"}]
  changed += [whole | dict(stages=stages) for stages in ({}, [], None, {"ranker": 3})]
  for text in ("", "[]", "{", *map(json.dumps, changed)):
    path.write_text(text)
    assert table.main(argv) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"Error: {path} ") and said.count("\n") == 1


def test_statistics_of_nothing():
  assert statistics.over_seeds([None, None]) is None
  assert statistics.over_seeds([None, 2.0]) == (2.0, None, 1)

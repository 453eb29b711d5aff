"""Recommendations of a finished run: ids in, ids out, new items, and the command around them."""

import csv
import importlib.util
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from ml_collections import config_dict

from bbqrec_jax import latency, main, recommend, run_record
from bbqrec_jax.data import semantic_ids
from bbqrec_jax.data.dataset import HELD_OUT, histories, train_counts
from bbqrec_jax.errors import UserError
from configs import tiger
from tests import smoke_run

NUM_ITEMS = 69
ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def finished() -> smoke_run.Finished:
  return smoke_run.finished()


@pytest.fixture(scope="module")
def dataset(finished):
  return main.load_dataset(finished.config)


@pytest.fixture(scope="module")
def recommender(finished) -> recommend.Recommender:
  return recommend.Recommender.load(finished.workdir)


@pytest.fixture
def own_recommender(finished) -> recommend.Recommender:
  """One that a test may add items to."""
  return recommend.Recommender.load(finished.workdir)


def user_history(dataset, user: int) -> list[str]:
  """Everything before the user's test item."""
  return dataset.item_ids[dataset.sequence(user)[: -HELD_OUT["test"]]].tolist()


def test_k_distinct_items_of_the_catalogue_come_best_first(recommender, dataset):
  results = recommender.recommend([user_history(dataset, user) for user in range(3)], k=7)
  assert len(results) == 3
  for result in results:
    assert len(result.item_ids) == len(set(result.item_ids)) == 7
    assert set(result.item_ids) <= set(dataset.item_ids.tolist())
    assert result.scores == sorted(result.scores, reverse=True) and max(result.scores) < 0
    titles = dict(zip(dataset.item_ids.tolist(), dataset.titles.tolist()))
    assert result.titles == [titles[item] for item in result.item_ids]
    assert result.unknown == []


def test_the_api_ranks_as_the_evaluation_did(recommender, dataset, finished):
  with np.load(finished.workdir / "ranks.npz") as file:
    ranks = file["test"]
  assert np.sum(ranks <= 10) >= 5  # Enough to agree about.
  results = recommender.recommend(
    [user_history(dataset, user) for user in range(dataset.num_users)], k=10
  )
  _, targets = histories(dataset, "test", finished.config.max_history)
  for result, target, rank in zip(results, dataset.item_ids[targets], ranks):
    found = result.item_ids.index(target) + 1 if target in result.item_ids else None
    assert found == (rank if rank <= 10 else None)


def test_nothing_is_compiled_behind_compile(own_recommender, dataset, monkeypatch):
  monkeypatch.setattr(recommend, "_BATCH_SIZES", (1, 4))  # A program for each; and few to filter.
  histories = [user_history(dataset, user) for user in range(dataset.num_users)]
  histories = sorted(histories, key=lambda history: len(set(history)))[:6]
  own_recommender.compile(k=4)
  own_recommender.compile(k=2, max_seen=max(len(set(history)) for history in histories))
  monkeypatch.setattr(recommend.generate_lib, "make_generate", None)  # Not to be called again.
  expected = [own_recommender.recommend([history], k=4)[0].item_ids for history in histories]
  for batch_size in (1, 3, 6):
    results = own_recommender.recommend(histories[:batch_size], k=4)
    assert [r.item_ids for r in results] == expected[:batch_size]
    unseen = own_recommender.recommend(histories[:batch_size], k=2, filter_seen=True)
    for history, result in zip(histories, unseen):
      assert len(result.item_ids) == 2 and not set(result.item_ids) & set(history)


def test_the_exact_search_is_the_widest_beam(finished, dataset):
  recommender = recommend.Recommender.load(finished.workdir)
  histories = [user_history(dataset, user) for user in range(9)]
  everything = recommender.recommend(histories, k=NUM_ITEMS)
  exact = recommender.recommend(histories, k=3, search="exact")
  for best, result in zip(everything, exact, strict=True):
    assert result.item_ids == best.item_ids[:3]
    np.testing.assert_allclose(result.scores, best.scores[:3], rtol=1e-5)
  assert finished.config.generator.num_beams < NUM_ITEMS
  with pytest.raises(UserError, match="search must be one of beam, exact, got 'wide'"):
    recommender.recommend(histories, search="wide")


def test_seen_items_are_left_out_when_asked(recommender, dataset):
  history = user_history(dataset, 0)
  everything = recommender.recommend([history], k=NUM_ITEMS)[0]
  assert len(everything.item_ids) == NUM_ITEMS  # A beam as wide as the catalogue reaches all.
  unseen = [item for item in everything.item_ids if item not in history]
  result = recommender.recommend([history], k=NUM_ITEMS, filter_seen=True)[0]
  assert result.item_ids == unseen
  assert recommender.recommend([history], k=1, filter_seen=True)[0].item_ids == unseen[:1]


def test_unknown_items_are_told_and_change_nothing(recommender, dataset):
  history = user_history(dataset, 1)
  plain, mixed, lost = recommender.recommend(
    [history, [history[0], "nonsense", *history[1:]], ["nonsense"]], k=5
  )
  assert mixed.item_ids == plain.item_ids and mixed.unknown == ["nonsense"]
  assert lost == recommend.Recommended([], [], [], ["nonsense"])


def test_a_folder_without_a_run_is_refused(tmp_path):
  with pytest.raises(UserError, match="give the --workdir of a finished run"):
    recommend.Recommender.load(tmp_path)


@pytest.mark.parametrize("lost", ["checkpoints", "config.json"])
def test_a_finished_run_that_has_lost_what_it_learned_is_refused(finished, tmp_path, lost):
  workdir = tmp_path / "run"
  shutil.copytree(finished.workdir, workdir, ignore=shutil.ignore_patterns(lost))
  with pytest.raises(UserError, match="has been removed from a finished run"):
    recommend.Recommender.load(workdir)


def test_a_run_that_has_not_ended_is_told(finished, recommender, tmp_path, caplog):
  workdir = tmp_path / "run"
  shutil.copytree(finished.workdir, workdir, ignore=shutil.ignore_patterns("results.json"))
  np.testing.assert_array_equal(recommend.Recommender.load(workdir).codes, recommender.codes)
  assert f"{workdir}: the run has not ended" in caplog.text
  caplog.clear()
  recommend.Recommender.load(finished.workdir)
  assert not caplog.text


@pytest.mark.parametrize("k", [0, -3, 1.5, 2.0, "3", True, None, np.float32(3)])
def test_k_is_a_whole_number_from_1(recommender, k):
  for call in (recommender.compile, lambda k: recommender.recommend([["item1"]], k)):
    with pytest.raises(UserError, match=r"^k=.* must be a whole number from 1\.$"):
      call(k)


@pytest.mark.parametrize("max_seen", [-1, 1.5, True, None])
def test_max_seen_is_a_whole_number_from_0(recommender, max_seen):
  with pytest.raises(UserError, match=r"^max_seen=.* must be a whole number from 0\.$"):
    recommender.compile(k=2, max_seen=max_seen)


def test_k_may_be_more_than_there_are(recommender):
  for k in (np.int64(NUM_ITEMS), 10**12, sys.maxsize):
    assert len(recommender.recommend([["item1"]], k)[0].item_ids) == NUM_ITEMS


@pytest.mark.parametrize(
  ("histories", "said"),
  [
    (["item0", "item1"], r"histories\[0\]='item0' must be a list of item ids; .* list of lists"),
    ([["item0"], "item1"], r"histories\[1\]='item1' must be a list of item ids"),
    (np.array(["item0", "item1"]), r"histories\[0\]=.*item0.* must be a list of item ids"),
    ("item0", "histories='item0' must be a list of histories"),
    ({"u1": ["item0"]}, "must be a list of histories"),
    (None, "histories=None must be a list of histories"),
    ([None], r"histories\[0\]=None must be a list of item ids"),
    ([{"item0"}], r"histories\[0\]=\{'item0'\} must be a list"),  # In no order.
    ([["item0"], ["item1", 7]], r"histories\[1\]\[1\]=7 must be text: item ids are strings"),
    (np.array([[1, 2]]), r"histories\[0\]\[0\]=.*1.* must be text: item ids are strings"),
    ([[b"item0"]], r"histories\[0\]\[0\]=b'item0' must be text"),
    ([[None]], r"histories\[0\]\[0\]=None must be text"),
  ],
)
def test_histories_of_another_shape_or_kind_are_refused(recommender, histories, said):
  with pytest.raises(UserError, match=said):
    recommender.recommend(histories)


def test_histories_may_be_any_sequences(recommender):
  history = ["item1", "item2"]
  expected = recommender.recommend([history], k=3)
  for given in ((tuple(history),), np.array([history]), [iter(history)]):
    assert recommender.recommend(given, k=3) == expected
  assert recommender.recommend([], k=3) == []


def test_a_copy_of_an_item_comes_with_it(own_recommender, dataset):
  """A new item with the features of a known one is tokenised, stored and recommended like it."""
  counts = train_counts(dataset)
  complete = np.logical_and(*(features.present for features in dataset.features.values()))
  model = int(np.argmax(np.where(complete, counts, -1)))
  features = {name: f.values[model][None] for name, f in dataset.features.items()}
  codes = own_recommender.add_items(["copy"], **features, titles=["a copy"])

  assert codes.shape == (1, 3, 3) and codes.dtype == np.int32
  known = own_recommender.codes[model]
  np.testing.assert_array_equal(codes[0, :, 1:], known[:, 1:])  # Text and image; the id differs.
  assert own_recommender.item_ids[-1] == "copy"
  result = own_recommender.recommend([user_history(dataset, 0)], k=NUM_ITEMS + 1)[0]
  assert sorted(result.item_ids) == sorted([*dataset.item_ids.tolist(), "copy"])
  assert result.titles[result.item_ids.index("copy")] == "a copy"
  # It can stand in a history too.
  assert len(own_recommender.recommend([["copy"]], k=3)[0].item_ids) == 3


def test_new_items_ask_the_stage_that_ran(finished, own_recommender, dataset):
  text = dataset.features["text"].values[:3]
  expected = own_recommender.add_items(["a", "b", "c"], text=text)
  config, ids = finished.config.to_dict(), semantic_ids.load(finished.workdir)

  def recommender(config):
    config = config_dict.FrozenConfigDict(config)
    return recommend.Recommender(config, ids, None, finished.workdir)  # No generator is asked.

  other = tiger.get_config("smoke").rqvae.to_dict()  # Of a stage that this run does not name.
  codes = recommender(config | dict(rqvae=other)).add_items(["a", "b", "c"], text=text)
  np.testing.assert_array_equal(codes, expected)
  del config["tokenizer"]
  alone = recommender(config | dict(stages=("generator",)))
  with pytest.raises(UserError, match="has none of the stages tokenizer, rqvae, whose codebooks"):
    alone.add_items(["a"], text=text[:1])


def test_new_items_need_one_vector_at_least(own_recommender, dataset):
  text = dataset.features["text"].values[:2].copy()
  image = dataset.features["image"].values[:2].copy()
  own_recommender.add_items(["text only"], text=text[:1])
  text[0], image[1] = 0.0, 0.0  # Each has the other.
  own_recommender.add_items(["a", "b"], text=text, image=image)
  image[0] = 0.0
  with pytest.raises(UserError, match="1 of 2 new items have no vector; each needs one of text"):
    own_recommender.add_items(["c", "d"], text=text, image=image)
  assert len(own_recommender.item_ids) == NUM_ITEMS + 3


@pytest.mark.parametrize(
  ("item_ids", "size", "titles", "said"),
  [
    (["item1", "new"], (2, 13), None, r"already in the catalogue: \['item1'\]"),
    (["new", "new"], (2, 13), None, "must be new and distinct"),
    (["new"], (1, 12), None, r"text must be finite and of shape \(1, 13\), got \(1, 12\)"),
    (["new"], (2, 13), None, r"of shape \(1, 13\), got \(2, 13\)"),
    (["new"], (1, 13), ["a", "b"], "2 titles were given for 1 items"),
    (["new"], (1, 13), "T", "titles='T' must be a list of text, one for each item"),
    (["new"], (1, 13), [None], r"titles\[0\]=None must be text"),
    ("NEW1", (4, 13), None, "item_ids='NEW1' must be a list of item ids"),
    (7, (1, 13), None, "item_ids=7 must be a list of item ids"),
    (["new", ""], (2, 13), None, r"item_ids\[1\]: item_id is empty"),
    (["a\0"], (1, 13), None, r"item_ids\[0\]: item_id 'a\\x00' holds a NUL character"),
    (["new", 7], (2, 13), None, r"item_ids\[1\]: item_id must be text, got 7"),
    ([], (1, 13), None, r"text must be finite and of shape \(0, 13\), got \(1, 13\)"),
    ([], (0, 13), ["a"], "1 titles were given for 0 items"),
  ],
)
def test_wrong_new_items_are_refused(recommender, item_ids, size, titles, said):
  with pytest.raises(UserError, match=said):
    recommender.add_items(item_ids, text=np.ones(size, np.float32), titles=titles)
  assert len(recommender.item_ids) == NUM_ITEMS


@pytest.mark.parametrize("text", [["a red shoe"], [[0.5], [0.5, 0.5]], [{}]])
def test_texts_are_no_vectors(recommender, text):
  with pytest.raises(UserError, match=r"text must be vectors of numbers, of shape \(1, 13\)"):
    recommender.add_items(["new"], text=text)
  assert len(recommender.item_ids) == NUM_ITEMS


@pytest.mark.parametrize("given", [{}, dict(text=np.ones((0, 13)), titles=[]), dict(image=[])])
def test_no_new_items_add_nothing(recommender, given):
  recommender.compile(k=3)
  programs = recommender._programs
  codes = recommender.add_items([], **given)
  assert codes.shape == (0, 3, 3) and codes.dtype == recommender.codes.dtype
  assert len(recommender.item_ids) == NUM_ITEMS
  assert recommender._programs is programs  # Nothing has to be compiled again.


def command(finished, *args: str) -> int:
  return recommend.main([f"--workdir={finished.workdir}", *args])


def test_the_command_prints_what_the_api_returns(finished, recommender, dataset, capsys):
  history = user_history(dataset, 2)
  assert command(finished, f"--history={', '.join(history)},nonsense", "--k=4") == 0
  said = capsys.readouterr()
  result = recommender.recommend([history], k=4)[0]
  assert [line.split()[1] for line in said.out.splitlines()] == result.item_ids
  assert said.err == "1 unknown items were not used: nonsense\n"


@pytest.mark.parametrize("history", ["", "nonsense,more"])
def test_the_command_refuses_a_history_without_known_items(finished, capsys, history):
  assert command(finished, f"--history={history}") == 1
  said = capsys.readouterr()
  assert said.out == ""
  assert said.err.splitlines()[-1].startswith("Error: The history holds no item of the catalogue")


def test_the_command_writes_no_table_of_one_history(finished, capsys):
  with pytest.raises(SystemExit):
    command(finished, "--history=item1", "--output=out.csv")
  assert "--output is for --input" in capsys.readouterr().err


KINDS = ["csv", "parquet"] if importlib.util.find_spec("pyarrow") else ["csv"]


@pytest.mark.parametrize("kind", KINDS)
def test_tables_in_and_out(finished, recommender, dataset, tmp_path, capsys, kind):
  # Rows stand out of order: time counts.
  rows = [
    (f"u{user}", item, time)
    for user in (3, 5)
    for time, item in enumerate(user_history(dataset, user))
  ]
  rows = [*reversed(rows), ("u9", "nonsense", 1)]
  source, target = tmp_path / f"in.{kind}", tmp_path / f"out.{kind}"
  write_table(source, dict(zip(("user_id", "item_id", "timestamp"), map(list, zip(*rows)))))
  assert command(finished, f"--input={source}", f"--output={target}", "--k=3") == 0

  said = capsys.readouterr()
  assert "6 recommendations for 2 users" in said.out
  assert "nonsense" in said.err and "1 users without any known item get nothing: u9" in said.err
  got = read_table(target)
  assert list(got) == ["user_id", "rank", "item_id", "score", "title"]
  for user in (3, 5):
    expected = recommender.recommend([user_history(dataset, user)], k=3)[0]
    mine = [n for n, name in enumerate(got["user_id"]) if name == f"u{user}"]
    assert [int(got["rank"][n]) for n in mine] == [1, 2, 3]
    assert [got["item_id"][n] for n in mine] == expected.item_ids
    assert [got["title"][n] for n in mine] == expected.titles
    np.testing.assert_allclose([float(got["score"][n]) for n in mine], expected.scores, atol=1e-5)


def test_a_bad_table_is_said_in_one_line(finished, tmp_path, capsys):
  (tmp_path / "in.csv").write_text("user_id,item_id\nu1,item1\n")
  args = (f"--input={tmp_path}/in.csv", f"--output={tmp_path}/out.csv")
  assert command(finished, *args) == 1
  said = capsys.readouterr().err
  assert "no column 'timestamp'" in said and said.count("\n") == 1
  assert not (tmp_path / "out.csv").exists()


def test_where_nothing_can_be_written_nothing_is_computed(finished, tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(recommend.Recommender, "load", None)  # Not to be called.
  args = (f"--input={tmp_path}/in.csv", f"--output={tmp_path}/gone/out.csv")
  assert command(finished, *args) == 1
  assert "there is no folder" in capsys.readouterr().err


def test_the_histories_are_not_overwritten(finished, tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(recommend.Recommender, "load", None)  # Not to be called.
  path, text = tmp_path / "h.csv", "user_id,item_id,timestamp\nu1,item1,1\n"
  path.write_text(text)
  assert command(finished, f"--input={path}", f"--output={tmp_path}/./h.csv") == 1
  said = capsys.readouterr().err
  assert said.startswith("Error: --input and --output are the same file") and said.count("\n") == 1
  assert path.read_text() == text


@pytest.mark.parametrize("option", ["--workdir", "--input", "--output"])
def test_a_path_out_of_an_unset_variable_is_refused(finished, capsys, option):
  paths = {"--workdir": "RUN", "--input": "in.csv", "--output": "out.csv"} | {option: ""}
  with pytest.raises(SystemExit) as exit_:
    recommend.main([f"{name}={value}" for name, value in paths.items()])
  assert exit_.value.code == 2 and f"argument {option}: is empty" in capsys.readouterr().err


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_command_at_once_even_while_it_is_imported(tmp_path, signum, status):
  # Stands in for JAX, whose callbacks drop exceptions as a destructor does.
  (tmp_path / "jax.py").write_text(
    "import os\n"
    "class Callback:\n"
    "  def __del__(self):\n"
    f"    os.kill(os.getpid(), {signum:d})\n"
    "Callback()\n"
  )
  env = os.environ | {"PYTHONPATH": str(tmp_path)}
  argv = [sys.executable, "-m", "bbqrec_jax.recommend", "--workdir=RUN", "--history=item1"]
  done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True)
  assert (done.returncode, done.stdout, done.stderr) == (status, "", "\nStopped.\n")


def write_table(path, columns: dict[str, list]) -> None:
  if path.suffix == ".parquet":
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table(columns), path)
  else:
    with path.open("w", newline="") as file:
      csv.writer(file).writerows([columns, *zip(*columns.values())])


def read_table(path) -> dict[str, list]:
  if path.suffix == ".parquet":
    import pyarrow.parquet

    return pyarrow.parquet.read_table(path).to_pydict()
  with path.open(newline="") as file:
    header, *rows = csv.reader(file)
  return dict(zip(header, map(list, zip(*rows))))


def test_latency_is_of_every_beam_width(finished, tmp_path, capsys, monkeypatch):
  out, widths = tmp_path / "latency.json", []
  make_generate = recommend.generate_lib.make_generate
  monkeypatch.setattr(
    recommend.generate_lib,
    "make_generate",
    lambda model, **kwargs: widths.append(kwargs) or make_generate(model, **kwargs),
  )
  argv = [str(finished.workdir), "--num_beams", "12", f"--out={out}"]
  assert latency.main(argv) == 0
  measured = run_record.read_json(out)
  assert measured["num_users"] == 50 and measured["num_results"] == 10
  assert list(measured["seconds_per_user"]) == ["12"]
  assert widths == [dict(num_beams=12, num_results=10)]
  assert f"beam 12: {measured['seconds_per_user']['12']:.4f} s a user" in capsys.readouterr().out
  assert latency.main([str(finished.workdir), "--num_beams", "0"]) == 1
  assert "--num_beams=[0] must be from 1" in capsys.readouterr().err
  assert latency.main([str(tmp_path)]) == 1
  assert capsys.readouterr().err.startswith(f"Error: {tmp_path}")

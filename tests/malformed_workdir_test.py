"""Damaged workdirs, and what the commands make of them: a sentence, and nothing is written."""

import functools
import io
import json
import os
import pathlib
import shutil
from collections.abc import Callable

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from bbqrec_jax import compare, main, recommend, record
from bbqrec_jax.data import semantic_ids
from bbqrec_jax.trainers import generator, tokenizer
from tests import malformed, smoke_run
from tests.malformed import DEEP, damage, numbered

pytestmark = pytest.mark.usefixtures("counted")

NOT_JSON = [  # In place of any JSON file.
  b"", b"\0" * 100, b"{", b'{"config": ', b"\xff\xfe{\0}\0", b"{'config': 1}", b"[" * 9,
  DEEP.encode(), b"PK\x03\x04", b"\n\n",
]  # fmt: skip
NO_RECORD = [b"[]", b"null", b"5", b'"x"', b"{}", b"NaN", b'[{"config": {}}]']  # JSON, but another.
EDITS = {  # Of what is a file.
  "folder": lambda path: path.mkdir(),
  "loop": lambda path: path.symlink_to(path.name),
}


@pytest.fixture(scope="module")
def finished() -> smoke_run.Finished:
  return smoke_run.finished()


@pytest.fixture
def workdir(finished, tmp_path) -> pathlib.Path:
  """A copy of the finished run, without what is large and not read here."""
  left_out = shutil.ignore_patterns("tensorboard", "checkpoints")
  shutil.copytree(finished.workdir, tmp_path / "run", ignore=left_out)
  return tmp_path / "run"


@pytest.fixture
def with_checkpoints(finished, workdir) -> pathlib.Path:
  """The same with stage two's checkpoints."""
  name = "checkpoints/generator"
  shutil.copytree(finished.workdir / name, workdir / name)
  return workdir


@pytest.fixture(autouse=True)
def no_training(monkeypatch):
  """What would be trained was accepted."""
  monkeypatch.setattr(tokenizer, "train", reached)


def reached(*_, **__):
  raise malformed.Reached


def replace(path: pathlib.Path, content: bytes | Callable[[pathlib.Path], None]) -> None:
  path.unlink(missing_ok=True)
  if callable(content):
    content(path)
  else:
    path.write_bytes(content)


def run(finished, workdir: pathlib.Path) -> str | None:
  return malformed.outcome(functools.partial(main.run, finished.config, workdir), workdir)


def test_without_damage_all_is_fine(finished, with_checkpoints, tmp_path, capsys, monkeypatch):
  """So that what is refused below is refused for its damage."""
  monkeypatch.setattr(recommend.Recommender, "_decode", one_item)
  assert run(finished, with_checkpoints) is None
  assert stage_two(finished, with_checkpoints) is None
  assert recommended(with_checkpoints, capsys) is None
  assert compared(finished, with_checkpoints, capsys) is None
  shutil.copy(finished.workdir / "results.json", with_checkpoints)
  assert recorded(with_checkpoints, capsys, f"--out={tmp_path}/x.json") is None


def one_item(self, histories, num_results, search):
  """In place of Recommender._decode, which would have to be compiled."""
  assert num_results <= len(self.item_ids)
  return np.zeros((len(histories), 1), int), np.zeros((len(histories), 1))


PLACES = {  # What stands where a workdir is to be, and what is said.
  "file": (lambda path: path.write_text(""), "File exists"),
  "link to nowhere": (lambda path: path.symlink_to("nowhere"), "File exists"),
  "loop": (lambda path: path.symlink_to(path.name), "File exists"),
  "pipe": (os.mkfifo, "File exists"),
}


@pytest.mark.parametrize("kind", PLACES)
def test_no_folder_can_be_made(finished, tmp_path, kind):
  make, expected = PLACES[kind]
  make(tmp_path / "run")
  for path in (tmp_path / "run", tmp_path / "run" / "below"):
    call = functools.partial(main.run, finished.config, path)
    said = malformed.outcome(call, tmp_path)
    assert said is not None and "Cannot write to workdir" in said
    assert path.name == "below" or expected in said


@pytest.mark.parametrize("name", numbered(["x" * 300, "\0", "x/" * 3_000]))
def test_no_name_of_a_folder(finished, tmp_path, name):
  call = functools.partial(main.run, finished.config, tmp_path / name)
  assert malformed.outcome(call, tmp_path) is not None


@pytest.mark.parametrize("content", numbered([*NOT_JSON, *NO_RECORD, EDITS["folder"]]))
@pytest.mark.parametrize("name", ["config.json", "results.json", "stages/generator.json"])
def test_records_that_are_none(finished, workdir, name, content):
  if name.startswith("stages"):
    (workdir / "results.json").unlink()
  replace(workdir / name, content)
  said = run(finished, workdir)
  assert said is not None and (name in said or f"workdir {workdir}" in said)


def _without(*keys):
  def edit(tree):
    for key in keys[:-1]:
      tree = tree[key]
    del tree[keys[-1]]

  return edit


def _with(value, *keys):
  def edit(tree):
    for key in keys[:-1]:
      tree = tree[key]
    tree[keys[-1]] = value

  return edit


RECORDS = [  # (file, edit of its JSON, what is said)
  ("config.json", _with(7, "config", "seed"), "config.seed is 7 there and 0 here"),
  ("config.json", _with(None, "config"), "config is None there"),
  ("config.json", _with([], "config"), "config is [] there"),
  ("config.json", _without("config", "generator"), "config.generator is absent there"),
  ("config.json", _with({}, "config", "tokenizer"), "config.tokenizer."),
  ("config.json", _with("beef", "data", "fingerprint"), "data.fingerprint is 'beef' there"),
  ("config.json", _with(5, "data"), "data is 5 there"),
  ("config.json", _without("data"), "is not the record of a run"),
  ("results.json", _without("stages"), "it has no 'stages'"),
  ("results.json", _without("provenance"), "it has no 'provenance'"),
  ("results.json", _without("popularity"), "is damaged (KeyError('popularity'))"),
  ("results.json", _without("valid", "recall@5"), "is damaged"),
  ("results.json", _with("high", "test", "recall@5"), "is damaged"),
  ("results.json", _with(None, "valid"), "is damaged"),
  ("results.json", _with([1, 2], "stages"), "is damaged"),
  ("results.json", _with(5, "codebook"), "is damaged"),
  ("results.json", _with([5], "codebook", "usage"), "is damaged"),
  ("stages/generator.json", _without("seconds"), "it has no 'seconds'"),
  ("stages/generator.json", _without("test"), "it has no 'test'"),
  ("stages/generator.json", _without("valid"), "it has no 'valid'"),
  ("stages/generator.json", _with({}, "valid"), "stages is damaged"),
  ("stages/generator.json", _with("2", "epochs"), "stages is damaged"),
  ("stages/tokenizer.json", _without("codebook"), "it has no 'codebook'"),
  ("stages/tokenizer.json", _with(None, "codebook"), "stages is damaged"),
  ("stages/tokenizer.json", _with({"num_items": 3}, "codebook"), "stages is damaged"),
  ("stages/tokenizer.json", _with([], "peak_memory_mb"), "stages is damaged"),
]


@pytest.mark.parametrize("case", range(len(RECORDS)))
def test_records_that_lack_something(finished, workdir, case):
  name, edit, expected = RECORDS[case]
  if name.startswith("stages"):
    (workdir / "results.json").unlink()
  tree = json.loads((workdir / name).read_text())
  edit(tree)
  (workdir / name).write_text(json.dumps(tree))
  said = run(finished, workdir)
  assert said is not None and expected in said


@pytest.mark.parametrize("name", ["stages", "metrics.jsonl"])
@pytest.mark.parametrize("kind", ["file", "folder", "loop"])
def test_what_a_run_writes_into_is_something_else(finished, workdir, capsys, name, kind):
  for done in ("results.json", "stages/tokenizer.json"):
    (workdir / done).unlink()
  path = workdir / name
  shutil.rmtree(path) if path.is_dir() else path.unlink()
  dict(EDITS, file=lambda path: path.write_text(""))[kind](path)
  call = functools.partial(smoke_run.command, finished.config, workdir)
  said = malformed.command_outcome(call, capsys, workdir)
  # A folder of stages, a file of metrics and a link for either are as they should be.
  fine = (name, kind) in (
    ("stages", "folder"),
    ("metrics.jsonl", "file"),
    ("metrics.jsonl", "loop"),
  )
  assert (said is None) == fine, said
  assert fine or str(path) in said


def _arrays(workdir: pathlib.Path, name: str) -> dict[str, np.ndarray]:
  with np.load(workdir / name, allow_pickle=False) as file:
    return dict(file)


def _npz(arrays: dict) -> bytes:
  file = io.BytesIO()
  np.savez(file, **arrays)
  return file.getvalue()


NO_IDS = "holds no semantic IDs"
SEMANTIC_IDS = [  # (edit of the arrays, what is said)
  *(
    (lambda arrays, name=name: {k: v for k, v in arrays.items() if k != name}, f"no {name!r}")
    for name in semantic_ids.SemanticIds.__dataclass_fields__
  ),
  (lambda arrays: {}, "has no 'codes'"),
  (lambda arrays: arrays | dict(codes=np.array([{}])), "cannot be read"),
  (lambda arrays: arrays | dict(titles=arrays["titles"].astype(object)), "cannot be read"),
  (lambda arrays: arrays | dict(codes=arrays["codes"].astype(np.float32)), NO_IDS),
  (lambda arrays: arrays | dict(codes=arrays["codes"][:, 0]), NO_IDS),
  (lambda arrays: arrays | dict(codes=arrays["codes"][:0]), NO_IDS),
  (lambda arrays: arrays | dict(codes=arrays["codes"][:-1]), NO_IDS),
  (lambda arrays: arrays | dict(codes=arrays["codes"][:, :-1]), NO_IDS),
  (lambda arrays: arrays | dict(codes=arrays["codes"][..., :-1]), NO_IDS),
  (lambda arrays: arrays | dict(codes=arrays["codes"] + 8), NO_IDS),
  (lambda arrays: arrays | dict(codes=arrays["codes"] - 8), NO_IDS),
  (lambda arrays: arrays | dict(vectors=arrays["vectors"][:, :-1]), NO_IDS),
  (lambda arrays: arrays | dict(vectors=arrays["vectors"] * np.nan), NO_IDS),
  (lambda arrays: arrays | dict(vectors=arrays["vectors"].astype(str)), NO_IDS),
  (lambda arrays: arrays | dict(item_ids=np.arange(69)), NO_IDS),
  (lambda arrays: arrays | dict(item_ids=arrays["item_ids"][None]), NO_IDS),
  (lambda arrays: arrays | dict(titles=arrays["titles"][:5]), NO_IDS),
  (lambda arrays: arrays | dict(popularity=arrays["popularity"] / 2), NO_IDS),
  (lambda arrays: arrays | dict(signals=arrays["signals"][:1]), NO_IDS),
  (lambda arrays: arrays | dict(codebooks=arrays["codebooks"][0]), NO_IDS),
  (lambda arrays: arrays | dict(codebooks=arrays["codebooks"][:, :1]), NO_IDS),
  (lambda arrays: arrays | dict(codebooks=np.float32(1.0)), NO_IDS),
  (lambda arrays: arrays | dict(item_ids=arrays["item_ids"][::-1]), "other items than synthetic"),
  (lambda arrays: {k: v[:9] if len(v) == 69 else v for k, v in arrays.items()}, "other items"),
]
NO_ARCHIVE = [b"", b"PK\x03\x04", b"PK\x05\x06" + bytes(18), b"\x93NUMPY", b"{}", bytes(100)]


def stage_two(finished, workdir: pathlib.Path) -> str | None:
  """Of a run whose first stage alone is done."""
  for done in ("results.json", "stages/generator.json"):
    (workdir / done).unlink(missing_ok=True)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(generator, "make_model", reached)
    return run(finished, workdir)


@pytest.mark.parametrize("case", range(len(SEMANTIC_IDS)))
def test_semantic_ids_that_do_not_fit(finished, workdir, case):
  edit, expected = SEMANTIC_IDS[case]
  arrays = edit(_arrays(workdir, semantic_ids.FILE_NAME))
  (workdir / semantic_ids.FILE_NAME).write_bytes(_npz(arrays))
  said = stage_two(finished, workdir)
  assert said is not None and semantic_ids.FILE_NAME in said and expected in said


def test_semantic_ids_that_are_no_archive_or_cut_or_gone(finished, workdir):
  path = workdir / semantic_ids.FILE_NAME
  whole = path.read_bytes()
  assert stage_two(finished, workdir) is None
  cuts = [whole[:size] for size in np.linspace(1, len(whole) - 1, 20).astype(int)]
  for content in (*NO_ARCHIVE, *cuts, *EDITS.values()):
    replace(path, content)
    said = stage_two(finished, workdir)
    assert said is not None and str(path) in said
    path.rmdir() if path.is_dir() and not path.is_symlink() else None
  path.unlink()
  assert "does not exist; run the tokenizer" in stage_two(finished, workdir)


def fuzz(name: str, workdir: pathlib.Path, call: Callable[[], object], examples: int) -> None:
  """Damages one file over and over, somewhere; then puts it back."""
  path = workdir / name
  good = path.read_bytes()

  @hypothesis.settings(max_examples=examples, deadline=None, derandomize=True, database=None)
  @hypothesis.given(st.data())
  def check(data):
    replace(path, damage(data.draw, good))
    malformed.outcome(call, workdir)

  check()
  replace(path, good)


def test_damaged_bytes(finished, workdir):
  run_again = functools.partial(main.run, finished.config, workdir)
  fuzz("config.json", workdir, run_again, 20)
  fuzz("results.json", workdir, run_again, 40)
  fuzz("ranks.npz", workdir, lambda: compare.table(*two_runs(workdir)), 50)
  fuzz("results.json", workdir, lambda: record.make_record(workdir), 40)
  fuzz("semantic_ids.npz", workdir, lambda: semantic_ids.load(workdir), 60)


def two_runs(workdir: pathlib.Path) -> list[compare.Seeds]:
  return [compare.load_seeds(workdir, "test") for _ in range(2)]


RANKS = [  # (edit of the arrays, what is said)
  (lambda arrays: {}, "no ranks of the test split"),
  (lambda arrays: dict(valid=arrays["valid"]), "no ranks of the test split"),
  (lambda arrays: arrays | dict(test=arrays["test"] * 0), "ranks from 1"),
  (lambda arrays: arrays | dict(test=-arrays["test"]), "ranks from 1"),
  (lambda arrays: arrays | dict(test=arrays["test"] * 1.0), "ranks from 1"),
  (lambda arrays: arrays | dict(test=arrays["test"][:0]), "ranks from 1"),
  (lambda arrays: arrays | dict(test=arrays["test"][:1]), "ranks from 1"),
  (lambda arrays: arrays | dict(test=arrays["test"][None]), "ranks from 1"),
  (lambda arrays: arrays | dict(test=np.int32(1)), "ranks from 1"),
  (lambda arrays: arrays | dict(test=arrays["test"].astype(str)), "ranks from 1"),
  (lambda arrays: arrays | dict(test=arrays["test"].astype(object)), "cannot be read"),
  (lambda arrays: arrays | dict(user_ids=arrays["user_ids"][1:]), "149 user_ids for 150 ranks"),
  (lambda arrays: arrays | dict(user_ids=arrays["user_ids"].astype(object)), "cannot be read"),
  (lambda arrays: arrays | dict(user_ids=np.zeros(150, [("a", "f4")])), "text or whole numbers"),
  (lambda arrays: arrays | dict(user_ids=np.zeros(150)), "text or whole numbers"),
  (lambda arrays: arrays | dict(user_ids=np.array(["u"] * 150)), "do not hold the same users"),
  (lambda arrays: dict(test=arrays["test"]), "has no user_ids"),
  (lambda arrays: {k: v[1:] if v.ndim else v for k, v in arrays.items()}, "150 users and run 149"),
  (lambda arrays: arrays | dict(sequences=np.array("other")), "are of different data"),
  (lambda arrays: arrays | dict(sequences=np.zeros(3)), "are of different data"),
]


@pytest.mark.parametrize("case", range(len(RANKS)))
def test_ranks_that_do_not_fit(finished, workdir, capsys, case):
  edit, expected = RANKS[case]
  (workdir / "ranks.npz").write_bytes(_npz(edit(_arrays(workdir, "ranks.npz"))))
  said = compared(finished, workdir, capsys)
  assert said is not None and expected in said


def compared(finished, workdir: pathlib.Path, capsys, *args: str) -> str | None:
  argv = [str(finished.workdir), str(workdir), *args]
  return malformed.command_outcome(lambda: compare.main(argv), capsys, workdir)


@pytest.mark.parametrize("content", numbered([*NO_ARCHIVE, *EDITS.values()]))
def test_ranks_that_are_no_archive(finished, workdir, capsys, content):
  replace(workdir / "ranks.npz", content)
  said = compared(finished, workdir, capsys)
  assert said is not None and "ranks.npz" in said


@pytest.mark.parametrize("out", ["gone/ab.json", "config.json/ab.json", "stages", "x" * 300])
def test_where_a_comparison_cannot_be_written(finished, workdir, capsys, out):
  assert compared(finished, workdir, capsys, f"--out={workdir / out}") is not None


def recorded(workdir: pathlib.Path, capsys, *args: str) -> str | None:
  argv = [str(workdir), *args]
  return malformed.command_outcome(lambda: record.main(argv), capsys, workdir.parent)


@pytest.mark.parametrize("content", numbered([*NOT_JSON, *NO_RECORD, EDITS["folder"]]))
@pytest.mark.parametrize("name", ["config.json", "results.json"])
def test_records_of_a_damaged_run(workdir, tmp_path, capsys, name, content):
  replace(workdir / name, content)
  assert recorded(workdir, capsys, f"--out={tmp_path}/x.json") is not None


@pytest.mark.parametrize("keys", [("test",), ("codebook",), ("data",), ("data", "name"),
  ("popularity",), ("provenance",), ("provenance", "date"), ("stages",)])  # fmt: skip
def test_records_of_a_run_that_lacks_something(workdir, tmp_path, capsys, keys):
  tree = json.loads((workdir / "results.json").read_text())
  _without(*keys)(tree)
  (workdir / "results.json").write_text(json.dumps(tree))
  assert recorded(workdir, capsys, f"--out={tmp_path}/x.json") is not None


METRICS = [  # (content of metrics.jsonl, what is said)
  (b"", "holds no metrics"),
  (b"{\n", "metrics.jsonl:1 is no line of metrics"),
  (b"[]\n", "metrics.jsonl:1"),
  (b'{"stage": "tokenizer"}\n', "metrics.jsonl:1"),
  (b'{"stage": "tokenizer", "step": 1, "metrics": 5}\n', "metrics.jsonl:1"),
  (b"\xff\n", "metrics.jsonl:1"),
  (DEEP.encode(), "metrics.jsonl:1"),
]


def test_curves_of_damaged_metrics(workdir, tmp_path, capsys):
  pytest.importorskip("matplotlib")
  args = (f"--out={tmp_path}/x.json", f"--plot={tmp_path}/x.png")
  for content, expected in METRICS:
    replace(workdir / "metrics.jsonl", content)
    said = recorded(workdir, capsys, *args)
    assert said is not None and expected in said
  (workdir / "metrics.jsonl").unlink()
  assert "cannot be read" in recorded(workdir, capsys, *args)


@pytest.mark.parametrize("plot", ["gone/x.png", "x.nonsense", "folder.png"])
def test_where_curves_cannot_be_written(workdir, tmp_path, capsys, plot):
  pytest.importorskip("matplotlib")
  (tmp_path / "folder.png").mkdir()
  args = (f"--out={tmp_path}/x.json", f"--plot={tmp_path / plot}")
  assert recorded(workdir, capsys, *args) is not None


@pytest.mark.parametrize("out", ["gone/x.json", "run", "run/config.json/x"])
def test_where_a_record_cannot_be_written(workdir, tmp_path, capsys, out):
  assert recorded(workdir, capsys, f"--out={tmp_path / out}") is not None


def recommended(workdir: pathlib.Path, capsys, *args: str) -> str | None:
  argv = [f"--workdir={workdir}", *(args or ("--history=item1",))]
  return malformed.command_outcome(lambda: recommend.main(argv), capsys, workdir.parent)


@pytest.mark.parametrize("content", numbered([*NOT_JSON, *NO_RECORD, *EDITS.values()]))
def test_recommendations_with_a_damaged_config(with_checkpoints, capsys, content):
  replace(with_checkpoints / "config.json", content)
  said = recommended(with_checkpoints, capsys)
  assert said is not None and "config.json" in said


CONFIGS = [
  _with(None, "config"), _with([], "config"), _with({}, "config"), _without("config", "generator"),
  _without("config", "max_history"), _with("two", "config", "max_history"),
  _with(-2, "config", "max_history"), _with({}, "config", "generator"),
  _without("config", "generator", "model_name"),
  _with("none such", "config", "generator", "model_name"),
  _with(5, "config", "generator", "model_name"), _with(5, "config", "generator", "model"),
  _with(0, "config", "generator", "model", "num_heads"),
  _with(-8, "config", "generator", "model", "head_dim"),
  _with("x", "config", "generator", "model", "ff_dim"),
  _with("x", "config", "generator", "model", "encoder"),
  _with(1, "config", "generator", "model", "nonsense"),
  _with(17, "config", "generator", "model", "model_dim"),  # Of a run of another size.
  _with(3, "config", "generator", "model", "num_decoder_layers"),
  _without("config", "generator", "num_beams"), _with(0, "config", "generator", "num_beams"),
  _with("x", "config", "generator", "num_beams"),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(CONFIGS)))
def test_recommendations_with_another_config(with_checkpoints, capsys, case):
  tree = json.loads((with_checkpoints / "config.json").read_text())
  CONFIGS[case](tree)
  (with_checkpoints / "config.json").write_text(json.dumps(tree))
  said = recommended(with_checkpoints, capsys)
  assert said is not None
  assert any(word in said for word in ("config.json", "model_name", "checkpoint"))


def test_recommendations_with_damaged_semantic_ids(with_checkpoints, capsys):
  path = with_checkpoints / semantic_ids.FILE_NAME
  arrays = _arrays(with_checkpoints, semantic_ids.FILE_NAME)
  # Of the last ones, which are of other items, the command could not know.
  for edit, _ in SEMANTIC_IDS[:-2:5]:
    replace(path, _npz(edit(arrays)))
    said = recommended(with_checkpoints, capsys)
    assert said is not None and str(path) in said


def test_recommendations_without_checkpoints(with_checkpoints, capsys):
  folder = with_checkpoints / "checkpoints" / "generator"
  for make in (lambda: folder.mkdir(), lambda: folder.write_text(""), lambda: None):
    shutil.rmtree(folder) if folder.is_dir() else folder.unlink(missing_ok=True)
    make()
    said = recommended(with_checkpoints, capsys)
    assert said is not None and str(folder) in said


def test_workdirs_that_are_none(tmp_path, capsys):
  (tmp_path / "run").write_text("")
  for name in ("run", "gone", "run/below", "\0", "x" * 300):
    for args in ((), ("--input=x.csv", f"--output={tmp_path}/y.csv")):
      assert recommended(tmp_path / name, capsys, *args) is not None
    assert recorded(tmp_path / name, capsys, f"--out={tmp_path}/x.json") is not None
    call = functools.partial(compare.main, [str(tmp_path / name)] * 2)
    assert malformed.command_outcome(call, capsys, tmp_path) is not None


TABLES = [  # Content of the table of histories.
  "", "user_id,item_id,timestamp\n", "user_id,item_id\nu,item1\n", "u,item1,1\n",
  "user_id,item_id,timestamp\nu,item1,noon\n", "user_id,item_id,timestamp\nu,nonsense,1\n",
  "user_id,item_id,timestamp\nu,,1\n", "user_id,item_id,timestamp\nu\0,item1,1\n",
  "user_id,item_id,timestamp,user_id\nu,item1,1,v\n", 'user_id,item_id,timestamp\nu,"item1,1\n',
]  # fmt: skip


def test_tables_of_histories(finished, tmp_path, capsys, monkeypatch):
  loaded = recommend.Recommender.load(finished.workdir)
  monkeypatch.setattr(recommend.Recommender, "load", lambda _: loaded)  # Once, for speed.
  fed = functools.partial(recommended, tmp_path / "run", capsys)
  source, target = tmp_path / "in.csv", tmp_path / "out.csv"
  for content in TABLES:
    source.write_text(content)
    assert fed(f"--input={source}", f"--output={target}") is not None
  source.write_text("user_id,item_id,timestamp\nu,item1,1\n")
  for args in (
    (f"--input={tmp_path}", f"--output={target}"),
    (f"--input={tmp_path}/gone.csv", f"--output={target}"),
    (f"--input={source}", f"--output={tmp_path}/gone/out.csv"),
    (f"--input={source}", f"--output={tmp_path}/out.txt"),
    (f"--input={source}", f"--output={target}", "--k=0"),
    (f"--input={source}", f"--output={target}", "--k=-5"),
    ("--history=",),
    ("--history=,,,",),
    ("--history=nonsense",),
    ("--history=item1", "--k=0"),
    ("--history=" + "x" * 100_000, "--k=3"),
  ):
    assert fed(*args) is not None
  target.mkdir()
  assert "a folder stands" in fed(f"--input={source}", f"--output={target}")
  monkeypatch.setattr(recommend.Recommender, "_decode", one_item)
  assert fed("--history=item1", f"--k={10**15}") is None  # All there are.

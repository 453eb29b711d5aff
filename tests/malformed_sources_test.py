"""What no source can read as a file, arguments that make no sense, and files with damaged bytes."""

import functools
import os
import pathlib

import hypothesis
import pytest
from hypothesis import strategies as st

from bbqrec_jax.data import synthetic
from tests import malformed
from tests.malformed import damage
from tests.malformed_files import (
  GOOD,
  IMAGES,
  META,
  REVIEWS,
  fill,
  inside_gz,
  load_amazon,
  load_atomic,
  load_atomic_texts,
  load_table,
  load_table_texts,
)

pytestmark = pytest.mark.usefixtures("counted")


@pytest.fixture
def root(tmp_path, monkeypatch):
  return fill(tmp_path / "data", monkeypatch)


def _as_folder(path: pathlib.Path):
  path.mkdir()


def _as_loop(path: pathlib.Path):
  path.symlink_to(path.name)


def _as_dangling_link(path: pathlib.Path):
  path.symlink_to("nowhere")


def _as_pipe(path: pathlib.Path):
  os.mkfifo(path)  # Whoever opens it waits for ever.


def _as_unreadable(path: pathlib.Path):
  path.write_bytes(GOOD[path.name])
  path.chmod(0)


LOADERS = {
  "shop.inter": load_atomic,
  "shop.item": load_atomic,
  "text.npy": load_atomic,
  "log.csv": load_table,
  "items.csv": load_table,
  REVIEWS: load_amazon,
  META: load_amazon,
  IMAGES: load_amazon,
}
KINDS = dict(
  folder=_as_folder, loop=_as_loop, dangling=_as_dangling_link, pipe=_as_pipe,
  unreadable=_as_unreadable, missing=lambda path: None,
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LOADERS)
def test_things_that_are_no_files(root, name, kind):
  if kind == "unreadable" and os.getuid() == 0:
    pytest.skip("Root may read everything.")
  (root / name).unlink()
  KINDS[kind](root / name)
  said = malformed.outcome(lambda: LOADERS[name](root), root)
  if (name, kind) == ("shop.item", "missing"):  # It is optional, but then nothing may need it.
    assert "its rows follow an item table, which is missing" in said
  else:
    assert said is not None and name in said


ARGUMENTS = [  # (call with a folder, what is said)
  (lambda root: load_atomic(root, root=None), "not set"),
  (lambda root: load_atomic(root, name=None), "not set"),
  (lambda root: load_atomic(root, name="../data/other"), "other.inter: no such file"),
  (lambda root: load_atomic(root, root=str(root / "shop.inter")), "no such file"),
  (lambda root: load_atomic(root, root="\0"), "no such file"),
  (lambda root: load_atomic(root, name="x" * 5_000), "no such file"),
  (lambda root: load_atomic(root, modalities=("texts",)), "unknown modality 'texts'"),
  (lambda root: load_atomic(root, features={"sound": "x.npy"}), "unknown modality 'sound'"),
  (lambda root: load_atomic(root, features={"text": ""}), "no such file"),
  (lambda root: load_atomic(root, min_interactions=10**9), "none of the 12 interactions"),
  (lambda root: load_atomic(root, features=None, text_columns=("price",)), "no text column"),
  (lambda root: load_table(root, interactions=None), "not set"),
  (lambda root: load_table(root, interactions=str(root)), "a folder stands where a file"),
  (lambda root: load_table(root, interactions=str(root / "text.npy")), "unknown kind of table"),
  (lambda root: load_table(root, items=str(root / "log.csv")), "has a row already"),
  (lambda root: load_table(root, items=None), "item table, which is missing"),
  (lambda root: load_amazon(root, root=None), "not set"),
  (lambda root: load_amazon(root, subset=""), "unknown"),
  (lambda root: load_amazon(root, subset="Beauty\n"), "unknown"),
  (lambda root: load_amazon(root, subset="../Beauty"), "unknown"),
  (lambda root: load_amazon(root, subset="Books"), "no such file"),
  (lambda root: load_amazon(root, root=str(root / "log.csv")), "no such file"),
  (lambda root: load_amazon(root, root=str(root / "log.csv"), download=True), "cannot be made"),
  (lambda _: synthetic.load(num_items=20), "mean_length=11.0 must be"),
  (lambda _: synthetic.load(mean_length=2.0), "mean_length=2.0 must be"),
  (lambda _: synthetic.load(mean_length=float("nan")), "mean_length=nan must be"),
  (lambda _: synthetic.load(mean_length=float("inf")), "mean_length=inf must be"),
  (lambda _: synthetic.load(min_interactions=100), "must be at least 100"),
  (lambda _: synthetic.load(num_users=3, min_interactions=5), "none of the"),
  (lambda _: synthetic.load(num_users=10**6, num_items=10**6), "every pair is held in memory"),
  (lambda _: synthetic.load(modalities=("video",)), "unknown modality 'video'"),
]


@pytest.mark.parametrize("case", range(len(ARGUMENTS)))
def test_arguments(root, case):
  call, expected = ARGUMENTS[case]
  said = malformed.outcome(lambda: call(root), root)
  assert said is not None and expected in said


FUZZED = [
  ("shop.inter", load_atomic), ("shop.item", load_atomic_texts), ("text.npy", load_atomic),
  ("log.csv", load_table), ("items.csv", load_table_texts), (REVIEWS, load_amazon),
  (META, load_amazon), ("inside " + REVIEWS, load_amazon), ("inside " + META, load_amazon),
]  # fmt: skip


@pytest.mark.parametrize(("name", "load"), FUZZED, ids=[name for name, _ in FUZZED])
def test_damaged_bytes(tmp_path_factory, monkeypatch, name, load):
  root = fill(tmp_path_factory.mktemp("fuzz") / "data", monkeypatch)
  packed = name.startswith("inside ")
  path = root / name.removeprefix("inside ")
  good = path.read_bytes()

  @hypothesis.settings(max_examples=60, deadline=None, derandomize=True, database=None)
  @hypothesis.given(st.data())
  def check(data):
    draw = lambda strategy: data.draw(strategy)
    content = inside_gz(functools.partial(damage, draw))(good) if packed else damage(draw, good)
    path.write_bytes(content)
    (root / "checksums.json").unlink(missing_ok=True)
    said = malformed.outcome(lambda: load(root))
    assert said is None or path.name in said or said.startswith("beauty: none of the")

  check()

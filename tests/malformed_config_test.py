"""Malformed configs: every field with values that it cannot have, and flags that say nonsense."""

import functools
import importlib
import math
import pathlib
import shutil
import sys

import hypothesis
import pytest
from absl import flags
from hypothesis import strategies as st
from ml_collections import config_dict

from bbqrec_jax import main
from bbqrec_jax.data import amazon
from bbqrec_jax.errors import UserError
from bbqrec_jax.trainers import generator, tokenizer
from tests import (
  malformed,
  malformed_amazon_test,
  malformed_data_test,
  malformed_sources_test,
  smoke_run,
)

pytestmark = pytest.mark.usefixtures("counted")

ROOT = pathlib.Path(__file__).resolve().parents[1]

VALUES = {  # What every field gets; most of it is wrong for most fields.
  "none": None,
  "text": "x",
  "empty text": "",
  "true": True,
  "minus": -1,
  "zero": 0,
  "one": 1,
  "half": 0.5,
  "three halves": 1.5,
  "huge": 2**63,
  "astronomic": 10**400,
  "minus tiny": -1e-300,
  "nan": math.nan,
  "inf": math.inf,
  "minus inf": -math.inf,
  "empty": (),
  "a text in a list": ("x",),
  "a zero in a list": (0,),
  "a list in a list": (("x",),),
  "section": {},
  "other section": {"x": 1},
  "bytes": b"x",
}

# Which of these values are fine, by kind of field. Written down apart from the rules themselves.
COUNT = {"zero", "one"}
POSITIVE_COUNT = {"one"}
SWITCH = {"true"}
NUMBER = {"zero", "one", "half", "three halves"}
POSITIVE = NUMBER - {"zero"}
RATE = {"zero", "half"}
NOTHING = set()
NAME = {"text"}
NAMES = {"empty", "a text in a list"}

_OPTIMIZER = dict(
  learning_rate=POSITIVE, schedule=NOTHING, warmup_steps=COUNT, weight_decay=NUMBER,
  clip_norm=NUMBER,
)  # fmt: skip
_STAGE = dict(
  model_name=NOTHING, optimizer=_OPTIMIZER, batch_size=POSITIVE_COUNT,
  length_groups=POSITIVE_COUNT, micro_batch_size=COUNT, num_epochs=POSITIVE_COUNT,
  eval_epochs=POSITIVE_COUNT, eval_batch_size=POSITIVE_COUNT, monitor=NOTHING, patience=COUNT,
  log_steps=POSITIVE_COUNT,
)  # fmt: skip
FINE = dict(
  seed=COUNT,
  stages=NOTHING,
  max_history=POSITIVE_COUNT,
  num_levels=POSITIVE_COUNT,
  codebook_size=NOTHING,  # Two at least.
  latent_dim=NOTHING,
  dtype=NOTHING,
  profile_steps={"empty text"},
  data=dict(
    source=NOTHING, num_users=NOTHING, num_items=NOTHING, text_dim=POSITIVE_COUNT,
    image_dim=POSITIVE_COUNT, modalities={"empty"},
  ),
  parallel=dict(mode=NOTHING, model=POSITIVE_COUNT, num_devices=COUNT),
  tokenizer=_STAGE | dict(
    model=dict(
      num_levels=POSITIVE_COUNT, codebook_size=NOTHING, latent_dim=NOTHING, use_id=SWITCH,
      shared_codebook=SWITCH, use_specific=SWITCH, normalize_latents=SWITCH,
      hidden_dims={"empty"}, sequence_encoder=NOTHING, dropout_rate=RATE, dtype=NOTHING,
      sequence_kwargs=dict(width=NOTHING, max_history=NOTHING),  # Two heads, two items.
    ),
    recon_weights=dict(text=NUMBER, image=NUMBER),
    commitment_weight=NUMBER, rec_weight=NUMBER, mim_weight=NUMBER, temperature=POSITIVE,
    logq_correction=SWITCH, center_latents=SWITCH, kmeans_iters=COUNT, revive_steps=COUNT,
    club_lr_scale=NUMBER,
  ),
  generator=_STAGE | dict(
    model=dict(
      similarity=SWITCH, num_buckets=POSITIVE_COUNT, code_dim=POSITIVE_COUNT,
      model_dim=POSITIVE_COUNT, num_heads=POSITIVE_COUNT, head_dim=POSITIVE_COUNT,
      ff_dim=POSITIVE_COUNT, num_encoder_layers=POSITIVE_COUNT,
      num_decoder_layers=POSITIVE_COUNT, dropout_rate=RATE, encoder=NOTHING,
      attention_backend=NOTHING, dtype=NOTHING,
    ),
    inherit_codebooks=SWITCH, temperature=POSITIVE,
    num_beams=POSITIVE_COUNT, num_results=NOTHING, selection_users=COUNT,
  ),
)  # fmt: skip
FINE_FOR_FILES = dict(  # The `data` section of the other sources.
  source=NOTHING, min_interactions=COUNT, modalities={"empty"}, text_model=NAME,
  text_columns=NAMES, cache_dir=NAME, features=dict(text=NAME | {"none"}, image=NAME | {"none"}),
  root=NAME | {"none"}, name=NAME | {"none"}, subset=NOTHING, download=SWITCH,
  interactions=NAME | {"none"}, items=NAME | {"none"},
)  # fmt: skip


def flat(tree: dict, prefix: str = "") -> dict:
  """Dotted name -> leaf."""
  found = {}
  for key, value in tree.items():
    if isinstance(value, dict) and value:
      found |= flat(value, f"{prefix}{key}.")
    else:
      found[prefix + key] = value
  return found


FINE_VALUES = flat(FINE)


def nested(changes: dict, base: dict) -> config_dict.FrozenConfigDict:
  """A config of any values at all, unlike a ConfigDict that guards the types of its fields."""
  tree = dict(base)
  for name, value in changes.items():
    *path, last = name.split(".")
    at = tree
    for key in path:
      at[key] = dict(at[key])
      at = at[key]
    at[last] = value
  return config_dict.FrozenConfigDict(tree, type_safe=False)


@functools.cache
def smoke() -> dict:
  config = smoke_run.make_config().to_dict()
  assert set(flat(config)) == set(FINE_VALUES), "Say of a new field what it can be."
  return config


@functools.cache
def from_files(name: str) -> dict:
  """The `data` section of configs/<name>.py, in the smoke run's config."""
  module = importlib.import_module(f"configs.{name}")
  return smoke() | dict(data=module.get_config().data.to_dict())


@pytest.fixture(autouse=True)
def no_training(monkeypatch):
  """What would be trained was accepted."""

  def reached(*_):
    raise malformed.Reached

  for trainer in (tokenizer, generator):
    monkeypatch.setattr(trainer, "train", reached)


def run(changes: dict, workdir: pathlib.Path, base: dict | None = None) -> None:
  main.run(nested(changes, base or smoke()), workdir)


@pytest.mark.parametrize("name", FINE_VALUES)
def test_every_field_with_every_value(tmp_path, name):
  for kind, value in VALUES.items():
    said = malformed.outcome(functools.partial(run, {name: value}, tmp_path / kind))
    if kind in FINE_VALUES[name]:
      assert said is None, (kind, said)
    else:
      assert said is not None and name in said, (kind, said)
      assert not (tmp_path / kind).exists()


def no_download(urls, path):
  raise UserError(f"{path}: not there.")


@pytest.mark.parametrize("config", ["atomic", "table", "beauty"])
def test_every_field_of_the_data_with_every_value(tmp_path, monkeypatch, config):
  monkeypatch.setattr(amazon, "fetch", no_download)
  base = from_files(config)
  for name in flat(dict(data=base["data"])):
    fine = flat(dict(data=FINE_FOR_FILES))[name]
    for kind, value in VALUES.items():
      call = functools.partial(run, {name: value}, tmp_path / "x", base)
      said = malformed.outcome(call, tmp_path)
      # There are no files, so that all are refused; but those that are wrong by themselves first.
      assert said is not None
      assert (f"{name}={value!r}" in said) == (kind not in fine), (name, kind, said)


SECTIONS = sorted({name.rpartition(".")[0] for name in FINE_VALUES} - {""})
# All that these pass on has defaults.
WITH_DEFAULTS = (
  "parallel", "tokenizer.model", "tokenizer.model.sequence_kwargs", "generator.model"
)  # fmt: skip


@pytest.mark.parametrize("name", SECTIONS)
def test_every_section_replaced_emptied_or_with_a_key_more(tmp_path, name):
  for value in (None, 5, "x", (), True, math.nan):
    said = malformed.outcome(functools.partial(run, {name: value}, tmp_path), tmp_path)
    assert said == f"{name}={value!r} must be a section, with fields of its own."
  for changes, expected in (
    ({f"{name}.sed": 1}, f"{name} has no field 'sed'"),
    ({f"{name}.num_item": 1}, f"{name} has no field 'num_item'"),
    ({f"{name}.parent": None}, f"{name} has no field 'parent'"),
    ({f"{name}.given": {}}, f"{name} has no field 'given'"),
  ):
    said = malformed.outcome(functools.partial(run, changes, tmp_path), tmp_path)
    assert said is not None and expected in said, said
  said = malformed.outcome(lambda: run({name: {}}, tmp_path / "x"))
  assert (said is None) == (name in WITH_DEFAULTS), said


@pytest.mark.parametrize("name", [*smoke_run.make_config().keys(), "tokenizer.monitor",
  "generator.num_beams", "data.source", "tokenizer.optimizer.learning_rate",
  "tokenizer.recon_weights.text"])  # fmt: skip
def test_fields_that_are_missing(tmp_path, name):
  *path, last = name.split(".")
  base = nested({}, smoke()).to_dict()
  at = base
  for key in path:
    at = at[key]
  del at[last]
  said = malformed.outcome(lambda: run({}, tmp_path, base), tmp_path)
  assert said == f"{name} is missing in the config."


COMBINATIONS = [  # (changes, what is said)
  ({"stages": ("tokenizer", "tokenizer")}, "none twice"),
  ({"stages": ("generator", "tokenizer")}, "the tokenizer comes first"),
  ({"stages": ("generator",)}, "run the tokenizer stage in this workdir first"),
  ({"stages": ("tokeniser",)}, "did you mean 'tokenizer'?"),
  ({"stages": ("tokenizer", "ranker")}, "ranker is missing in the config."),
  ({"stages": ("tokenizer", "rankers")}, "did you mean 'ranker'?"),
  ({"stages": ("__init__",)}, "names no module"),
  ({"stages": ("tokenizer.train",)}, "did you mean 'tokenizer'?"),
  ({"stages": "tokenizer"}, "stages='tokenizer' must be a list"),
  ({"stages": ("tokenizer", None)}, "must be a list"),
  ({"tokenizer.model_name": "generator"}, "tokenizer.model has no field"),
  ({"tokenizer.model_name": "layers"}, "bbqrec_jax/models/layers.py has no Model"),
  ({"tokenizer.model_name": "../main"}, "names no module"),
  ({"generator.model_name": "tokenizer"}, "generator.model has no field"),
  ({"generator.model_name": "genrator"}, "did you mean 'generator'?"),
  ({"tokenizer.model.sequence_encoder": "gru"}, "sequence_encoder='gru_encoder' names no module"),
  ({"tokenizer.model.sequence_encoder": "srgnn"}, "sequence_kwargs has no field 'max_history'"),
  ({"tokenizer.model.num_items": 5}, "tokenizer.model has no field 'num_items'"),
  ({"generator.model.num_levels": 3}, "generator.model has no field 'num_levels'"),
  ({"tokenizer.optimizer.num_steps": 3}, "tokenizer.optimizer has no field 'num_steps'"),
  ({"tokenizer.model.sequence_kwargs.out_dim": 3}, "has no field 'out_dim'"),
  ({"tokenizer.model.sequence_kwargs.num_heads": 0}, "num_heads=0 must be"),
  ({"tokenizer.model.sequence_kwargs.num_heads": 7}, "must be a multiple of 7 heads"),
  ({"tokenizer.model.sequence_kwargs.max_history": 1}, "must be at least max_history=2"),
  ({"max_history": 3}, "sequence_kwargs.max_history=2 must be at least max_history=3"),
  ({"generator.inherit_codebooks": True, "generator.model.code_dim": 5}, "code_dim=5 must be"),
  (
    {"generator.inherit_codebooks": True, "generator.model": {}, "tokenizer.model.latent_dim": 64},
    "code_dim=128 must be tokenizer.model.latent_dim=64",
  ),
  ({"generator.model.attention_backend": "pallas"}, "needs a GPU"),
  ({"generator.model.dtype": "float16"}, "dtype='float16' must be one of float32, bfloat16"),
  ({"generator.num_results": 9}, "num_results=9 must be a whole number, at least 10"),
  ({"tokenizer.batch_size": 151}, "150 users are fewer than tokenizer.batch_size=151"),
  ({"tokenizer.optimizer.schedule": "linear"}, "must be one of constant, cosine"),
  ({"tokenizer.model.use_id": False, "data.modalities": ()}, "No signal is left"),
  ({"parallel.num_devices": 9}, "parallel.num_devices=9: there are 8"),
  ({"parallel.model": 3, "parallel.num_devices": 8}, "parallel.model=3 must divide"),
  ({"parallel.mode": "pmap", "parallel.model": 2, "parallel.num_devices": 8}, "shares no tables"),
  ({"parallel.mode": "spmd"}, "must be one of jit, pmap"),
  ({"data.source": "synthetics"}, "did you mean 'synthetic'?"),
  ({"data.source": "lines"}, "bbqrec_jax/data/lines.py has no load"),
  ({"data.source": "table"}, "data has no field"),
  ({"data.modalities": ("text", "video")}, "data.modalities="),
  ({"data.modalities": "text"}, "data.modalities='text' must be a list"),
  ({"data.mean_length": 1e5}, "mean_length=100000.0 must be at least"),
  ({"data.min_interactions": 40}, "must be at least 40"),
  ({"data.num_users": 10**7, "data.num_items": 10**7}, "every pair is held in memory"),
  ({"data.missing_text_rate": 1.01}, "missing_text_rate=1.01 must be"),
  ({"data.noise_scale": math.nan}, "noise_scale=nan must be"),
  ({"data.seed": -1}, "data.seed=-1 must be"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "expected"), COMBINATIONS)
def test_fields_that_do_not_go_together(tmp_path, changes, expected):
  said = malformed.outcome(lambda: run(changes, tmp_path / "workdir"), tmp_path)
  assert said is not None and expected in said


@hypothesis.settings(max_examples=150, deadline=None, derandomize=True, database=None)
@hypothesis.given(
  changes=st.dictionaries(
    st.sampled_from(sorted(FINE_VALUES)),
    # Whole numbers between would be a lot of data, rightly accepted.
    st.sampled_from(list(VALUES.values()))
    | st.integers(-9, 300)
    | st.integers(2**31, 2**70)
    | st.floats()
    | st.text(),
    min_size=1,
    max_size=4,
  )
)
def test_several_fields_at_once(tmp_path_factory, changes):
  workdir = tmp_path_factory.getbasetemp() / "several"
  said = malformed.outcome(lambda: run(changes, workdir))
  assert workdir.exists() == (said is None)
  if said is None:
    shutil.rmtree(workdir)


def command(monkeypatch, *args: str) -> int:
  """The exit status of `python -m bbqrec_jax.main` with these arguments."""
  argv = ["main", *args]
  monkeypatch.setattr(sys, "argv", argv)  # Where ml_collections looks for overrides.
  monkeypatch.chdir(ROOT)
  monkeypatch.delitem(sys.modules, "config_config", raising=False)  # Of the call before.
  flag_values = flags.FlagValues()
  main.define_flags(flag_values)
  return main.main(main.parse_flags(argv, flag_values), flag_values)


SMOKE = "--config=configs/quickstart.py:smoke"
TEXTS = ("", "x", "-1", "nan", "None", "1e999", "(1,", "9" * 5_000, "[]")


@pytest.mark.parametrize("name", [*FINE_VALUES, *SECTIONS])
def test_every_flag_with_nonsense(tmp_path, monkeypatch, capsys, name):
  for text in TEXTS:
    args = (SMOKE, f"--workdir={tmp_path}/x", f"--config.{name}={text}")
    call = functools.partial(command, monkeypatch, *args)
    said = malformed.command_outcome(call, capsys, tmp_path)
    if said is None:
      assert flat(FINE).get(name) is not NOTHING, text
      break  # The workdir is claimed now, for another config.
    assert said.startswith("Error: ")


FLAGS = [  # (arguments, what is said)
  ((), "--config is missing; see --help."),
  (("--config=",), ""),
  (("--config=gone.py",), "No such file"),
  (("--config=configs",), ""),
  (("--config=README.md",), ""),
  (("--config=configs/common.py",), "get_config"),
  ((SMOKE, "--workdir="), "--workdir is empty"),
  ((SMOKE, "--workdr=x"), "Did you mean: workdir"),
  ((SMOKE, "--config.tokenizer.model=5"), ""),
  ((SMOKE, "--config.tokenizer.modell.x=5"), "no key 'modell'"),
  ((SMOKE, "--config.=5"), ""),
  ((SMOKE, "--config.seed.x=5"), ""),
  ((SMOKE, "--config.seed[0]=5"), ""),
  ((SMOKE, "--config.stages[7]=x"), ""),
  ((SMOKE, "--config.seed=1.5"), "invalid literal"),
  ((SMOKE, "--num_processes=two"), "two"),
  ((SMOKE, "--num_processes=2"), "need --coordinator"),
  ((SMOKE, "--process_id=0"), "need --coordinator"),
  ((SMOKE, "config.seed=3"), "'config.seed=3' is no flag"),
  ((SMOKE, "--", "--config.seed=3"), "'--config.seed=3' is no flag"),
  ((SMOKE + ",smoke=maybe",), "does not read as bool"),
  ((SMOKE + ",no_sound",), "'no_sound'"),
  ((SMOKE + ",=",), "Unknown config argument"),
]


@pytest.mark.parametrize(("args", "expected"), FLAGS)
def test_flags(tmp_path, monkeypatch, capsys, args, expected):
  if not any(arg.startswith("--workdir") for arg in args):
    args = (f"--workdir={tmp_path}/x", *args)
  said = malformed.command_outcome(lambda: command(monkeypatch, *args), capsys, tmp_path)
  assert said is not None and said.startswith("Error: ") and expected in said


SOURCES = [  # A config file's text, and what is said.
  ("", "get_config"),
  ("def get_config(", "config.py:1: "),
  ("def get_config():\nreturn 5", "config.py:2: "),
  ("import no_such_module", "No module named 'no_such_module'"),
  ("def get_config():\n  return None", ""),
  ("def get_config():\n  return {}", ""),
  ("def get_config():\n  return 5", ""),
  ("def get_config():\n  raise ValueError('Not today.')", "Not today."),
  ("import ml_collections\ndef get_config():\n  return ml_collections.ConfigDict()", "missing"),
  ("def get_config(a, b):\n  return None", "argument"),
  ("get_config = 5", "not callable"),
  ("\0", "null bytes"),
]


@pytest.mark.parametrize(("source", "expected"), SOURCES)
def test_config_files(tmp_path, monkeypatch, capsys, source, expected):
  path = tmp_path / "config.py"
  path.write_text(source)
  monkeypatch.setattr(sys, "dont_write_bytecode", True)
  args = (f"--config={path}", f"--workdir={tmp_path}/x")
  said = malformed.command_outcome(lambda: command(monkeypatch, *args), capsys, tmp_path)
  assert said is not None and said.startswith("Error: ") and expected in said


def test_there_are_at_least_two_hundred():
  data, amazon = malformed_data_test, malformed_amazon_test
  files = (data.INTERACTIONS, data.ITEM_TABLES, data.CSV, data.MATRICES)
  files += (amazon.JSON_LINES, amazon.LITERALS, amazon.RAW, malformed_sources_test.ARGUMENTS)
  assert sum(map(len, files)) >= 200
  assert len(FINE_VALUES) * len(VALUES) >= 200

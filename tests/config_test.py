"""Every config builds, names what exists, is read in full, and answers a slip with one sentence."""

import importlib
import pathlib
import re
import subprocess
import sys

import pytest
from absl import flags
from ml_collections import config_dict

from bbqrec_jax import main, validate
from bbqrec_jax.data.dataset import MODALITIES
from bbqrec_jax.tables import systems
from configs import common, quickstart, sasrec, tiger
from tests import smoke_run

ROOT = pathlib.Path(__file__).resolve().parents[1]
CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("*.py") if path.stem != "common")


KNOWN = common.SWITCHES | common.RANKER_SWITCHES | tiger.SWITCHES


def arguments(module) -> set[str]:
  """The arguments of a config, as it lists them itself."""
  with pytest.raises(ValueError, match="This config knows") as error:
    module.get_config("no-such-argument")
  names = set(re.search(r"This config knows: (.*)\.", str(error.value))[1].split(", "))
  assert names <= set(KNOWN)
  return names


def module_names(config) -> set[str]:
  """Modules of the package that a config names."""
  names = {f"trainers.{stage}" for stage in config.stages} | {f"data.{config.data.source}"}
  for stage in config.stages:
    names.add(f"models.{config[stage].model_name}")
    encoder = config[stage].model.get("sequence_encoder")
    if encoder is not None:
      names.add(f"models.{encoder}_encoder")
  return names


@pytest.mark.parametrize("name", CONFIGS)
def test_every_switch_builds_a_config_whose_modules_exist(name):
  module = importlib.import_module(f"configs.{name}")
  known = arguments(module)
  args = ["", *(name for name in known if isinstance(KNOWN[name], bool))]
  if "srgnn" in known:
    args.append("smoke,srgnn,no_text")
  if "data" in known:
    args += ["data=beauty", "data=atomic", "data=table"]
  for arg in args:
    config = module.get_config(arg)
    assert isinstance(config, config_dict.ConfigDict)
    assert set(config.data.modalities) <= set(MODALITIES)
    for module_name in module_names(config):
      importlib.import_module(f"bbqrec_jax.{module_name}")


def test_unknown_data_are_refused_with_those_there_are():
  with pytest.raises(ValueError, match="data='beuty': the data are one of synthetic, beauty"):
    sasrec.get_config("data=beuty")


def test_every_switch_changes_something():
  default = quickstart.get_config("causal=false").to_json()
  for switch in common.SWITCHES:
    arg = switch if switch == "causal" else f"causal=false,{switch}"
    assert quickstart.get_config(arg).to_json() != default, switch


def test_values_named_once_reach_every_section():
  config = quickstart.get_config()
  config.update(num_levels=2, codebook_size=17, latent_dim=19, max_history=23)
  model = config.tokenizer.model
  assert (model.num_levels, model.codebook_size, model.latent_dim) == (2, 17, 19)
  assert config.generator.model.code_dim == 19
  assert model.sequence_kwargs.max_history == 23


@pytest.mark.parametrize("name", [s.config for s in (*systems.BASELINES, systems.BBQREC)])
def test_one_dtype_reaches_every_section_with_a_model(name):
  config = systems.load_module(name).get_config()
  if "dtype" not in config:
    assert name in ("popularity", "item_knn")
    return
  config.dtype = "bfloat16"
  validate.check_config(config.to_dict())
  stages = [config[stage].model for stage in config.stages]
  assert {model.dtype for model in stages if "dtype" in model} == {"bfloat16"}


def test_a_run_reads_every_field():
  # These are only the names by which the sections' own fields are set together.
  assert smoke_run.finished().unread == {"latent_dim", "dtype"}


def parse(monkeypatch, *args: str) -> flags.FlagValues:
  argv = ["main", *args, "--workdir=unused"]
  monkeypatch.setattr(sys, "argv", argv)  # Where ml_collections looks for overrides.
  monkeypatch.chdir(ROOT)
  flag_values = flags.FlagValues()
  main.define_flags(flag_values)
  main.parse_flags(argv, flag_values)
  return flag_values


def test_overrides_reach_the_config(monkeypatch):
  args = ("--config=configs/quickstart.py:smoke,no_mim", "--config.tokenizer.model.num_levels=2")
  config = parse(monkeypatch, *args).config
  assert config.tokenizer.mim_weight == 0.0
  assert config.tokenizer.model.num_levels == 2


@pytest.mark.parametrize(
  ("args", "said"),
  [
    (["--config=configs/quickstart.py:smoek"], "'smoek': did you mean 'smoke'?"),
    (["--config=configs/quickstart.py:smoke=7"], "'7' does not read as bool."),
    (["--config=configs/quickstart.pi"], "No such file or directory: 'configs/quickstart.pi'"),
    (
      ["--config=configs/quickstart.py", "--config.tokenizer.bach_size=3"],
      "--config has no key 'bach_size'; did you mean 'batch_size'?",
    ),
    (
      ["--config=configs/quickstart.py", "--config.tokeniser.batch_size=3"],
      "--config has no key 'tokeniser'; did you mean 'tokenizer'?",
    ),
    (["--config=configs/quickstart.py", "--config.zzz=3"], "--config has no key 'zzz'."),
    (["--config=configs/quickstart.py", "--config.seed=one"], "--config.seed=one: invalid literal"),
    (["--config=configs/quickstart.py", "--wrkdir=x"], "'wrkdir'. Did you mean: workdir ?"),
    ([], "--config is missing; see --help."),
  ],
)
def test_a_slip_is_answered_in_one_sentence(monkeypatch, capsys, args, said):
  with pytest.raises(SystemExit) as exit_info:
    parse(monkeypatch, *args)
  assert exit_info.value.code == 1
  error = capsys.readouterr().err
  assert error.startswith("Error: ") and error.count("\n") == 1
  assert said in error


def test_the_command_itself_shows_no_traceback():
  command = [sys.executable, "-m", "bbqrec_jax.main", "--config=configs/quickstart.py:smoek"]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 1
  assert done.stderr.startswith("Error: ") and done.stderr.count("\n") == 1
  assert "did you mean 'smoke'?" in done.stderr

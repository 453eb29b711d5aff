"""Every system that a table can hold, and the config that it is.

A system is a config with switches and overrides; its runs stand in results/runs/DATASET/SYSTEM/.
"""

import functools
import importlib.util
import pathlib
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

from ml_collections import config_dict

from bbqrec_jax.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]


class System(NamedTuple):
  """One row of a table.

  Attributes:
    name: of its folder.
    label: in tables, as the paper has it.
    config: configs/<config>.py.
    switches: what stands behind the config's colon.
    overrides: field of the config -> its value.
    has_test: False for one that only makes semantic IDs.
  """

  name: str
  label: str
  config: str
  switches: tuple[str, ...] = ()
  overrides: Mapping[str, Any] = {}
  has_test: bool = True


def _baseline(name: str, label: str) -> System:
  return System(name, label, config=name)


BASELINES = (  # As in Table 2; the first two are ours.
  _baseline("popularity", "Popularity"),
  _baseline("item_knn", "ItemKNN"),
  _baseline("gru4rec", "GRU4Rec"),
  _baseline("bert4rec", "BERT4Rec"),
  _baseline("sasrec", "SASRec"),
  _baseline("gru4rec_f", "GRU4Rec_F"),
  _baseline("sasrec_f", "SASRec_F"),
  _baseline("nova_bert", "NOVA-BERT"),
  _baseline("missrec", "MISSRec"),
  _baseline("vq_rec", "VQ-Rec"),
  _baseline("tiger", "TIGER"),
  _baseline("letter", "LETTER"),
)
BBQREC = System("bbqrec", "BBQRec", config="bbqrec")


def _ablation(switch: str, label: str) -> System:
  return System(f"bbqrec_{switch}", label, config="bbqrec", switches=(switch,))


ABLATIONS = (
  _ablation("no_mim", "without MIM"),
  _ablation("no_rec", "without Rec"),
  _ablation("unshared", "unshared codebooks"),
  _ablation("no_similarity", "S: no similarity"),
  _ablation("inherited", "E: inherited embeddings"),
  _ablation("no_id", "without id"),
  _ablation("no_text", "without text"),
  _ablation("no_image", "without image"),
)

# Figure 3: letter -> (field, values); the value that BBQRec itself has is its own run.
HYPERPARAMETERS = dict(
  L=("num_levels", (1, 2, 3, 4)),
  N=("codebook_size", (64, 128, 256, 512)),
  D=("latent_dim", (32, 64, 128, 256)),
  K=("generator.model.num_buckets", (10, 50, 100, 200)),
)
DEFAULTS = dict(L=3, N=256, D=128, K=100)


def variant_name(letter: str, value: int) -> str:
  """The system of Figure 3 in which L, N, D or K has this value."""
  return BBQREC.name if DEFAULTS[letter] == value else f"bbqrec_{letter.lower()}{value}"


VARIANTS = tuple(
  System(
    variant_name(letter, value),
    f"{letter} = {value}",
    config="bbqrec",
    overrides={field: value},
  )
  for letter, (field, values) in HYPERPARAMETERS.items()
  for value in values
  if value != DEFAULTS[letter]
)

IDS_LEVELS = (2, 3, 4)  # Table 5.


def _only_ids(config: str, label: str, stages: tuple[str, ...]) -> tuple[System, ...]:
  return tuple(
    System(
      f"{config}_ids_l{num_levels}",
      f"{label}, L = {num_levels}",
      config=config,
      overrides=dict(num_levels=num_levels, stages=stages),
      has_test=False,
    )
    for num_levels in IDS_LEVELS
  )


IDS = (
  *_only_ids("tiger", "RQ-VAE", ("rqvae",)),
  *_only_ids("letter", "LETTER", ("ranker", "rqvae")),
  *_only_ids("bbqrec", "BBQRec", ("tokenizer",)),
)

SYSTEMS = {system.name: system for system in (*BASELINES, BBQREC, *ABLATIONS, *VARIANTS, *IDS)}


def as_text(overrides: Mapping[str, Any]) -> list[str]:
  """{"field": value} as "field=value"."""
  return [f"{field}={value}" for field, value in overrides.items()]


def arg_of(data: str, switches: tuple[str, ...]) -> str:
  """What stands behind a config's colon."""
  return ",".join((f"data={data}", *switches))


@functools.cache
def load_config(name: str, arg: str = "") -> config_dict.FrozenConfigDict:
  """What configs/<name>.py makes of what stands behind the colon.

  Raises:
    UserError: there is no such config.
    ValueError: the config does not know the argument.
  """
  return config_dict.FrozenConfigDict(load_module(name).get_config(arg))


@functools.cache
def load_module(name: str):
  """The module configs/<name>.py; raises UserError if there is none."""
  path = config_path(name)
  if not path.exists():
    raise UserError(f"there is no {path.parent.name}/{path.name}.")
  if str(ROOT) not in sys.path:  # Configs import each other from there.
    sys.path.append(str(ROOT))
  spec = importlib.util.spec_from_file_location(f"configs.{name}", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def config_path(name: str) -> pathlib.Path:
  return ROOT / "configs" / f"{name}.py"


def models(system: System) -> list[str]:
  """The model file of each of its stages, as its config names them.

  Raises UserError if there is no such config.
  """
  config = load_config(system.config, ",".join(system.switches))
  left_out = stages_left_out(system)
  stages = [stage for stage in config.stages if stage not in left_out]
  return [f"bbqrec_jax/models/{config[stage].model_name}.py" for stage in stages]


def stages_left_out(system: System) -> set[str]:
  """The stages of its config that it does not run; raises UserError if there is no such config."""
  stages = load_config(system.config, ",".join(system.switches)).stages
  return set(stages) - set(system.overrides.get("stages", stages))


def listing() -> str:
  """A line for each system: its name, config and model files."""
  rows = []
  for system in SYSTEMS.values():
    arg = ",".join(system.switches)
    config = f"configs/{system.config}.py" + (f":{arg}" if arg else "")
    changes = " ".join(f"--config.{field}" for field in as_text(system.overrides))
    try:
      files = " ".join(dict.fromkeys(models(system)))
    except UserError as error:
      files = f"({error})"
    rows.append((system.name, system.label, f"{config} {changes}".strip(), files))
  widths = [max(len(row[n]) for row in rows) for n in range(3)]
  return "\n".join(
    "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths)), row[3]]) for row in rows
  )

"""What a config must be before any work starts, and what its data must be."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from bbqrec_jax import diagnostics, fields, plugins, rules
from bbqrec_jax.data.dataset import HELD_OUT, Dataset
from bbqrec_jax.errors import UserError


def check_config(config: Mapping) -> None:
  """Refuses a config that cannot work, whatever the data are.

  Args:
    config: nested dicts.

  Raises:
    UserError: names the first field that is missing, unknown, of a wrong type or out of bounds,
      or the fields that do not go together.
  """
  rules.check(config, fields.rules_of(config))
  diagnostics.parse_steps(config.get("profile_steps", ""))
  _check_stages(config["stages"])
  if "tokenizer" in config:
    _check_sequence(config)
  if "generator" in config:
    _check_generator(config)
  for stage in ("pretrainer", "ranker"):
    if stage in config:
      _check_heads(f"{stage}.model", config[stage]["model"], fields.model_class(stage)(config))
  if "ranker" in config and config["ranker"]["init_from"]:
    _check_init_from(config)
  if "rqvae" in config:
    _check_rqvae(config)


def _check_stages(stages: Sequence[str]) -> None:
  for stage in stages:
    plugins.load("trainers", stage, "stages", "train")
  if not stages or len(set(stages)) < len(stages):
    raise UserError(f"stages={tuple(stages)} must name at least one stage, and none twice.")
  if "tokenizer" in stages[1:]:
    raise UserError(f"stages={tuple(stages)}: the tokenizer comes first, the others read its work.")
  if "rqvae" in stages and set(stages[: stages.index("rqvae")]) & {"tokenizer", "generator"}:
    raise UserError(
      f"stages={tuple(stages)}: the rqvae comes before the generator and in place of the tokenizer."
    )


def _check_rqvae(config: Mapping) -> None:
  """What LETTER's additions need."""
  own, stages = config["rqvae"], config["stages"]
  before = stages[: stages.index("rqvae")] if "rqvae" in stages else ("ranker",)
  codes = _of_model(config, "rqvae", "codebook_size")
  clusters = own["num_clusters"]
  if own["diversity_weight"] and codes < 2 * clusters:
    raise UserError(
      f"rqvae.num_clusters={clusters}: codebook_size={codes} leaves a cluster with a single code, "
      "and rqvae.diversity_weight needs two."
    )
  if 0 < own["sinkhorn_temperature"] < fields.LEAST_TEMPERATURE:
    raise UserError(
      f"rqvae.sinkhorn_temperature={own['sinkhorn_temperature']} must be 0 (not used) or at least "
      f"{fields.LEAST_TEMPERATURE}."
    )
  if own["repair_rounds"] and not own["sinkhorn_temperature"]:
    raise UserError(
      f"rqvae.repair_rounds={own['repair_rounds']} needs rqvae.sinkhorn_temperature above 0."
    )
  if own["alignment_weight"] and "ranker" not in before:
    raise UserError(
      f"stages={tuple(stages)}: rqvae.alignment_weight={own['alignment_weight']} needs a ranker "
      "before the rqvae, whose item vectors it reads."
    )


def _check_init_from(config: Mapping) -> None:
  """The stage that the ranker starts from comes before it, and has a model of the same shapes."""
  stages, stage = config["stages"], config["ranker"]["init_from"]
  if stage not in stages or stages.index(stage) > stages.index("ranker"):
    raise UserError(f"ranker.init_from={stage!r}: stages={tuple(stages)} must have it before.")
  own, other = config["ranker"], config[stage]
  models = [section["model"] | dict(name=section["model_name"]) for section in (own, other)]
  keys = (models[0].keys() | models[1].keys()) - {"use_id", "dropout_rate"}
  differ = sorted(key for key in keys if models[0].get(key) != models[1].get(key))
  if differ:
    raise UserError(
      f"ranker.init_from={stage!r}: the models of both stages must be alike, but for use_id and "
      f"dropout_rate; they differ in {', '.join(differ)}."
    )


def _check_generator(config: Mapping) -> None:
  own, writer = config["generator"], fields.writer_of_ids(config)
  if own["inherit_codebooks"] and writer in config:
    if config[writer].get("number_collisions"):
      raise UserError(
        "generator.inherit_codebooks=True: running numbers have no codebook; set "
        "rqvae.number_collisions=False."
      )
    code_dim = _of_model(config, "generator", "code_dim")
    latent_dim = _of_model(config, writer, "latent_dim")
    if code_dim != latent_dim:
      raise UserError(
        f"generator.inherit_codebooks=True: generator.model.code_dim={code_dim} "
        f"must be {writer}.model.latent_dim={latent_dim}."
      )
  if own["model"].get("attention_backend") == "pallas" and jax.default_backend() != "gpu":
    raise UserError("generator.model.attention_backend='pallas' needs a GPU; take 'xla'.")


def _of_model(config: Mapping, stage: str, name: str) -> Any:
  """A field of a stage's model: as the config has it, or else the model's own."""
  given = config[stage]["model"]
  return given[name] if name in given else getattr(fields.model_class(stage)(config), name)


def _check_sequence(config: Mapping) -> None:
  """What the sequence encoder's arguments must be together, as far as they are given."""
  given, name = config["tokenizer"]["model"].get("sequence_kwargs", {}), "sequence_kwargs"
  if given.get("max_history", config["max_history"]) < config["max_history"]:
    raise UserError(
      f"tokenizer.model.{name}.max_history={given['max_history']} must be at least "
      f"max_history={config['max_history']}."
    )
  if given:
    _check_heads(f"tokenizer.model.{name}", given, fields.sequence_encoder_class(config))


def _check_heads(name: str, given: Mapping, module: Any) -> None:
  """Refuses a width that the heads cannot share; what is not given is the module's own."""
  width = given.get("width", getattr(module, "width", 0))
  heads = given.get("num_heads", getattr(module, "num_heads", 1))
  if width % heads:
    raise UserError(f"{name}.width={width} must be a multiple of {heads} heads.")


def check_data(config, dataset: Dataset) -> None:
  """Refuses what cannot work on these data before any long work starts; warns where it still can.

  Raises UserError.
  """
  if dataset.num_users < 2 or dataset.num_items < 2:
    raise UserError(
      f"{dataset.name}: {dataset.num_users} users and {dataset.num_items} items are left; at "
      "least 2 of each are needed. Lower data.min_interactions or bring more data."
    )
  longest = int(np.diff(dataset.offsets).max())
  learns_sequences = not {"tokenizer", "pretrainer", "ranker", "generator"}.isdisjoint(
    config.stages
  )
  if learns_sequences and longest <= HELD_OUT["train"] + 1:
    raise UserError(
      f"{dataset.name}: no user has more than {longest} interactions; two are held out, and what "
      "follows another can be learnt from users with four or more alone. Bring more data."
    )
  if "tokenizer" in config.stages:
    _check_signals(config, dataset)
  if "rqvae" in config.stages:
    modality = config.rqvae.modality
    if modality not in dataset.features:
      raise UserError(f"rqvae.modality={modality!r}: no item of {dataset.name} has a vector of it.")
    _warn_of_few_ids(config, dataset, 1)


def _check_signals(config, dataset: Dataset) -> None:
  batch_size = config.tokenizer.batch_size
  if dataset.num_users < batch_size:
    raise UserError(
      f"{dataset.name}: {dataset.num_users} users are fewer than tokenizer.batch_size="
      f"{batch_size}; lower tokenizer.batch_size (and generator.batch_size)."
    )
  num_signals = config.tokenizer.model.get("use_id", True) + len(dataset.features)
  if not num_signals:
    raise UserError("No signal is left: the id is switched off and no item has text or image.")
  _warn_of_few_ids(config, dataset, num_signals)


def _warn_of_few_ids(config, dataset: Dataset, num_signals: int) -> None:
  num_ids = config.codebook_size ** (config.num_levels * num_signals)
  if num_ids < 10 * dataset.num_items:
    print(
      f"Warning: {config.codebook_size} codes at {config.num_levels} levels of {num_signals} "
      f"signals give {num_ids:,} semantic IDs for {dataset.num_items} items; many items will "
      "share one. Raise codebook_size or num_levels.",
      file=sys.stderr,
    )

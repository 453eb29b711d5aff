"""What a config must be before any work starts, and what its data must be."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from bbqrec_jax import diagnostics, optim, partition, plugins
from bbqrec_jax.data import batches
from bbqrec_jax.data.dataset import MODALITIES, Dataset
from bbqrec_jax.errors import UserError
from bbqrec_jax.evaluators import ranking
from bbqrec_jax.models import attention, generator
from bbqrec_jax.rules import FLAG, Many, OneOf, Real, Section, Text, Whole, check
from bbqrec_jax.trainers import pretrainer, ranker, rqvae, tokenizer

# Wide enough for any use; what lies beyond is a slip that would end in a lack of memory.
_WIDTH = Whole(1, 65_536)
_LAYERS = Whole(1, 256)
_HEADS = Whole(1, 1_024)
_LEVELS = Whole(1, 64)
_CODES = Whole(2, 2**20)  # One code says nothing.
_HISTORY = Whole(1, 10_000)
_BATCH = Whole(1, 2**20)
_SEED = Whole(0, 2**32 - 1)  # What jax.random.key() tells apart.
_DTYPE = OneOf(("float32", "bfloat16"))
_RATE = Real(0.0, 1.0, below=True)  # Of dropout, where 1 would leave nothing.
_SHARE = Real(0.0, 1.0)
_WEIGHT = Real(0.0)
_TEMPERATURE = Real(1e-6)


def _data(config: Mapping) -> Callable:
  return plugins.load("data", config["data"]["source"], "data.source", "load").load


def _model(stage: str, needs: str | None = None) -> Callable[[Mapping], Callable]:
  """What gives the Model that a stage's section names; it must have a method, if told."""

  def model(config):
    key, name = f"{stage}.model_name", config[stage]["model_name"]
    found = plugins.load("models", name, key, "Model").Model
    if needs and not hasattr(found, needs):
      raise UserError(f"{key}={name!r} is no model of this stage; it has no {needs}().")
    return found

  return model


def _sequence_encoder(config: Mapping) -> Callable:
  default = _model("tokenizer")(config).sequence_encoder
  name = config["tokenizer"]["model"].get("sequence_encoder", default)
  key = "tokenizer.model.sequence_encoder"
  return plugins.load("models", f"{name}_encoder", key, "Encoder").Encoder


_OF_FLAX = ("parent", "name")  # Arguments of every module.

_OPTIMIZER = Section(
  dict(
    learning_rate=Real(0.0, above=True),
    schedule=OneOf(optim.SCHEDULES),
    warmup_steps=Whole(),
    weight_decay=_WEIGHT,
    clip_norm=_WEIGHT,
  ),
  callee=lambda _: optim.make_optimizer,
  given=("num_steps", "scales"),
)

_STEPS = dict(  # What every stage that learns by gradients has.
  optimizer=_OPTIMIZER,
  batch_size=_BATCH,
  num_epochs=Whole(1, 100_000),
  eval_epochs=Whole(1, 100_000),
  patience=Whole(),
  log_steps=Whole(1),
)

_TRAINING = _STEPS | dict(  # And what those that learn from histories do.
  length_groups=OneOf(batches.LENGTH_GROUPS),
  micro_batch_size=Whole(),
  eval_batch_size=_BATCH,
)

_SEQUENCE_KWARGS = Section(
  dict(
    max_history=_HISTORY,
    width=_WIDTH,
    num_layers=_LAYERS,
    num_heads=_HEADS,
    mlp_dim=_WIDTH,
    init_scale=Real(0.0, above=True),
  ),
  callee=_sequence_encoder,
  given=("out_dim", "dropout_rate", "dtype", "causal", *_OF_FLAX),
)

_TOKENIZER = Section(
  dict(
    model_name=Text(),
    model=Section(
      dict(
        num_levels=_LEVELS,
        codebook_size=_CODES,
        latent_dim=Whole(2, 65_536),  # Normalisation takes the mean away.
        hidden_dims=Many(_WIDTH),
        club_hidden_dim=_WIDTH,
        max_log_variance=Real(0.0, 80.0, above=True),  # Of its exponential.
        sequence_kwargs=_SEQUENCE_KWARGS,
        dropout_rate=_RATE,
        init_scale=Real(0.0, above=True),
        dtype=_DTYPE,
      ),
      callee=_model("tokenizer"),
      given=("num_items", "feature_dims", *_OF_FLAX),
    ),
    recon_weights=Section({modality: _WEIGHT for modality in MODALITIES}),
    commitment_weight=_WEIGHT,
    rec_weight=_WEIGHT,
    mim_weight=_WEIGHT,
    temperature=_TEMPERATURE,
    kmeans_iters=Whole(0, 100_000),
    revive_steps=Whole(),
    club_lr_scale=_WEIGHT,
    monitor=OneOf(tokenizer.MONITORS),
  )
  | _TRAINING
)

_GENERATOR = Section(
  dict(
    model_name=Text(),
    model=Section(
      dict(
        num_buckets=Whole(1, 10_000),
        code_dim=_WIDTH,
        model_dim=_WIDTH,
        num_heads=_HEADS,
        head_dim=_WIDTH,
        ff_dim=_WIDTH,
        num_encoder_layers=_LAYERS,
        num_decoder_layers=_LAYERS,
        dropout_rate=_RATE,
        encoder=OneOf(generator.ENCODERS),
        attention_backend=OneOf(attention.BACKENDS),
        dtype=_DTYPE,
      ),
      callee=_model("generator"),
      given=("num_levels", "codebook_size", "num_signals", *_OF_FLAX),
    ),
    inherit_codebooks=FLAG,
    temperature=Real(1e-6),
    num_beams=Whole(1, 10_000),
    num_results=Whole(max(ranking.KS), 10_000),  # Fewer would spoil recall@10 unseen.
    selection_users=Whole(),
    monitor=OneOf(ranking.NAMES),
  )
  | _TRAINING
)


def _item_ranker(stage: str, needs: str) -> Section:
  """The arguments of a model that scores every item."""
  return Section(
    dict(
      width=_WIDTH,
      num_layers=_LAYERS,
      num_heads=_HEADS,
      mlp_dim=_WIDTH,
      hidden_dim=_WIDTH,
      mask_rate=Real(0.0, 1.0, above=True),
      last_rate=_SHARE,
      num_subspaces=_WIDTH,
      codebook_size=_CODES,
      opq_iters=Whole(0, 100_000),
      num_interests=_CODES,
      temperature=_TEMPERATURE,
      dropout_rate=_RATE,
      dtype=_DTYPE,
    ),
    callee=_model(stage, needs),
    given=("num_items", "feature_dims", "max_history", *_OF_FLAX),
  )


_RANKER = Section(
  dict(
    model_name=Text(),
    model=_item_ranker(ranker.STAGE, needs="predictions"),
    loss=OneOf(ranker.LOSSES),
    init_from=OneOf(("", pretrainer.STAGE)),
    monitor=OneOf(ranking.NAMES),
  )
  | _TRAINING
)

_PRETRAINER = Section(
  dict(
    model_name=Text(),
    model=_item_ranker(pretrainer.STAGE, needs="sequence"),
    temperature=_TEMPERATURE,
    sequence_weight=_WEIGHT,
    item_drop_rate=_RATE,
    monitor=OneOf(ranking.NAMES),
  )
  | _TRAINING
  | dict(micro_batch_size=OneOf((0,)))  # Negatives are those of the whole batch.
)

_RQVAE = Section(
  dict(
    model_name=Text(),
    modality=OneOf(MODALITIES),
    model=Section(
      dict(
        num_levels=_LEVELS,
        codebook_size=_CODES,
        latent_dim=_WIDTH,
        hidden_dims=Many(_WIDTH),
        dtype=_DTYPE,
        init_scale=Real(0.0, above=True),
      ),
      callee=_model("rqvae", needs="decode"),
      given=("num_items", "feature_dims", *_OF_FLAX),
    ),
    number_collisions=FLAG,
    commitment_weight=_WEIGHT,
    alignment_weight=_WEIGHT,
    diversity_weight=_WEIGHT,
    num_clusters=Whole(1, 2**20),
    kmeans_iters=Whole(0, 100_000),
    revive_steps=Whole(),
    monitor=OneOf(rqvae.MONITORS),
  )
  | _STEPS
)

_COUNTS = Section(
  dict(
    model_name=Text(),
    model=Section(
      dict(num_neighbours=Whole(1, 100_000), decay=_SHARE),
      callee=_model("counts", needs="scores"),
    ),
    eval_batch_size=_BATCH,
  )
)

# The section of every stage, which has the stage's name.
_STAGES = dict(
  tokenizer=_TOKENIZER,
  pretrainer=_PRETRAINER,
  ranker=_RANKER,
  rqvae=_RQVAE,
  generator=_GENERATOR,
  counts=_COUNTS,
)
# Fields by which sections' own are set together, and the stages whose sections those are.
_SHARED = dict(num_levels=_LEVELS, codebook_size=_CODES, latent_dim=Whole(2, 65_536))
_SHARING = ("tokenizer", "rqvae", "generator")
# Stages that write semantic IDs, of which a generator needs one before it.
WRITERS_OF_IDS = ("tokenizer", "rqvae")

_DATA = Section(
  dict(
    source=Text(),
    modalities=Many(OneOf(MODALITIES)),
    min_interactions=Whole(0, 1_000_000),
    # Of the embedded data:
    num_users=Whole(2, 10_000_000),
    num_items=Whole(2, 10_000_000),
    num_factors=Whole(1, 10_000),
    seed=_SEED,
    text_dim=_WIDTH,
    image_dim=_WIDTH,
    missing_text_rate=_SHARE,
    missing_image_rate=_SHARE,
    mean_length=Real(1.0, 1e6),
    nuisance_scale=Real(0.0, 1e6),
    noise_scale=Real(0.0, 1e6),
  ),
  callee=_data,
  own=("source",),
)

_PARALLEL = Section(
  dict(mode=OneOf(partition.MODES), model=Whole(1), num_devices=Whole()),
  callee=lambda _: partition.Partition,
)


def _rules(config: Mapping) -> Section:
  """The rules of a config: what every one has, and the sections that its stages need.

  A section of another stage may stand there, and is checked like any other.
  """
  named = config.get("stages", ())
  named = named if Many(Text()).allows(named) else ()  # What is wrong with it is told by its rule.
  found = [stage for stage in _STAGES if stage in named or stage in config]
  rules: dict[str, Any] = dict(
    seed=_SEED,
    stages=Many(Text()),
    max_history=_HISTORY,
    data=_DATA,
    parallel=_PARALLEL,
  )
  if set(found) - {"counts"}:  # Of what learns by gradients.
    rules |= dict(dtype=_DTYPE, profile_steps=Text(may_be_empty=True))
  if any(stage in _SHARING for stage in found):
    rules |= _SHARED
  return Section(rules | {stage: _STAGES[stage] for stage in found})


def check_config(config: Mapping) -> None:
  """Refuses a config that cannot work, whatever the data are.

  Args:
    config: nested dicts.

  Raises:
    UserError: names the first field that is missing, unknown, of a wrong type or out of bounds,
      or the fields that do not go together.
  """
  check(config, _rules(config))
  diagnostics.parse_steps(config.get("profile_steps", ""))
  _check_stages(config["stages"])
  if "tokenizer" in config:
    _check_sequence(config)
  if "generator" in config:
    _check_generator(config)
  for stage in (pretrainer.STAGE, ranker.STAGE):
    if stage in config:
      _check_heads(f"{stage}.model", config[stage]["model"], _model(stage)(config))
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
  """What LETTER's two terms need."""
  own, stages = config["rqvae"], config["stages"]
  before = stages[: stages.index("rqvae")] if "rqvae" in stages else ("ranker",)
  codes = own["model"].get("codebook_size", _model("rqvae")(config).codebook_size)
  clusters = own["num_clusters"]
  if own["diversity_weight"] and codes < 2 * clusters:
    raise UserError(
      f"rqvae.num_clusters={clusters}: codebook_size={codes} leaves a cluster with a single code, "
      "and rqvae.diversity_weight needs two."
    )
  if own["alignment_weight"] and "ranker" not in before:
    raise UserError(
      f"stages={tuple(stages)}: rqvae.alignment_weight={own['alignment_weight']} needs a ranker "
      "before the rqvae, whose item vectors it reads."
    )


def _check_init_from(config: Mapping) -> None:
  """The stage that the ranker starts from comes before it, and has a model of the same shapes."""
  stages, stage = config["stages"], config["ranker"]["init_from"]
  if stage not in stages or stages.index(stage) > stages.index(ranker.STAGE):
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
  own = config["generator"]
  if own["inherit_codebooks"] and config.get("rqvae", {}).get("number_collisions"):
    raise UserError(
      "generator.inherit_codebooks=True: running numbers have no codebook; set "
      "rqvae.number_collisions=False."
    )
  for writer in WRITERS_OF_IDS:
    if own["inherit_codebooks"] and writer in config:
      code_dim = own["model"].get("code_dim")
      latent_dim = config[writer]["model"].get("latent_dim")
      if code_dim != latent_dim:
        raise UserError(
          f"generator.inherit_codebooks=True: generator.model.code_dim={code_dim} "
          f"must be {writer}.model.latent_dim={latent_dim}."
        )
  if own["model"].get("attention_backend") == "pallas" and jax.default_backend() != "gpu":
    raise UserError("generator.model.attention_backend='pallas' needs a GPU; take 'xla'.")


def _check_sequence(config: Mapping) -> None:
  """What the sequence encoder's arguments must be together, as far as they are given."""
  given, name = config["tokenizer"]["model"].get("sequence_kwargs", {}), "sequence_kwargs"
  if given.get("max_history", config["max_history"]) < config["max_history"]:
    raise UserError(
      f"tokenizer.model.{name}.max_history={given['max_history']} must be at least "
      f"max_history={config['max_history']}."
    )
  if given:
    _check_heads(f"tokenizer.model.{name}", given, _sequence_encoder(config))


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

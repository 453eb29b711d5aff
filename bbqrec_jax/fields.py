"""What every field of a config may be, and the sections that a config's stages need."""

from collections.abc import Callable, Mapping
from typing import Any

from bbqrec_jax import optim, partition, plugins
from bbqrec_jax.data import batches
from bbqrec_jax.data.dataset import MODALITIES
from bbqrec_jax.errors import UserError
from bbqrec_jax.evaluators import ranking
from bbqrec_jax.models import attention, generator
from bbqrec_jax.rules import FLAG, Many, OneOf, Real, Section, Text, Whole
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
LEAST_TEMPERATURE = 1e-6  # Scores are divided by temperatures, in float32.
_TEMPERATURE = Real(LEAST_TEMPERATURE)


def _data(config: Mapping) -> Callable:
  return plugins.load("data", config["data"]["source"], "data.source", "load").load


def model_class(stage: str, needs: str | None = None) -> Callable[[Mapping], Callable]:
  """What gives the Model that a stage's section names; it must have a method, if told."""

  def model(config):
    key, name = f"{stage}.model_name", config[stage]["model_name"]
    found = plugins.load("models", name, key, "Model").Model
    if needs and not hasattr(found, needs):
      raise UserError(f"{key}={name!r} is no model of this stage; it has no {needs}().")
    return found

  return model


def sequence_encoder_class(config: Mapping) -> Callable:
  """The Encoder that the tokenizer's section names; raises UserError if there is none."""
  default = model_class("tokenizer")(config).sequence_encoder
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
  callee=sequence_encoder_class,
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
      callee=model_class("tokenizer"),
      given=("num_items", "feature_dims", *_OF_FLAX),
    ),
    recon_weights=Section({modality: _WEIGHT for modality in MODALITIES}),
    commitment_weight=_WEIGHT,
    rec_weight=_WEIGHT,
    mim_weight=_WEIGHT,
    temperature=_TEMPERATURE,
    logq_correction=FLAG,
    center_latents=FLAG,
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
      callee=model_class("generator"),
      given=("num_levels", "codebook_size", "num_signals", *_OF_FLAX),
    ),
    inherit_codebooks=FLAG,
    temperature=Real(1e-6),
    num_beams=Whole(1, 10_000),
    num_results=Whole(max(ranking.KS), 10_000),  # Fewer would spoil recall@10 unnoticed.
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
    callee=model_class(stage, needs),
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
      callee=model_class("rqvae", needs="decode"),
      given=("num_items", "feature_dims", *_OF_FLAX),
    ),
    number_collisions=FLAG,
    quantization_reduction=OneOf(rqvae.REDUCTIONS),
    commitment_weight=_WEIGHT,
    alignment_weight=_WEIGHT,
    diversity_weight=_WEIGHT,
    num_clusters=Whole(1, 2**20),
    sinkhorn_temperature=Real(0.0),
    repair_rounds=Whole(0, 10_000),
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
      callee=model_class("counts", needs="scores"),
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


def writer_of_ids(config: Mapping) -> str | None:
  """The stage that semantic IDs are of: the one that runs, or else whose section is there."""
  for names in (config["stages"], config):
    for stage in WRITERS_OF_IDS:
      if stage in names:
        return stage
  return None


def rules_of(config: Mapping) -> Section:
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


def first_stages(config: Mapping, count: int) -> dict[str, Any]:
  """The fields that the first `count` stages of a config may read, by themselves a config."""
  stages = tuple(config["stages"][:count])
  sections = {stage: config[stage] for stage in stages}
  rest = {key: value for key, value in config.items() if key not in _STAGES}
  begun = rest | sections | dict(stages=stages)
  return {key: begun[key] for key in rules_of(begun).rules}

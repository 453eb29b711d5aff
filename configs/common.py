"""What the configs share: their switches, and the settings that several of them repeat."""

import difflib
import itertools

from ml_collections import config_dict


def parse_arg(arg: str, **defaults: bool | int | float | str) -> config_dict.ConfigDict:
  """Reads what stands behind the colon of `--config=configs/x.py:ARG`.

  `smoke,num_levels=4` sets the switch `smoke` to True and `num_levels` to the int 4.

  Args:
    arg: comma-separated `name` (sets a bool to True) or `name=value`; "" for the defaults.
    **defaults: every name there is, with its value when not given, which also settles its type.

  Returns:
    A ConfigDict with the names of `defaults`.

  Raises:
    ValueError: an unknown name (the message names the nearest right one), a name without a value
      that is not a bool, or a value that does not read as its default's type.
  """
  config = config_dict.ConfigDict(defaults)
  for part in filter(None, (part.strip() for part in arg.split(","))):
    name, equals, text = part.partition("=")
    if name not in defaults:
      near = difflib.get_close_matches(name, defaults, n=1)
      hint = f"did you mean {near[0]!r}? " if near else ""
      known = ", ".join(sorted(defaults)) or "none"
      raise ValueError(f"Unknown config argument {name!r}: {hint}This config knows: {known}.")
    kind = type(defaults[name])
    if not equals and kind is not bool:
      raise ValueError(f"Config argument {name!r} needs a value: {name}=<{kind.__name__}>.")
    try:
      config[name] = _parse_bool(text or "true") if kind is bool else kind(text)
    except ValueError as error:
      raise ValueError(
        f"Config argument {part!r}: {text!r} does not read as {kind.__name__}."
      ) from error
  return config


def _parse_bool(text: str) -> bool:
  values = {"true": True, "1": True, "false": False, "0": False}
  if text.lower() not in values:
    raise ValueError(text)
  return values[text.lower()]


SWITCHES = dict(
  smoke=False,  # A run of seconds.
  causal=False,  # The causal encoder, which is not the paper's; see models/generator.py.
  cpu=False,  # A smaller generator with the causal encoder, for a machine without accelerator.
  srgnn=False,  # SR-GNN in place of SASRec as stage one's sequence encoder.
  no_mim=False,  # Table 3: without L_MIM and the modality-specific encoders.
  no_rec=False,  # Table 3: without L_Rec and the id signal, which only L_Rec supervises.
  unshared=False,  # Table 3: codebooks of their own for every signal.
  no_similarity=False,  # Table 4, S: plain self-attention.
  inherited=False,  # Table 4, E: code embeddings start as stage one's codebooks.
  no_id=False,  # Figure 4.
  no_text=False,  # Figure 4.
  no_image=False,  # Figure 4.
)

MODALITIES = ("text", "image")

# What the sources that read files have in common. An item or user stays with so many interactions.
DATA = dict(
  min_interactions=5,
  text_model="sentence-transformers/sentence-t5-base",  # Any name or local path.
  text_columns=(),  # Empty: every column of text.
  cache_dir="~/.cache/bbqrec_jax",
)


def amazon(subset: str) -> dict:
  """The `data` section of one category of the Amazon 2014 release."""
  return dict(
    source="amazon",
    subset=subset,
    root="data/amazon",
    download=True,
    **DATA | dict(text_columns=("title", "description")),
  )


def files(source: str, *names: str) -> dict:
  """The `data` section of the user's own files, which the command line names.

  Args:
    names: fields that say which, beside `features`, the .npy file of each modality.
  """
  return dict(
    source=source,
    **{name: config_dict.placeholder(str) for name in names},
    features=dict(text=config_dict.placeholder(str), image=config_dict.placeholder(str)),
    **DATA,
  )


def data_section(name: str) -> dict:
  """The `data` section that a config's argument `data=NAME` asks for.

  Raises ValueError, which names all there are, for another name.
  """
  sections = dict(synthetic=dict(source="synthetic"))
  sections |= {subset: amazon(subset) for subset in ("beauty", "sports", "toys", "clothing")}
  sections |= dict(
    atomic=files("atomic", "root", "name"), table=files("table", "interactions", "items")
  )
  if name not in sections:
    raise ValueError(f"data={name!r}: the data are one of {', '.join(sections)}.")
  return sections[name]


def add_trials(add, choices: dict[str, tuple]) -> None:
  """For a config's sweep(add): a trial for every combination of the fields' values.

  launch/sweep.py wants four of every system: one budget for all.
  """
  for values in itertools.product(*choices.values()):
    add(**dict(zip(choices, values)))


# Of every system that scores all items: what moves them most.
RANKER_TRIALS = {
  "ranker.optimizer.learning_rate": (5e-4, 1e-3),
  "ranker.model.dropout_rate": (0.2, 0.5),
}
# Of every generator on semantic IDs.
GENERATOR_TRIALS = {
  "generator.optimizer.learning_rate": (3e-4, 1e-3),
  "generator.model.dropout_rate": (0.1, 0.2),
}

PARALLEL = dict(
  mode="jit",  # Or "pmap": bbqrec_jax/partition.py.
  model=1,  # Devices that share a table; as many groups of them share a batch.
  num_devices=0,  # 0: all.
)


def bbqrec(arg: config_dict.ConfigDict, data: dict) -> config_dict.ConfigDict:
  """BBQRec with the paper's values where it gives them (sections 5.1 and 5.4).

  The rest follows the best-documented recipes of the field: the tokenizer's optimizer and the
  generator's shape, optimizer, schedule and patience are those of public TIGER reproductions.

  Args:
    arg: with every name of SWITCHES.
    data: the `data` section; `modalities` is set here.
  """
  config = config_dict.ConfigDict(dict(seed=0, stages=("tokenizer", "generator")))
  config.max_history = max_history = config_dict.FieldReference(20)  # T.
  config.num_levels = num_levels = config_dict.FieldReference(3)  # L.
  config.codebook_size = codebook_size = config_dict.FieldReference(256)  # N.
  config.latent_dim = latent_dim = config_dict.FieldReference(128)  # D.
  modalities = tuple(m for m in MODALITIES if not arg[f"no_{m}"])
  if arg.smoke:  # On the embedded data, whatever the config's own are.
    data = dict(source="synthetic")
  config.data = dict(data, modalities=modalities)

  config.dtype = dtype = config_dict.FieldReference("float32")  # Of products; or "bfloat16".
  config.profile_steps = ""  # "10:20": a profile of these steps of each stage, for TensorBoard.
  config.parallel = PARALLEL
  config.tokenizer = dict(
    model_name="tokenizer",  # bbqrec_jax/models/<model_name>.py; `model` is its arguments.
    model=dict(
      num_levels=num_levels,
      codebook_size=codebook_size,
      latent_dim=latent_dim,
      use_id=not (arg.no_id or arg.no_rec),
      shared_codebook=not arg.unshared,
      use_specific=not arg.no_mim,
      normalize_latents=True,  # Not in the paper; without it the objective diverges.
      hidden_dims=(512, 256),
      # f of Eq. (11): bbqrec_jax/models/<sequence_encoder>_encoder.py and its arguments.
      sequence_encoder="srgnn" if arg.srgnn else "sasrec",
      sequence_kwargs=dict(width=128) | (dict() if arg.srgnn else dict(max_history=max_history)),
      dropout_rate=0.2,
      dtype=dtype,
    ),
    recon_weights=dict(text=1.0, image=1.0),
    commitment_weight=0.25,  # alpha: BBQRec Eq. (9).
    rec_weight=0.0 if arg.no_rec else 1.0,  # beta: BBQRec Eq. (13).
    mim_weight=0.0 if arg.no_mim else 1.0,  # gamma: BBQRec Eq. (13); of nats a dimension.
    temperature=0.1,  # tau: BBQRec Eq. (12).
    logq_correction=False,  # Of in-batch negatives: stage one gains by it, semantic IDs lose.
    center_latents=False,  # Encoders' outputs start with mean 0 over items: short runs gain by it.
    kmeans_iters=20,  # 0: random codebooks.
    revive_steps=50,  # Codes unused for so many steps are moved; 0: never.
    club_lr_scale=5.0,  # q_theta must keep up with the encoders.
    optimizer=dict(
      learning_rate=1e-3, schedule="constant", warmup_steps=0, weight_decay=1e-4, clip_norm=1.0
    ),
    batch_size=256,
    length_groups=4,  # Of histories in a batch; fewer compile faster and compute more padding.
    micro_batch_size=0,  # As the generator's below; what is held again is computed twice.
    num_epochs=200,
    eval_epochs=1,
    eval_batch_size=512,
    monitor="reconstruction" if arg.no_rec else "recall@10",
    patience=10,
    log_steps=50,
  )

  config.generator = generator(dtype, code_dim=latent_dim, causal=arg.causal or arg.cpu)
  config.generator.model.update(
    similarity=not arg.no_similarity,
    num_buckets=100,  # K.
    attention_backend="auto",  # Of similarity-enhanced attention: models/attention.py.
  )
  config.generator.inherit_codebooks = arg.inherited
  if arg.cpu:
    suit_cpu(config.generator)
  if arg.smoke:
    _shrink(config)
  return config


def generator(dtype, code_dim, causal: bool) -> dict:
  """The `generator` section, with plain attention; what it shares with other sections is given."""
  return dict(
    model_name="generator",
    model=dict(
      similarity=False,
      code_dim=code_dim,
      model_dim=128,
      num_heads=6,
      head_dim=64,
      ff_dim=1024,
      num_encoder_layers=4,
      num_decoder_layers=4,
      dropout_rate=0.1,
      encoder="causal" if causal else "bidirectional",
      dtype=dtype,
    ),
    inherit_codebooks=False,
    temperature=1.0,  # Of the loss; below 1 in LETTER.
    optimizer=dict(
      learning_rate=3e-4, schedule="cosine", warmup_steps=10_000, weight_decay=0.035, clip_norm=1.0
    ),
    batch_size=256,
    length_groups=4,
    micro_batch_size=64,  # Examples whose activations are held at once; 0: all of a group.
    num_epochs=200,
    eval_epochs=2,
    eval_batch_size=128,
    num_beams=50,
    num_results=50,  # Enough to rank ten that a user has not had.
    selection_users=0,  # Validation users that select the model; 0: all.
    monitor="ndcg@10",
    patience=10,
    log_steps=100,
  )


def suit_cpu(section: config_dict.ConfigDict) -> None:
  """Makes a `generator` section one for a machine without accelerator."""
  section.model.update(
    num_heads=4, head_dim=32, ff_dim=512, num_encoder_layers=3, num_decoder_layers=3
  )
  section.optimizer.update(learning_rate=1e-3, warmup_steps=500)
  # A causal example is a whole sequence, with a target at every position: few make a batch.
  section.update(batch_size=32, num_epochs=25, selection_users=2_000)


# What configs of systems that only count know.
COUNTS_SWITCHES = dict(
  data="synthetic",  # Or another name of data_section().
  smoke=False,  # A run of seconds.
)
# What configs of systems that learn to score every item know.
RANKER_SWITCHES = COUNTS_SWITCHES | dict(
  bce=False,  # The loss with one sampled negative, in place of the softmax over all items.
)


def ranker(arg: config_dict.ConfigDict, model_name: str, modalities=()) -> config_dict.ConfigDict:
  """A system that learns to score every item; what is alike in all of them.

  Args:
    arg: with every name of RANKER_SWITCHES.
    model_name: bbqrec_jax/models/<model_name>.py.
    modalities: what the model reads beside the ids.
  """
  config = _scorer(arg, "ranker", modalities)
  config.dtype = dtype = config_dict.FieldReference("float32")  # Of products; or "bfloat16".
  config.profile_steps = ""  # "10:20": a profile of these steps, for TensorBoard.
  config.ranker = dict(
    model_name=model_name,
    model=dict(dropout_rate=0.5, dtype=dtype),  # Its arguments.
    init_from="",  # Or an earlier stage, whose best parameters it starts from.
    loss="bce" if arg.bce else "softmax",
    optimizer=dict(
      learning_rate=1e-3, schedule="constant", warmup_steps=0, weight_decay=0.0, clip_norm=0.0
    ),
    batch_size=256,  # Sequences; every position of one is a target.
    length_groups=4,
    micro_batch_size=0,  # Sequences whose scores of all items are held at once; 0: all.
    num_epochs=200,
    eval_epochs=1,
    eval_batch_size=256,
    monitor="ndcg@10",
    patience=10,
    log_steps=50,
  )
  if arg.smoke:
    config.ranker.update(
      batch_size=64, length_groups=2, num_epochs=2, eval_batch_size=64, log_steps=5
    )
  return config


def masked_ranker(
  arg: config_dict.ConfigDict, model_name: str, modalities=()
) -> config_dict.ConfigDict:
  """The same for a system that fills in masked items: BERT4Rec, or what builds on it."""
  config = ranker(arg, model_name, modalities)
  config.ranker.model.update(
    width=128,
    num_layers=2,
    num_heads=2,
    mlp_dim=256,
    mask_rate=0.6,
    last_rate=1 / 11,
    dropout_rate=0.2,
  )
  if arg.smoke:
    config.ranker.model.update(width=16, num_layers=1, mlp_dim=32)
  else:
    # Patience of 20 epochs, where others have ten: an epoch asks for some six tenths of what others
    # predict, and masked training begins slowly.
    config.ranker.eval_epochs = 2
  return config


def counts(arg: config_dict.ConfigDict, model_name: str) -> config_dict.ConfigDict:
  """A system that only counts.

  Args:
    arg: with every name of COUNTS_SWITCHES.
    model_name: bbqrec_jax/models/<model_name>.py.
  """
  config = _scorer(arg, "counts", modalities=())
  config.counts = dict(
    model_name=model_name,
    model=dict(),  # Its arguments.
    eval_batch_size=256,
  )
  return config


def _scorer(arg: config_dict.ConfigDict, stage: str, modalities) -> config_dict.ConfigDict:
  """What configs of one stage that scores every item have in common."""
  config = config_dict.ConfigDict(dict(seed=0, stages=(stage,)))
  config.max_history = 8 if arg.smoke else 20  # T.
  config.data = dict(data_section("synthetic" if arg.smoke else arg.data), modalities=modalities)
  config.parallel = PARALLEL
  return config


def _shrink(config: config_dict.ConfigDict) -> None:
  """A run of seconds that goes through everything; its numbers mean nothing."""
  config.max_history, config.codebook_size, config.latent_dim = 8, 16, 8
  config.tokenizer.update(
    batch_size=32, length_groups=2, num_epochs=2, eval_batch_size=64, log_steps=5
  )
  config.tokenizer.model.hidden_dims = (16,)
  shrink_generator(config.generator)


def shrink_generator(section: config_dict.ConfigDict) -> None:
  """Makes a `generator` section one of seconds."""
  section.update(
    batch_size=64,
    length_groups=2,
    num_epochs=2,
    eval_epochs=1,
    eval_batch_size=64,
    num_beams=10,
    log_steps=5,
  )
  section.model.update(
    model_dim=16, num_heads=2, head_dim=8, ff_dim=32, num_encoder_layers=1, num_decoder_layers=1
  )

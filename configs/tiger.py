r"""TIGER: semantic IDs by an RQ-VAE on the items' text, and an encoder-decoder that spells them.

python -m bbqrec_jax.main --config=configs/tiger.py:data=beauty --workdir=runs/tiger

Rajput et al. 2023 (arXiv:2305.05065): bbqrec_jax/trainers/rqvae.py and the generator with plain
attention. data=NAME is one of common.data_section(); :smoke takes seconds on the embedded data,
:cpu suits two cores (with the causal encoder: see bbqrec_jax/models/generator.py).

Where it differs: there is no token of the user (the best-documented reproductions leave it out as
well); the optimizers and their schedules are those of reproductions, in place of Adagrad and an
inverse square root that others found unstable; every level has its own softmax over its codes, and
beams keep to IDs that items have, so that none is invalid; the generator is BBQRec's without
similarity (bbqrec_jax/models/generator.py).
"""

from ml_collections import config_dict

from configs import common

SWITCHES = dict(
  data="synthetic",  # Or another name of common.data_section().
  smoke=False,  # A run of seconds.
  causal=False,  # The causal encoder, which is not the paper's; see models/generator.py.
  cpu=False,  # A smaller generator with the causal encoder, for a machine without accelerator.
)


def get_config(arg: str = ""):
  return make_config(common.parse_arg(arg, **SWITCHES))


def make_config(arg: config_dict.ConfigDict) -> config_dict.ConfigDict:
  """The config, for arguments with every name of SWITCHES."""
  config = config_dict.ConfigDict(dict(seed=0, stages=("rqvae", "generator")))
  config.max_history = 20  # T.
  config.num_levels = num_levels = config_dict.FieldReference(3)  # L, without the running number.
  config.codebook_size = codebook_size = config_dict.FieldReference(256)  # N.
  config.latent_dim = latent_dim = config_dict.FieldReference(32)  # D.
  data = common.data_section("synthetic" if arg.smoke else arg.data)
  config.data = dict(data, modalities=("text",))
  config.dtype = dtype = config_dict.FieldReference("float32")  # Of products; or "bfloat16".
  config.profile_steps = ""  # "10:20": a profile of these steps of each stage, for TensorBoard.
  config.parallel = common.PARALLEL
  config.rqvae = dict(
    model_name="rqvae",  # bbqrec_jax/models/<model_name>.py; `model` is its arguments.
    modality="text",
    model=dict(
      num_levels=num_levels,
      codebook_size=codebook_size,
      latent_dim=latent_dim,
      hidden_dims=(512, 256, 128),
      dtype=dtype,
    ),
    number_collisions=True,  # One more level, which tells items of equal codes apart.
    quantization_reduction="sum",  # Of its losses over levels and dimensions; or "mean".
    commitment_weight=0.25,
    alignment_weight=0.0,  # LETTER's alpha.
    diversity_weight=0.0,  # LETTER's beta.
    num_clusters=10,  # Of each level's codes, for LETTER's diversity.
    # LETTER's last level uses its codes evenly: at this temperature of Sinkhorn's normalisation, of
    # half the range of distances, or not (0).
    sinkhorn_temperature=0.0,
    repair_rounds=0,  # In which items that share an ID are given others of the last level.
    kmeans_iters=20,  # 0: random codebooks.
    revive_steps=50,  # Codes unused for so many steps are moved; 0: never.
    optimizer=dict(
      learning_rate=1e-3, schedule="constant", warmup_steps=0, weight_decay=1e-4, clip_norm=1.0
    ),
    batch_size=1024,  # Items.
    num_epochs=8_000,
    eval_epochs=100,
    monitor="reconstruction",
    patience=10,
    log_steps=500,
  )
  config.generator = common.generator(dtype, code_dim=128, causal=arg.causal or arg.cpu)
  if arg.cpu:
    common.suit_cpu(config.generator)
    config.rqvae.update(num_epochs=400, eval_epochs=50)
  if arg.smoke:
    config.max_history, config.codebook_size, config.latent_dim = 8, 16, 8
    config.rqvae.update(batch_size=64, num_epochs=4, eval_epochs=2, log_steps=5, num_clusters=4)
    config.rqvae.model.hidden_dims = (16,)
    config.generator.model.code_dim = 8
    common.shrink_generator(config.generator)
  return config


def sweep(add):
  common.add_trials(add, common.GENERATOR_TRIALS)

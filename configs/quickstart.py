r"""The embedded data, both stages, in two to five minutes on two CPU cores.

launch/run
python -m bbqrec_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

The catalogue is synthetic: behaviour factors, text and images are drawn from a known model
(bbqrec_jax/data/synthetic.py). The causal encoder is a deviation from the paper; see
bbqrec_jax/models/generator.py.
"""

from configs import common


def get_config(arg: str = ""):
  arg = common.parse_arg(arg, **common.SWITCHES | dict(causal=True))
  config = common.bbqrec(arg, data=dict(source="synthetic", num_users=4_000))
  if arg.smoke:
    return config
  config.codebook_size, config.latent_dim = 64, 32
  config.tokenizer.update(
    batch_size=128, num_epochs=16, eval_epochs=2, patience=4, center_latents=True
  )
  # Compiling for four groups takes longer than a training this short gains from them.
  config.tokenizer.length_groups = config.generator.length_groups = 2
  config.tokenizer.model.hidden_dims = (128,)
  config.tokenizer.model.sequence_kwargs.width = 64
  # A causal example is a whole sequence, with a target at every position: few make a batch.
  config.generator.update(
    batch_size=16 if arg.causal else 128, num_epochs=18, eval_epochs=3, patience=5, log_steps=100
  )
  config.generator.optimizer.update(learning_rate=3e-3, warmup_steps=100)
  config.generator.model.update(
    model_dim=64, num_heads=4, head_dim=16, ff_dim=128, num_encoder_layers=2, num_decoder_layers=2
  )
  return config

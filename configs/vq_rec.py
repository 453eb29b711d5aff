r"""VQ-Rec: bbqrec_jax/models/vq_rec.py.

python -m bbqrec_jax.main --config=configs/vq_rec.py:data=beauty --workdir=runs/vq_rec

data=NAME is one of common.data_section(); :smoke takes seconds on the embedded data; :bce is the
loss with one sampled negative.
"""

from configs import common


def get_config(arg: str = ""):
  arg = common.parse_arg(arg, **common.RANKER_SWITCHES)
  config = common.ranker(arg, "vq_rec", modalities=("text",))
  config.ranker.model.update(
    num_subspaces=32,
    codebook_size=256,
    opq_iters=20,
    temperature=0.07,
    width=128,
    num_layers=2,
    num_heads=2,
    mlp_dim=256,
  )
  if arg.smoke:
    config.ranker.model.update(
      num_subspaces=8, codebook_size=16, opq_iters=2, width=16, num_layers=1, mlp_dim=32
    )
  return config


def sweep(add):
  common.add_trials(add, common.RANKER_TRIALS)

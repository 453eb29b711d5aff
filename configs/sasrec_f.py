r"""SASRec_F: bbqrec_jax/models/sasrec_f.py.

python -m bbqrec_jax.main --config=configs/sasrec_f.py:data=beauty --workdir=runs/sasrec_f

data=NAME is one of common.data_section(); :smoke takes seconds on the embedded data; :bce is the
loss with one sampled negative.
"""

from configs import common


def get_config(arg: str = ""):
  arg = common.parse_arg(arg, **common.RANKER_SWITCHES)
  config = common.ranker(arg, "sasrec_f", common.MODALITIES)
  config.ranker.model.update(width=128, num_layers=2, num_heads=2, mlp_dim=256)
  if arg.smoke:
    config.ranker.model.update(width=16, num_layers=1, mlp_dim=32)
  return config


def sweep(add):
  common.add_trials(add, common.RANKER_TRIALS)

r"""BERT4Rec: bbqrec_jax/models/bert4rec.py.

python -m bbqrec_jax.main --config=configs/bert4rec.py:data=beauty --workdir=runs/bert4rec

data=NAME is one of common.data_section(); :smoke takes seconds on the embedded data; :bce is the
loss with one sampled negative.
"""

from configs import common


def get_config(arg: str = ""):
  arg = common.parse_arg(arg, **common.RANKER_SWITCHES)
  config = common.ranker(arg, "bert4rec")
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


def sweep(add):
  common.add_trials(add, common.RANKER_TRIALS)

r"""GRU4Rec: bbqrec_jax/models/gru4rec.py.

python -m bbqrec_jax.main --config=configs/gru4rec.py:data=beauty --workdir=runs/gru4rec

data=NAME is one of common.data_section(); :smoke takes seconds on the embedded data; :bce is the
loss with one sampled negative.
"""

from configs import common


def get_config(arg: str = ""):
  arg = common.parse_arg(arg, **common.RANKER_SWITCHES)
  config = common.ranker(arg, "gru4rec")
  config.ranker.model.update(width=128, hidden_dim=128, num_layers=1, dropout_rate=0.3)
  if arg.smoke:
    config.ranker.model.update(width=16, hidden_dim=16)
  return config


def sweep(add):
  common.add_trials(add, common.RANKER_TRIALS)

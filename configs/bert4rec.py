r"""BERT4Rec: bbqrec_jax/models/bert4rec.py.

python -m bbqrec_jax.main --config=configs/bert4rec.py:data=beauty --workdir=runs/bert4rec

data=NAME is one of common.data_section(); :smoke takes seconds on the embedded data; :bce is the
loss with one sampled negative.
"""

from configs import common


def get_config(arg: str = ""):
  arg = common.parse_arg(arg, **common.RANKER_SWITCHES)
  return common.masked_ranker(arg, "bert4rec")


def sweep(add):
  common.add_trials(add, common.RANKER_TRIALS)

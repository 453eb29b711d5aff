r"""NOVA-BERT: bbqrec_jax/models/nova_bert.py.

python -m bbqrec_jax.main --config=configs/nova_bert.py:data=beauty --workdir=runs/nova_bert

data=NAME is one of common.data_section(); :smoke takes seconds on the embedded data; :bce is the
loss with one sampled negative.
"""

from configs import common


def get_config(arg: str = ""):
  arg = common.parse_arg(arg, **common.RANKER_SWITCHES)
  return common.masked_ranker(arg, "nova_bert", common.MODALITIES)


def sweep(add):
  common.add_trials(add, common.RANKER_TRIALS)

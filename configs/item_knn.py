r"""Item-based neighbours: bbqrec_jax/models/item_knn.py.

python -m bbqrec_jax.main --config=configs/item_knn.py:data=beauty --workdir=runs/item_knn

data=NAME is one of common.data_section(); :smoke takes seconds on the embedded data.
"""

from configs import common


def get_config(arg: str = ""):
  arg = common.parse_arg(arg, **common.COUNTS_SWITCHES)
  config = common.counts(arg, "item_knn")
  config.counts.model.update(num_neighbours=100, decay=0.8)
  return config


def sweep(add):
  choices = {"counts.model.num_neighbours": (100, 300), "counts.model.decay": (0.5, 0.8)}
  common.add_trials(add, choices)

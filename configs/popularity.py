r"""Popularity: bbqrec_jax/models/popularity.py.

python -m bbqrec_jax.main --config=configs/popularity.py:data=beauty --workdir=runs/popularity

data=NAME is one of common.data_section(); :smoke takes seconds on the embedded data.
"""

from configs import common


def get_config(arg: str = ""):
  arg = common.parse_arg(arg, **common.COUNTS_SWITCHES)
  return common.counts(arg, "popularity")


def sweep(add):
  del add  # There is nothing to choose.

r"""BBQRec, both stages, on any data.

python -m bbqrec_jax.main --config=configs/bbqrec.py:data=beauty --workdir=runs/bbqrec

data=NAME is one of common.data_section(); the other switches are those of common.SWITCHES.
"""

from configs import common


def get_config(arg: str = ""):
  arg = common.parse_arg(arg, data="synthetic", **common.SWITCHES)
  return common.bbqrec(arg, data=common.data_section(arg.data))


def sweep(add):
  common.add_trials(add, common.GENERATOR_TRIALS)

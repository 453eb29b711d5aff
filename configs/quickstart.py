r"""The embedded data, both stages, in about three minutes on two CPU cores.

launch/run
python -m bbqrec_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

The catalogue is synthetic: behaviour factors, text and images are drawn from a known model
(bbqrec_jax/data/synthetic.py). The causal encoder is a deviation from the paper; see
bbqrec_jax/models/generator.py.
"""

from configs import common


def get_config(arg: str = ""):
  arg = common.parse_arg(arg, **common.SWITCHES | dict(causal=True))
  config = common.bbqrec(arg, data=dict(source="synthetic"))
  return config

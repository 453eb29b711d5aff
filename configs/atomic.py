r"""Your own RecBole atomic files: ROOT/NAME.inter, ROOT/NAME.item, features as .npy (optional).

python -m bbqrec_jax.main --config=configs/atomic.py --config.data.root=DIR \
    --config.data.name=toys --config.data.features.text=DIR/text.npy --workdir=runs/toys

Rows of a feature file follow the rows of NAME.item; a row of zeros is a missing input. Without
features.text, the text columns of NAME.item are encoded by data.text_model (extra [text]).
On two CPU cores use :cpu, a smaller model with the causal encoder (see configs/common.py).
"""

from configs import common


def get_config(arg: str = ""):
  arg = common.parse_arg(arg, **common.SWITCHES)
  return common.bbqrec(arg, data=common.data_section("atomic"))

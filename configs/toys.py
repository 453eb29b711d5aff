r"""Amazon 2014 Toys, from the raw files, both stages, as in the paper.

python -m bbqrec_jax.main --config=configs/toys.py --workdir=runs/toys

Files that are missing in data.root are downloaded; the texts are encoded by sentence-T5 (extra
[text]). :smoke takes seconds on the embedded data, :cpu suits two cores.
"""

from configs import common


def get_config(arg: str = ""):
  arg = common.parse_arg(arg, **common.SWITCHES)
  return common.bbqrec(arg, data=common.data_section("toys"))

r"""Your own tables: interactions with user_id, item_id, timestamp; items with item_id and texts.

python -m bbqrec_jax.main --config=configs/table.py --config.data.interactions=log.parquet \
    --config.data.items=items.parquet --workdir=runs/mine

.csv and .parquet (extra [table]) alike. Without features.text, the other columns of the items'
table are encoded by data.text_model (extra [text]).
"""

from configs import common


def get_config(arg: str = ""):
  arg = common.parse_arg(arg, **common.SWITCHES)
  return common.bbqrec(arg, data=common.data_section("table"))

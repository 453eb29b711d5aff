r"""MISSRec: bbqrec_jax/models/missrec.py, pre-trained, then fine-tuned with ids on the same data.

python -m bbqrec_jax.main --config=configs/missrec.py:data=beauty --workdir=runs/missrec

data=NAME is one of common.data_section(); :smoke takes seconds on the embedded data; :bce is the
loss with one sampled negative.
"""

from configs import common


def get_config(arg: str = ""):
  arg = common.parse_arg(arg, **common.RANKER_SWITCHES)
  config = common.ranker(arg, "missrec", common.MODALITIES)
  config.stages = ("pretrainer", "ranker")
  config.ranker.init_from = "pretrainer"
  config.ranker.model.update(
    use_id=True,
    num_interests=256,
    temperature=0.07,
    width=128,
    num_layers=1,
    num_heads=4,
    mlp_dim=256,
  )
  if arg.smoke:
    config.ranker.model.update(num_interests=16, width=16, num_heads=2, mlp_dim=32)
    config.ranker.length_groups = 1  # Two programs to compile are enough.
  section = config.ranker.to_dict()
  del section["loss"], section["init_from"]
  section["model"] |= dict(use_id=False, dtype=config.get_ref("dtype"))
  config.pretrainer = section | dict(
    temperature=0.07,
    sequence_weight=1e-3,  # lambda of the released settings.
    item_drop_rate=0.2,
    batch_size=128 if arg.smoke else 1024,  # Every other sequence of a batch is a negative.
  )
  return config


def sweep(add):
  common.add_trials(add, common.RANKER_TRIALS)

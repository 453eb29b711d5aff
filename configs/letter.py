r"""LETTER: TIGER, whose semantic IDs also know who is bought with whom, and use codes evenly.

python -m bbqrec_jax.main --config=configs/letter.py:data=beauty --workdir=runs/letter

Wang et al. 2024 (arXiv:2405.07314), in three stages: SASRec, whose item vectors the RQ-VAE's
latents are aligned with (bbqrec_jax/trainers/rqvae.py); the RQ-VAE; and the generator, whose loss
has a temperature (losses.semantic_id_loss). Arguments as of configs/tiger.py; four levels, SASRec's
32 dimensions, the weights and what balances the last level are those of the published program (of
alpha that of its script for Beauty); clusters and temperature are what its authors confirm for
another data set, Instruments. Items that still share their codes once those are repaired share a
semantic ID, as they do there, and are ranked by popularity.
"""

from configs import common, sasrec, tiger


def get_config(arg: str = ""):
  arg = common.parse_arg(arg, **tiger.SWITCHES)
  config = tiger.make_config(arg)
  config.stages = ("ranker", "rqvae", "generator")
  config.num_levels = 4
  ranker = sasrec.get_config("smoke" if arg.smoke else "").ranker.to_dict()
  ranker["model"] |= dict(
    width=config.get_ref("latent_dim"), mlp_dim=128, dtype=config.get_ref("dtype")
  )
  config.ranker = ranker
  config.rqvae.update(
    number_collisions=False,
    quantization_reduction="mean",  # The program's, for which these weights are meant.
    alignment_weight=0.1,  # alpha.
    diversity_weight=1e-4,  # beta.
    sinkhorn_temperature=0.003,
    repair_rounds=20,
  )
  config.generator.temperature = 0.7  # tau.
  return config


def sweep(add):
  choices = {"rqvae.alignment_weight": (0.02, 0.1), "generator.temperature": (0.7, 1.0)}
  common.add_trials(add, choices)

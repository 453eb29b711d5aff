"""How often beam 50 misses one of the true ten best items of the whole catalogue, on a trained run.

The histories are those of the test split. No ratios; in the details the share of users whose items
differ, and how wide a beam the proofs took. `decode` has the same for random parameters.

python benchmarks/exact_search.py --workdir=RUN --out=results/benchmarks/exact_search.json
"""

import argparse
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
from lib import harness
from ml_collections import config_dict

from bbqrec_jax import checkpoint, main
from bbqrec_jax.data import dataset as dataset_lib
from bbqrec_jax.data import semantic_ids
from bbqrec_jax.decoding import exact, generate, trie
from bbqrec_jax.errors import UserError
from bbqrec_jax.models import generator
from bbqrec_jax.trainers import generator as generator_trainer

NUM_RESULTS = 10


def add_options(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--workdir", type=pathlib.Path, required=True, help="a finished run")
  parser.add_argument("--users", type=int, default=1024, help="at most so many (default: 1024)")


def run(args: argparse.Namespace) -> dict:
  config = load_config(args.workdir)
  ids = semantic_ids.load(args.workdir)
  histories, _ = dataset_lib.histories(main.load_dataset(config), "test", config.max_history)
  chosen = np.random.default_rng(0).permutation(len(histories))[: 16 if args.quick else args.users]
  model = generator_trainer.make_model(config.generator, ids)
  catalogue = generate.Catalogue(jnp.asarray(ids.codes), jnp.asarray(ids.vectors))
  params = load_params(args.workdir, model, catalogue, config.max_history)
  index = trie.build(ids.codes, ids.codebook_size, ids.popularity)
  num_beams = config.generator.num_beams
  found = compare(model, params, catalogue, index, histories[chosen], num_beams, NUM_RESULTS)
  return dict(ratios={}, details=found)


def load_config(workdir: pathlib.Path) -> config_dict.FrozenConfigDict:
  """The configuration of a run; raises UserError if there is none."""
  path = workdir / "config.json"
  if not path.exists():
    raise UserError(f"{path} does not exist; give the --workdir of a finished run.")
  return config_dict.FrozenConfigDict(json.loads(path.read_text(encoding="utf-8"))["config"])


def load_params(workdir: pathlib.Path, model, catalogue: generate.Catalogue, max_history: int):
  """The generator's parameters that its run selected."""
  template = jax.eval_shape(
    lambda: generator_trainer.init_params(model, jax.random.key(0), catalogue, max_history)
  )
  return checkpoint.best_params(workdir, generator_trainer.STAGE, template)


def compare(
  model: generator.Model,
  params,
  catalogue: generate.Catalogue,
  index: trie.Trie,
  histories: np.ndarray,
  num_beams: int,
  num_results: int,
) -> dict[str, float]:
  """The beam search of num_beams beside the exact one, for histories [B, T]."""
  settings = dict(num_beams=num_beams, num_results=num_results)
  by_beam = generate.make_generate(model, **settings)(params, catalogue, index, histories)
  proven = exact.make_exact(model, **settings)(params, catalogue, index, histories)
  items = np.asarray(by_beam.items)
  is_missed = ~(proven.items[:, :, None] == items[:, None, :]).any(axis=2) & (proven.items >= 0)
  return dict(
    num_users=len(histories),
    **settings,
    share_with_other_items=float(np.mean(is_missed.any(axis=1))),
    share_with_another_first_item=float(np.mean(items[:, 0] != proven.items[:, 0])),
    missed_items_per_user=float(np.mean(is_missed.sum(axis=1))),
    share_proven_by_the_beam=float(np.mean(proven.num_beams <= num_beams)),
    median_beams_of_the_proof=float(np.median(proven.num_beams)),
    max_beams_of_the_proof=int(proven.num_beams.max()),
  )


if __name__ == "__main__":
  sys.exit(harness.main(run, __doc__, add_options))

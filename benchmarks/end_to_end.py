"""Seconds of an epoch of both stages, and what it saves to group histories by length.

The stages are those of configs/atomic.py: batch sizes, models, bidirectional encoder. The generator
is trained with histories padded to the length of their group (as the trainer does), and with all of
them padded to 20 items, the model being the same: `epoch_bucketed_vs_padded`. The causal encoder,
which learns from every position of a sequence at once, stands in the details.

All batches of an epoch have the same shapes, so that its seconds follow from a sample of its steps,
--steps of them in each round. Evaluation is not in them.

python benchmarks/end_to_end.py --data=DIR --out=results/benchmarks/end_to_end.json
"""

import argparse
import pathlib
import sys

import numpy as np
from lib import harness, workload

from bbqrec_jax.data import atomic, batches, synthetic
from bbqrec_jax.data.dataset import Dataset
from bbqrec_jax.errors import UserError
from bbqrec_jax.models import generator


def add_options(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--data",
    type=pathlib.Path,
    help="folder with NAME.inter, NAME.item, text*.npy, image*.npy (default: the embedded data)",
  )
  harness.add_rounds(parser, default=5)
  parser.add_argument("--steps", type=int, default=4, help="steps of a round (default: 4)")


def run(args: argparse.Namespace) -> dict:
  config = workload.load_config("atomic", "smoke" if args.quick else "")
  dataset = synthetic.load() if args.data is None else load_folder(args.data)
  tokenizer_data = make_batches(config, dataset, config.tokenizer, "windows", grouped=True)
  generator_data = dict(
    bucketed=make_batches(config, dataset, config.generator, "prefixes", grouped=True),
    padded=make_batches(config, dataset, config.generator, "prefixes", grouped=False),
    causal=make_batches(config, dataset, config.generator, "windows", grouped=True),
  )
  data = {"tokenizer": tokenizer_data}
  data |= {f"generator_{name}": batched for name, batched in generator_data.items()}
  steps = {name: min(args.steps, batched.steps_per_epoch) for name, batched in data.items()}

  candidates = {"tokenizer": tokenizer_steps(config, dataset, tokenizer_data, steps["tokenizer"])}
  for name in generator_data:
    full = f"generator_{name}"
    candidates[full] = generator_steps(config, dataset, data[full], steps[full], name == "causal")
  taken = harness.rounds(candidates, args.rounds)
  epochs = {
    name: np.multiply(seconds, data[name].steps_per_epoch / steps[name]).tolist()
    for name, seconds in taken.items()
  }
  return dict(
    ratios=dict(
      epoch_bucketed_vs_padded=harness.ratio(
        epochs["generator_padded"], epochs["generator_bucketed"]
      )
    ),
    details=dict(
      dataset=dict(
        name=dataset.name, num_users=dataset.num_users, num_items=dataset.num_items,
        num_interactions=len(dataset.items), fingerprint=dataset.fingerprint,
      ),
      seconds_per_epoch=harness.summary(epochs),
      epochs={
        name: dict(
          steps=batched.steps_per_epoch,
          sampled_steps=steps[name],
          examples=batched.num_examples,
          history_items=padded_items(batched.epoch(0)),
        )
        for name, batched in data.items()
      },
    ),
  )  # fmt: skip


def load_folder(folder: pathlib.Path) -> Dataset:
  """A folder of RecBole's atomic files, with a feature file for each modality if there is one.

  Raises UserError if it does not hold exactly one .inter file.
  """
  found = sorted(folder.glob("*.inter"))
  if len(found) != 1:
    raise UserError(f"--data={folder} must be a folder with one .inter file, not {len(found)}.")
  features = {modality: sorted(folder.glob(f"{modality}*.npy")) for modality in ("text", "image")}
  return atomic.load(
    root=str(folder),
    name=found[0].stem,
    features={modality: str(paths[0]) for modality, paths in features.items() if paths},
    modalities=[modality for modality, paths in features.items() if paths],
  )


def make_batches(config, dataset: Dataset, section, examples: str, grouped: bool):
  """Batches of "prefixes", with one target, or "windows", with every target."""
  max_history = config.max_history
  return batches.Batches(
    dataset.items,
    *getattr(batches, examples)(dataset, max_history),
    batch_size=section.batch_size,
    lengths=batches.group_lengths(max_history, 4) if grouped else (max_history,),
    seed=config.seed,
    every_target=examples == "windows",
    micro_batch_size=section.micro_batch_size,
  )


def tokenizer_steps(config, dataset: Dataset, data: batches.Batches, num_steps: int):
  inputs = dict(
    features={name: feature.values for name, feature in dataset.features.items()},
    present={name: feature.present for name, feature in dataset.features.items()},
  )
  epoch = data.epoch_with_distinct_items(0, dataset.num_items)
  return workload.tokenizer_steps(config.tokenizer, dataset.num_items, inputs, epoch, num_steps)


def generator_steps(config, dataset: Dataset, data: batches.Batches, num_steps: int, causal: bool):
  section = config.generator
  shape = workload.FULL._replace(
    num_items=dataset.num_items,
    num_levels=config.num_levels,
    num_signals=config.tokenizer.model.use_id + len(dataset.features),
    codebook_size=config.codebook_size,
    code_dim=config.latent_dim,
  )
  model = generator.Model(
    num_levels=shape.num_levels,
    codebook_size=shape.codebook_size,
    num_signals=shape.num_signals,
    **section.model,
  )
  if causal:
    model = model.clone(encoder="causal")
  catalogue = workload.make_catalogue(shape)
  params = workload.init_params(model, catalogue, config.max_history)
  return workload.generator_steps(model, params, catalogue, data.epoch(0), num_steps)


def padded_items(groups: tuple[dict[str, np.ndarray], ...]) -> dict[str, int]:
  """Items of an epoch's histories: all that are computed, and those that are no padding."""
  histories = [group["history"] for group in groups]
  return dict(
    computed=sum(h.size for h in histories), real=sum(int((h >= 0).sum()) for h in histories)
  )


if __name__ == "__main__":
  sys.exit(harness.main(run, __doc__, add_options))

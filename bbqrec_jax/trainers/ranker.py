"""Systems that score every item: SASRec and whatever keeps the contract below.

A model, models/<ranker.model_name>.py, is an item_ranker.ItemRanker: `Model(num_items=,
feature_dims=, max_history=, **ranker.model)` with

* items(inputs) -> Items(vectors, bias): the catalogue, computed once a step;
* predictions(items, history, targets, inputs, deterministic) -> Predictions(hidden, targets): what
  training sequences give to learn from. Left-to-right models have a hidden state and a target at
  every position; masked ones corrupt the same sequences here, by the "mask" key;
* represent(items, history, inputs) -> [B, E]: what the next item is scored by.

A score is hidden . vector + bias, unless the model's scorer() says otherwise. Sequences are
data/batches.windows(), or prefixes() for a model that predicts one item of each: every position but
a user's first is a target once an epoch. What a model prepares, such as codes that it does not
learn, stands in <stage>_prepared.npz. With ranker.init_from, parameters start from those that an
earlier stage of the run, trainers/pretrainer.py, found best. The loss is a mean over what is
predicted. Evaluation, selection and stopping are those of every stage, over the whole catalogue.
"""

import functools
import pathlib
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bbqrec_jax import (
  checkpoint,
  loop,
  losses,
  optim,
  plugins,
  train_state,
)
from bbqrec_jax import partition as partition_lib
from bbqrec_jax.data import batches, item_vectors, npz, scaling
from bbqrec_jax.data.dataset import Dataset
from bbqrec_jax.evaluators import ranking
from bbqrec_jax.metric_writer import MetricWriter
from bbqrec_jax.models import layers
from bbqrec_jax.trainers import fitting

STAGE = "ranker"
LOSSES = ("softmax", "bce")


class Trained(NamedTuple):
  """What fit() leaves behind."""

  fitted: loop.Fitted
  make_evaluator: Callable  # split= -> ranking.Evaluator.
  ranks_by: Callable  # params -> a rank_fn for it.
  make_items: Callable  # params -> the model's Items, of I' rows.


def make_model(stage: str, config, dataset: Dataset):
  """The model of a config's section of this stage, for these data."""
  section = config[stage]
  module = plugins.load("models", section.model_name, f"{stage}.model_name")
  return module.Model(
    num_items=dataset.num_items,
    feature_dims={name: f.values.shape[1] for name, f in dataset.features.items()},
    max_history=config.max_history,
    **section.model,
  )


def make_inputs(dataset: Dataset) -> dict[str, dict[str, np.ndarray]]:
  """What models read of the catalogue: see item_ranker.ItemRanker."""
  inputs, _ = scaling.standardise(dataset)
  fill = layers.table_rows(dataset.num_items) - dataset.num_items
  pad = lambda x: np.pad(x, [(0, fill)] + [(0, 0)] * (x.ndim - 1))
  return jax.tree.map(pad, inputs)


def train(config, dataset: Dataset, workdir: pathlib.Path, writer: MetricWriter) -> dict:
  """Runs the stage, or goes on with it; returns its record, JSON-able."""
  started = time.perf_counter()
  section = config.ranker
  make_loss = functools.partial(functools.partial, loss_fn, loss=section.loss)
  trained = fit(
    STAGE, config, dataset, workdir, writer, make_loss=make_loss, init_from=section.init_from
  )
  params = trained.fitted.params
  results, found = ranking.evaluate_splits(trained.make_evaluator, trained.ranks_by(params))
  vectors = partition_lib.fetch(trained.make_items(params).vectors)[: dataset.num_items]
  if partition_lib.is_main():
    ranking.save_ranks(workdir, dataset, found)
    item_vectors.save(workdir, dataset.item_ids, vectors.reshape(dataset.num_items, -1))
  return fitting.record(trained.fitted, started) | results


def fit(
  stage: str,
  config,
  dataset: Dataset,
  workdir: pathlib.Path,
  writer: MetricWriter,
  *,
  make_loss: Callable,
  init_from: str = "",
) -> Trained:
  """Trains the model of a stage's section, selected by its ranking of the validation items.

  Args:
    make_loss: (model, axis_name=) -> a loss for train_state.make_train_step().
    init_from: a stage of this workdir, whose best parameters replace random ones of their names.
  """
  section = config[stage]
  model = make_model(stage, config, dataset)
  inputs = make_inputs(dataset)
  inputs |= prepared(model, inputs, workdir / f"{stage}_prepared.npz", config.seed)
  partition = partition_lib.Partition(**config.parallel)
  inputs = partition.place_tables(inputs)
  examples = batches.windows if model.every_target else batches.prefixes
  data = batches.Batches(
    dataset.items,
    *examples(dataset, config.max_history),
    batch_size=section.batch_size,
    lengths=batches.group_lengths(config.max_history, section.length_groups),
    seed=config.seed,
    every_target=model.every_target,
    micro_batch_size=section.micro_batch_size,
    row_multiple=partition.row_multiple,
    share=partition.share,
  )
  params_key = partition.replicate(jax.random.key(config.seed))
  params = partition.init(functools.partial(init_params, model), params_key, inputs)
  if init_from:
    other = make_model(init_from, config, dataset)
    shapes = jax.eval_shape(functools.partial(init_params, other), params_key, inputs)
    params |= _best_params(workdir, init_from, shapes, partition)
  num_steps = section.num_epochs * data.steps_per_epoch
  tx = optim.make_optimizer(num_steps=num_steps, **section.optimizer)
  axis_name = partition.axis_name
  train_step = train_state.make_train_step(
    make_loss(model, axis_name=axis_name), tx, axis_name=axis_name
  )
  state = partition.init(lambda params: train_state.create(params, tx), params)
  make_items = jax.jit(functools.partial(catalogue, model))
  rank_fn = ranking.make_rank_fn(functools.partial(ranks, model), partition)

  make_evaluator = functools.partial(
    ranking.Evaluator,
    dataset,
    max_history=config.max_history,
    batch_size=section.eval_batch_size,
    row_multiple=partition.row_multiple,
  )

  def ranks_by(params):
    return functools.partial(rank_fn, (params, make_items(params, inputs), inputs))

  selection = make_evaluator(split="valid")
  fitted = fitting.fit(
    config,
    stage,
    state,
    train_step,
    data=data,
    epoch_fn=data.epoch,
    constants=inputs,
    eval_fn=lambda params: selection.run(ranks_by(params))[0],
    partition=partition,
    workdir=workdir,
    writer=writer,
  )
  return Trained(fitted, make_evaluator, ranks_by, lambda params: make_items(params, inputs))


def prepared(model, inputs, path: pathlib.Path, seed: int) -> dict[str, np.ndarray]:
  """What the model prepares: read where it was, since another device could round otherwise.

  Raises UserError if the file is damaged.
  """
  if path.exists():
    return npz.read(path, (), "remove the workdir and run again")
  arrays = model.prepare(inputs, jax.random.fold_in(jax.random.key(seed), 1))
  if arrays and partition_lib.is_main():
    npz.write(path, **arrays)
  return arrays


def _best_params(workdir: pathlib.Path, stage: str, shapes, partition):
  """The parameters that another stage found best."""
  place = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
  template = jax.tree.map(place, shapes, partition.shardings(shapes))
  return checkpoint.best_params(workdir, stage, template)


def init_params(model, key, inputs):
  """Random parameters."""
  params_key, mask_key = jax.random.split(key)
  history = jnp.zeros((1, model.max_history), jnp.int32)
  variables = model.init(dict(params=params_key, mask=mask_key), history, history, inputs)
  return variables["params"]


def catalogue(model, params, inputs):
  """The model's Items, where what is no item cannot be told from one that nobody wants."""
  items = model.apply({"params": params}, inputs, method="items")
  is_item = jnp.arange(len(items.bias)) < model.num_items
  return items._replace(bias=jnp.where(is_item, items.bias, layers.MASKED))


def ranks(model, context, history, seen, targets) -> ranking.Ranks:
  """A rank_fn of ranking.make_rank_fn(); the context is (params, Items, inputs)."""
  params, items, inputs = context
  h = model.apply({"params": params}, items, history, inputs, method="represent")
  scorer = model.scorer(items)
  scores = scorer.items(h, items.vectors, items.bias, jax.lax.Precision.HIGHEST)
  return ranking.by_scores(scores, seen, targets)


def loss_fn(model, params, batch, inputs, key, *, loss: str, axis_name: str | None = None):
  """The loss of a batch: a mean over what the model predicts of it.

  Args:
    batch: a step of what Batches.epoch() gives, with the model's every_target.
    loss: one of LOSSES.
    axis_name: as in losses.py.
  """
  items = catalogue(model, params, inputs)
  vectors, scorer = items.vectors.astype(model.dtype), model.scorer(items)

  def part(group, key):
    dropout_key, mask_key, negative_key = jax.random.split(key, 3)
    predicted = model.apply(
      {"params": params}, items, group["history"], group["targets"], inputs, False,
      method="predictions", rngs=dict(dropout=dropout_key, mask=mask_key),
    )  # fmt: skip
    counts = predicted.targets >= 0  # [R, P]
    weights = counts.reshape(-1).astype(jnp.float32)
    targets = jnp.maximum(predicted.targets, 0).reshape(-1)
    h = predicted.hidden.astype(model.dtype).reshape(len(targets), -1)
    if loss == "softmax":
      loss_sum = losses.softmax_loss(h, vectors, items.bias, targets, weights, scorer)
    else:
      negatives, allowed = sample_negatives(negative_key, group, counts.shape[1], model.num_items)
      loss_sum = losses.bce_loss(
        h,
        vectors,
        items.bias,
        targets,
        negatives.reshape(-1),
        weights,
        weights * allowed.reshape(-1),
        scorer,
      )
    return jnp.stack([loss_sum, jnp.sum(weights)])

  # How many a masked model predicts is known only once it has drawn them.
  loss_sum, num_targets = train_state.sum_micro_batches(part, batch, key)
  num_targets = jnp.maximum(losses.total(num_targets, axis_name), 1)
  return losses.total(loss_sum, axis_name) / num_targets, ({}, ())


def sample_negatives(key, group, num_predictions: int, num_items: int):
  """Uniformly drawn items, and whether each is none of its own sequence.

  SASRec draws until an item is none of the user's; here one that is does not count, and it is the
  window that is looked at.

  Args:
    group: history and targets, [R, T] int32, -1 at padding.
    num_predictions: P.

  Returns:
    (negatives [R, P] int32 in [0, num_items), allowed [R, P] bool).
  """
  sequence = jnp.concatenate([group["history"], group["targets"]], axis=1)
  shape = (len(sequence), num_predictions)
  negatives = jax.random.randint(key, shape, 0, num_items, jnp.int32)
  own = jnp.any(negatives[:, :, None] == sequence[:, None, :], axis=-1)
  return negatives, ~own

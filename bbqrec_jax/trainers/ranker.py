"""Systems that score every item: SASRec and whatever keeps the contract below.

A model, models/<ranker.model_name>.py, is an item_ranker.ItemRanker: `Model(num_items=,
feature_dims=, max_history=, **ranker.model)` with

* items(inputs) -> Items(vectors, bias): the catalogue, computed once a step;
* predictions(items, history, targets, inputs, deterministic) -> Predictions(hidden, targets): what
  training sequences give to learn from. Left-to-right models have a hidden state and a target at
  every position; masked ones corrupt the same sequences here, by the "mask" key;
* represent(items, history, inputs) -> [B, E]: what the next item is scored by.

A score is hidden . vector + bias. Sequences are data/batches.windows(): every position but a user's
first is a target once an epoch. The loss is a mean over targets; where a model predicts another
number of them than a sequence has, the sequence keeps its weight. Evaluation, selection and
stopping are those of every stage, over the whole catalogue.
"""

import functools
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np

from bbqrec_jax import (
  checkpoint,
  diagnostics,
  loop,
  losses,
  metrics,
  optim,
  plugins,
  run_record,
  train_state,
)
from bbqrec_jax import partition as partition_lib
from bbqrec_jax.data import batches, item_vectors, scaling
from bbqrec_jax.data.dataset import Dataset
from bbqrec_jax.evaluators import ranking
from bbqrec_jax.metric_writer import MetricWriter
from bbqrec_jax.models import layers

STAGE = "ranker"
LOSSES = ("softmax", "bce")


def make_model(config, *, num_items: int, feature_dims: dict[str, int], max_history: int):
  """The model of a config's `ranker` section, for these inputs."""
  module = plugins.load("models", config.model_name, "ranker.model_name")
  return module.Model(
    num_items=num_items, feature_dims=feature_dims, max_history=max_history, **config.model
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
  inputs = make_inputs(dataset)
  model = make_model(
    section,
    num_items=dataset.num_items,
    feature_dims={name: x.shape[1] for name, x in inputs["features"].items()},
    max_history=config.max_history,
  )
  partition = partition_lib.Partition(**config.parallel)
  inputs = partition.place_tables(inputs)
  data = batches.Batches(
    dataset.items,
    *batches.windows(dataset, config.max_history),
    batch_size=section.batch_size,
    lengths=batches.group_lengths(config.max_history, section.length_groups),
    seed=config.seed,
    every_target=True,
    micro_batch_size=section.micro_batch_size,
    row_multiple=partition.row_multiple,
    share=partition.share,
  )
  params = partition.init(
    functools.partial(init_params, model),
    partition.replicate(jax.random.key(config.seed)),
    inputs,
  )
  num_steps = section.num_epochs * data.steps_per_epoch
  tx = optim.make_optimizer(num_steps=num_steps, **section.optimizer)
  axis_name = partition.axis_name
  train_step = train_state.make_train_step(
    functools.partial(loss_fn, model, loss=section.loss, axis_name=axis_name),
    tx,
    axis_name=axis_name,
  )
  state = partition.init(lambda params: train_state.create(params, tx), params)
  train_chunk = train_state.make_train_chunk(train_step, loop.MAX_CHUNK_STEPS)
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
  with checkpoint.Checkpointer(workdir / "checkpoints" / STAGE) as checkpointer:
    fitted = loop.fit(
      state,
      partition.compile_chunk(train_chunk, state),
      lambda epoch: partition.place_epoch(data.epoch(epoch)),
      stage=STAGE,
      constants=inputs,
      # What a step draws is a few words; the RBG generator's compile faster than threefry's.
      key=partition.replicate(jax.random.key(config.seed, impl="rbg")),
      num_steps=num_steps,
      steps_per_epoch=data.steps_per_epoch,
      eval_fn=lambda params: selection.run(ranks_by(params))[0],
      eval_steps=section.eval_epochs * data.steps_per_epoch,
      monitor=section.monitor,
      patience=section.patience,
      log_steps=section.log_steps,
      examples_per_step=data.num_examples / data.steps_per_epoch,
      checkpointer=checkpointer,
      writer=writer,
      workdir=workdir,
      profile_steps=diagnostics.parse_steps(config.profile_steps),
    )

  results, found = ranking.evaluate_splits(make_evaluator, ranks_by(fitted.params))
  vectors = partition_lib.fetch(make_items(fitted.params, inputs).vectors)
  if partition_lib.is_main():
    ranking.save_ranks(workdir, dataset.user_ids, found)
    item_vectors.save(workdir, dataset.item_ids, vectors[: dataset.num_items])
  return (
    fitted.summary
    | results
    | dict(
      num_params=sum(x.size for x in jax.tree.leaves(fitted.params)),
      seconds=fitted.summary["earlier_seconds"] + time.perf_counter() - started,
      peak_memory_mb=run_record.peak_memory_mb(),
    )
  )


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


def ranks(model, context, history, targets):
  """Ranks [B] of targets [B] among all items, for histories [B, T]."""
  params, items, inputs = context
  h = model.apply({"params": params}, items, history, inputs, method="represent")
  scores = losses.score_items(h, items.vectors, items.bias, jax.lax.Precision.HIGHEST)
  return metrics.ranks_from_scores(scores, targets)


def loss_fn(model, params, batch, inputs, key, *, loss: str, axis_name: str | None = None):
  """The loss of a batch: a mean over its targets.

  Args:
    batch: a step of what Batches.epoch() gives, with every_target.
    loss: one of LOSSES.
    axis_name: as in losses.py.
  """
  items = catalogue(model, params, inputs)
  vectors = items.vectors.astype(model.dtype)
  num_targets = sum(jnp.sum(group["targets"] >= 0) for group in batch)
  num_targets = jnp.maximum(losses.total(num_targets, axis_name), 1)

  def part(group, key):
    dropout_key, mask_key, negative_key = jax.random.split(key, 3)
    predicted = model.apply(
      {"params": params}, items, group["history"], group["targets"], inputs, False,
      method="predictions", rngs=dict(dropout=dropout_key, mask=mask_key),
    )  # fmt: skip
    counts = predicted.targets >= 0  # [R, P]
    share = jnp.sum(group["targets"] >= 0, axis=1) / jnp.maximum(jnp.sum(counts, axis=1), 1)  # [R]
    weights = (counts * share[:, None] / num_targets).reshape(-1)
    targets = jnp.maximum(predicted.targets, 0).reshape(-1)
    h = predicted.hidden.astype(model.dtype).reshape(len(targets), -1)
    if loss == "softmax":
      return losses.softmax_loss(h, vectors, items.bias, targets, weights)
    negatives, allowed = sample_negatives(negative_key, group, counts.shape[1], model.num_items)
    return losses.bce_loss(
      h, vectors, items.bias, targets, negatives.reshape(-1), weights, weights * allowed.reshape(-1)
    )

  total = losses.total(train_state.sum_micro_batches(part, batch, key), axis_name)
  return total, ({}, ())


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

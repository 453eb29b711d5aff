"""Stage two: trains the generator on semantic IDs and evaluates what it generates."""

import functools
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np

from bbqrec_jax import (
  losses,
  optim,
  plugins,
  train_state,
)
from bbqrec_jax import partition as partition_lib
from bbqrec_jax.data import batches, semantic_ids
from bbqrec_jax.data.dataset import Dataset
from bbqrec_jax.decoding import generate as generate_lib
from bbqrec_jax.decoding import trie as trie_lib
from bbqrec_jax.errors import UserError
from bbqrec_jax.evaluators import ranking
from bbqrec_jax.metric_writer import MetricWriter
from bbqrec_jax.trainers import fitting

STAGE = "generator"


def make_model(config, ids: semantic_ids.SemanticIds):
  """The model of a config's `generator` section, for these semantic IDs."""
  module = plugins.load("models", config.model_name, "generator.model_name")
  _, num_levels, num_signals = ids.codes.shape
  return module.Model(
    num_levels=num_levels,
    codebook_size=ids.codebook_size,
    num_signals=num_signals,
    **config.model,
  )


def train(config, dataset: Dataset, workdir: pathlib.Path, writer: MetricWriter) -> dict:
  """Runs the stage, or goes on with it; returns its record, JSON-able.

  Raises UserError if the semantic IDs are missing, damaged or of other items.
  """
  started = time.perf_counter()
  section = config.generator
  ids = semantic_ids.load(workdir)
  if not np.array_equal(ids.item_ids, dataset.item_ids):
    raise UserError(
      f"{workdir / semantic_ids.FILE_NAME} is of other items than {dataset.name}; run the stage "
      "that made it again, in another workdir."
    )
  model = make_model(section, ids)
  partition = partition_lib.Partition(**config.parallel)
  catalogue = partition.place_tables(generate_lib.Catalogue(ids.codes, ids.vectors))
  trie = partition.replicate(trie_lib.build(ids.codes, ids.codebook_size, ids.popularity))
  # The causal encoder learns from every position of a sequence at once; the bidirectional one
  # needs each prefix as an example of its own.
  every_target = model.encoder == "causal"
  examples = batches.windows if every_target else batches.prefixes
  data = batches.Batches(
    dataset.items,
    *examples(dataset, config.max_history),
    batch_size=section.batch_size,
    lengths=batches.group_lengths(config.max_history, section.length_groups),
    seed=config.seed,
    every_target=every_target,
    micro_batch_size=section.micro_batch_size,
    row_multiple=partition.row_multiple,
    share=partition.share,
  )
  params = partition.init(
    lambda key, catalogue: init_params(model, key, catalogue, config.max_history),
    partition.replicate(jax.random.key(config.seed)),
    catalogue,
  )
  if section.inherit_codebooks:  # validate.py refuses it where a level has no codebook.
    params = _with_inherited_codebooks(params, ids.codebooks)
  num_steps = section.num_epochs * data.steps_per_epoch
  tx = optim.make_optimizer(num_steps=num_steps, **section.optimizer)
  train_step = train_state.make_train_step(
    functools.partial(
      loss_fn, model, temperature=section.temperature, axis_name=partition.axis_name
    ),
    tx,
    split_fn=functools.partial(with_weights, axis_name=partition.axis_name),
    axis_name=partition.axis_name,
  )
  state = partition.init(lambda params: train_state.create(params, tx), params)
  generate = generate_lib.make_generate(
    model, num_beams=section.num_beams, num_results=section.num_results
  )
  make_evaluator = functools.partial(
    ranking.Evaluator,
    dataset,
    max_history=config.max_history,
    batch_size=section.eval_batch_size,
    row_multiple=partition.row_multiple,
  )

  def ranks_of(context, history, seen, targets):
    return ranking.by_lists(generate(*context, history).items, seen, targets)

  rank_fn = ranking.make_rank_fn(ranks_of, partition)

  def ranks_by(params):
    return functools.partial(rank_fn, (params, catalogue, trie))

  selection = make_evaluator(split="valid", max_users=section.selection_users)
  fitted = fitting.fit(
    config,
    STAGE,
    state,
    train_step,
    data=data,
    epoch_fn=data.epoch,
    constants=catalogue,
    eval_fn=lambda params: selection.run(ranks_by(params))[0],
    partition=partition,
    workdir=workdir,
    writer=writer,
  )

  results, ranks = ranking.evaluate_splits(make_evaluator, ranks_by(fitted.params))
  if partition_lib.is_main():
    ranking.save_ranks(workdir, dataset, ranks)
  return fitting.record(fitted, started) | results | dict(encoder=model.encoder)


def with_weights(groups, axis_name: str | None = None) -> list[dict[str, jax.Array]]:
  """The micro-batches of a batch, whose losses add up to the batch's mean.

  Args:
    groups: a step of what Batches.epoch() gives: history [n, R, T] and targets [n, R, P] int32.
    axis_name: as in losses.py.

  Returns:
    The groups with weights [n, R, P] float32, which are 1 over the number of the whole batch's
    targets, or 0 at padding.
  """
  num_targets = sum(jnp.sum(group["targets"] >= 0) for group in groups)
  num_targets = jnp.maximum(losses.total(num_targets, axis_name), 1)
  return [
    group | dict(weights=((group["targets"] >= 0) / num_targets).astype(jnp.float32))
    for group in groups
  ]


def loss_fn(
  model,
  params,
  batch,
  catalogue: generate_lib.Catalogue,
  key,
  *,
  temperature: float = 1.0,
  axis_name: str | None = None,
):
  """BBQRec Eq. (1) over one micro-batch, [R, T] and [R, P], of what with_weights() gives.

  The temperature is that of losses.semantic_id_loss(); beams are scored without it.
  """
  codes, vectors, mask = generate_lib.lookup(catalogue, batch["history"])
  targets, _, _ = generate_lib.lookup(catalogue, batch["targets"])
  logits = model.apply(
    {"params": params}, codes, vectors, mask, targets, False, rngs={"dropout": key}
  )
  loss = losses.semantic_id_loss(logits, targets, batch["weights"], temperature)
  return losses.total(loss, axis_name), ({}, ())


def init_params(model, key, catalogue: generate_lib.Catalogue, max_history: int):
  """Random parameters; similarity tables of ones."""
  history = jnp.zeros((1, max_history), jnp.int32)
  inputs = generate_lib.lookup(catalogue, history)
  return jax.jit(model.init)(key, *inputs, inputs[0][:, :1])["params"]


def _with_inherited_codebooks(params, codebooks: np.ndarray):
  """Code embeddings that start as stage one's codebooks [G, L, N, D]: BBQRec Table 4, variant E."""
  num_levels, num_signals, codebook_size, code_dim = params["code_embed"].shape
  if codebooks.shape[1:] != (num_levels, codebook_size, code_dim):
    raise ValueError(
      f"codebooks {codebooks.shape} cannot be inherited by embeddings {params['code_embed'].shape}."
    )
  per_signal = jnp.broadcast_to(codebooks, (num_signals, *codebooks.shape[1:]))
  return params | {"code_embed": jnp.swapaxes(per_signal, 0, 1)}

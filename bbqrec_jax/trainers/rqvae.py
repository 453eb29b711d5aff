"""Semantic IDs of TIGER and LETTER: trains an RQ-VAE on one modality, writes semantic_ids.npz.

TIGER: Rajput et al. 2023 (arXiv:2305.05065), section 3.1. LETTER: Wang et al. 2024
(arXiv:2405.07314) adds two terms: alignment with the item vectors of a sequential recommender, and
diversity of the codes. Both weights 0 are TIGER.

Where this differs:
* AdamW in place of Adagrad; codes unused for `revive_steps` steps are moved, as public
  reproductions of TIGER do.
* Codebooks begin with plain k-means, where LETTER's program balances it. As there, the last level's
  codes are used evenly in training, and items that share an ID are given others behind it
  (trainers/repair.py); no new item is.
* Features are standardised (data/scaling.py), which LETTER's program does not do.
* Clusters of codes are of equal size (models/balanced.py), where LETTER's program bounds their
  sizes; as there they are found anew every epoch.
* The parameters are those that reconstruct best, where LETTER's program takes the last epoch's.
* Every level's commitment reaches the encoder, as in TIGER's formula; in LETTER's program, which
  subtracts code vectors that pass gradients straight through, the first level's alone does.
* LETTER's network is TIGER's, where its program's hidden layers are 2048, 1024, 512, 256, 128, 64.
"""

import functools
import math
import pathlib
import time
from collections.abc import Sequence
from typing import NamedTuple

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
from bbqrec_jax.data import batches, item_vectors, scaling, semantic_ids
from bbqrec_jax.data.dataset import Dataset
from bbqrec_jax.errors import UserError
from bbqrec_jax.evaluators import codebook
from bbqrec_jax.metric_writer import MetricWriter
from bbqrec_jax.models import balanced, layers
from bbqrec_jax.trainers import fitting, item_codes, repair

STAGE = "rqvae"
# What can select the parameters; larger is better. "distinct_ids": semantic IDs by items.
MONITORS = ("reconstruction", "distinct_ids")
REDUCTIONS = ("sum", "mean")  # TIGER's paper's, LETTER's program's.
_CLUSTER_ITERS = 10


class Extra(NamedTuple):
  """What a step hands to the next beside parameters."""

  idle: jax.Array  # [1, L, N] int32, as item_codes.no_idle() begins it.
  clusters: jax.Array  # [L, N] int32, the cluster of every code; zeros where no loss needs it.
  age: jax.Array  # [] int32, steps since the beginning.


def make_model(section, *, num_items: int, feature_dims: dict[str, int]):
  """The model of a config's `rqvae` section, for these inputs."""
  module = plugins.load("models", section.model_name, "rqvae.model_name", "Model")
  dims = {section.modality: feature_dims[section.modality]}
  return module.Model(num_items=num_items, feature_dims=dims, **section.model)


def train(config, dataset: Dataset, workdir: pathlib.Path, writer: MetricWriter) -> dict:
  """Runs the stage, or goes on with it; returns its record, JSON-able.

  Raises UserError if the item vectors are missing, or do not fit.
  """
  started = time.perf_counter()
  section = config.rqvae
  inputs, scalings = scaling.standardise(dataset)
  only = lambda by_name: {section.modality: by_name[section.modality]}
  inputs, scalings = {name: only(x) for name, x in inputs.items()}, only(scalings)
  if section.alignment_weight:
    inputs["collaborative"] = _collaborative(workdir, dataset, section.model.latent_dim)
  feature_dims = {name: x.shape[1] for name, x in inputs["features"].items()}
  model = make_model(section, num_items=dataset.num_items, feature_dims=feature_dims)
  partition = partition_lib.Partition(**config.parallel)
  constants = partition.place_tables(inputs)
  items = np.arange(dataset.num_items, dtype=np.int32)
  data = batches.Batches(  # An item is a history of one; what comes after it is not read.
    items,
    items,
    items + 1,
    batch_size=section.batch_size,
    lengths=(1,),
    seed=config.seed,
    every_target=True,
    row_multiple=partition.row_multiple,
    share=partition.share,
  )

  keys = jax.random.split(jax.random.key(config.seed), 3)
  init_key, kmeans_key, cluster_key = partition.replicate(tuple(keys))
  params = partition.init(functools.partial(item_codes.init_params, model), init_key)
  sample_key, kmeans_key = jax.random.split(kmeans_key)
  sampled = item_codes.sample(model, constants, sample_key, partition)
  params = item_codes.with_kmeans_codebooks(
    model, params, sampled, kmeans_key, section.kmeans_iters, partition
  )
  num_steps = section.num_epochs * data.steps_per_epoch
  tx = optim.make_optimizer(num_steps=num_steps, **section.optimizer)
  axis_name = partition.axis_name
  num_clusters = section.num_clusters if section.diversity_weight else 0
  train_step = train_state.make_train_step(
    functools.partial(
      loss_fn,
      model,
      quantization_reduction=section.quantization_reduction,
      commitment_weight=section.commitment_weight,
      alignment_weight=section.alignment_weight,
      diversity_weight=section.diversity_weight,
      sinkhorn_temperature=section.sinkhorn_temperature,
      axis_name=axis_name,
    ),
    tx,
    after_update=functools.partial(
      after_update,
      signals=model.signals,
      patience=section.revive_steps,
      num_clusters=num_clusters,
      cluster_steps=data.steps_per_epoch,
      axis_name=axis_name,
    ),
    axis_name=axis_name,
    loss_reads_extra=True,
  )
  state = partition.init(
    functools.partial(init_state, tx, num_clusters=num_clusters), params, cluster_key
  )
  encode_catalogue = item_codes.make_encode_catalogue(model)
  evaluate = _make_eval_fn(model, encode_catalogue, constants, partition)
  fitted = fitting.fit(
    config,
    STAGE,
    state,
    train_step,
    data=data,
    epoch_fn=data.epoch,
    constants=constants,
    eval_fn=evaluate,
    partition=partition,
    workdir=workdir,
    writer=writer,
  )

  codes, vectors = partition_lib.fetch(encode_catalogue(fitted.params, constants))
  report = codebook.report(codes, model.codebook_size, model.signals, True)
  if section.repair_rounds:
    codes, vectors = _repaired(section, model, fitted.params, constants, codes)
    report["num_surplus_repaired"] = len(codes) - len(np.unique(codes, axis=0))
  if section.number_collisions:
    numbers = semantic_ids.running_numbers(codes)
    codes = np.concatenate([codes, numbers[:, None, None]], axis=1)
    report["running_numbers"] = int(numbers.max()) + 1
  if partition_lib.is_main():
    item_codes.save(
      workdir, dataset, model, fitted.params, codes=codes, vectors=vectors, scalings=scalings
    )
  results = dict(valid_at_best=evaluate(fitted.params), codebook=report)
  return fitting.record(fitted, started) | results


def _repaired(section, model, params, constants, codes: np.ndarray):
  """(codes, vectors) as of make_encode_catalogue(), with fewer items of one semantic ID."""
  residuals = item_codes.make_last_residuals(model)(params, constants)
  codes = repair.separate(
    codes[:, :, 0],
    partition_lib.fetch(residuals)[:, 0],
    partition_lib.fetch(params["quantizer"]["codebooks"])[0, -1],
    temperature=section.sinkhorn_temperature,
    num_rounds=section.repair_rounds,
  )[:, :, None]
  lookup = jax.jit(lambda params, codes: model.apply({"params": params}, codes, method="lookup"))
  return codes, partition_lib.fetch(lookup(params, codes))


def _collaborative(workdir: pathlib.Path, dataset: Dataset, latent_dim: int) -> np.ndarray:
  """[I, D] float32, what an earlier stage has learned of the items' use."""
  vectors = item_vectors.load(workdir, dataset.item_ids)
  if vectors.shape[1] != latent_dim:
    raise UserError(
      f"{workdir / item_vectors.FILE_NAME} has vectors of {vectors.shape[1]} dimensions, and "
      f"rqvae.model.latent_dim={latent_dim}; rqvae.alignment_weight needs them to be equal."
    )
  return vectors


def init_state(tx, params, key, *, num_clusters: int) -> train_state.TrainState:
  """The state before the first step; 0 clusters: no loss needs them."""
  idle = item_codes.no_idle(params)
  clusters = _cluster(params, key, num_clusters) if num_clusters else jnp.zeros_like(idle[0])
  return train_state.create(params, tx, Extra(idle, clusters, jnp.zeros((), jnp.int32)))


def after_update(
  params,
  extra: Extra,
  outputs,
  key,
  *,
  signals: Sequence[str],
  patience: int,
  num_clusters: int,
  cluster_steps: int,
  axis_name: str | None = None,
):
  """Behind the optimizer's update: moves idle codes, and at times clusters all of them anew.

  Args:
    outputs, key: as train_state.make_train_step() gives them.
    signals: the model's.
    patience: codes idle for so many steps are moved; 0: none.
    num_clusters: of each level's codes; 0: they are not needed.
    cluster_steps: how often they are found.
  """
  idle, clusters, age = extra.idle, extra.clusters, extra.age + 1
  if patience:
    params, idle = item_codes.revive_codes(
      params, idle, outputs, key, signals=signals, patience=patience, axis_name=axis_name
    )
  if num_clusters:
    clusters = jax.lax.cond(
      age % cluster_steps == 0,
      lambda: _cluster(params, jax.random.fold_in(key, 1), num_clusters),
      lambda: clusters,
    )
  return params, Extra(idle, clusters, age)


def _cluster(params, key, num_clusters: int) -> jax.Array:
  """[L, N] int32, balanced clusters of every level's codes."""
  codebooks = params["quantizer"]["codebooks"][0]
  cluster = functools.partial(
    balanced.balanced_kmeans, num_clusters=num_clusters, num_iters=_CLUSTER_ITERS
  )
  return jax.vmap(cluster)(jax.random.split(key, len(codebooks)), codebooks)


def loss_fn(
  model,
  params,
  batch,
  constants,
  key,
  extra: Extra,
  *,
  quantization_reduction: str,
  commitment_weight: float,
  alignment_weight: float,
  diversity_weight: float,
  sinkhorn_temperature: float = 0.0,
  axis_name: str | None = None,
):
  """Reconstruction and quantization, and LETTER's two terms where they have a weight.

  batch is a step of what Batches.epoch() gives: one group, of histories of one item.
  quantization_reduction is one of REDUCTIONS, over levels and dimensions. sinkhorn_temperature, if
  not 0, has the last level's codes used evenly by the rows of all devices.
  """
  items = batch[0]["history"][0, :, 0]
  features, present = item_codes.rows(constants, items)
  weights = (items >= 0).astype(jnp.float32)

  def choose_evenly(residuals, codebook):
    points, counts = losses.gather_rows((residuals, weights), axis_name)
    codes = balanced.balanced_codes(points, codebook, counts, sinkhorn_temperature)
    return losses.own_rows(codes, len(residuals), axis_name)

  choose_last = choose_evenly if sinkhorn_temperature else None
  out = model.apply({"params": params}, items, features, present, choose_last)
  codebook_loss, commitment_loss = losses.quantization_losses(
    out.quantized.residuals, out.quantized.embeds, weights, axis_name
  )
  size = math.prod(out.quantized.embeds.shape[2:]) if quantization_reduction == "mean" else 1
  ((name, x),) = features.items()
  terms = dict(
    codebook=codebook_loss / size,
    commitment=commitment_loss / size,
    recon=losses.reconstruction_loss(x, out.reconstruction, present[name], weights, axis_name),
  )
  total = terms["recon"] + terms["codebook"] + commitment_weight * terms["commitment"]
  known = weights * present[name]  # What has no input of its own cannot be told apart.
  if alignment_weight:
    collaborative = constants["collaborative"][jnp.maximum(items, 0)]
    terms["alignment"] = losses.alignment_loss(
      *losses.gather_rows((out.quantized.latent[:, 0], collaborative, known), axis_name)
    )
    total += alignment_weight * terms["alignment"]
  if diversity_weight:
    codes = out.quantized.codes[:, :, 0]  # [P, L]
    draws = layers.hashed_bits(jax.random.bits(key, (2,), jnp.uint32), codes.shape)
    positives = jax.vmap(balanced.other_members, in_axes=(1, 1, 0), out_axes=1)(
      draws, codes, extra.clusters
    )
    terms["diversity"] = losses.diversity_loss(
      out.quantized.embeds[:, 0],
      codes,
      params["quantizer"]["codebooks"][0],
      positives,
      known,
      axis_name,
    )
    total += diversity_weight * terms["diversity"]
  return total, (terms, (out.quantized, present, weights))


def _make_eval_fn(model, encode_catalogue, constants, partition):
  """The error of the catalogue's reconstruction, and how many semantic IDs there are."""

  def reconstruct(params, q, latents):
    del latents
    return {model.signals[0]: model.apply({"params": params}, q, method="decode")}

  reconstruction_error = item_codes.make_reconstruction_error(model, reconstruct, partition)

  def eval_fn(params):
    codes, _ = encode_catalogue(params, constants)
    error = float(reconstruction_error(params, constants))
    report = codebook.report(partition_lib.fetch(codes), model.codebook_size, model.signals, True)
    return dict(  # Larger is better, as for every figure that can be monitored.
      reconstruction=-error,
      distinct_ids=report["num_semantic_ids"] / model.num_items,
      colliding_items=report["num_colliding_items"],
    )

  return eval_fn

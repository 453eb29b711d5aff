"""Stage one: trains the item tokenizer and writes semantic_ids.npz."""

import functools
import pathlib
import time

import jax
import jax.numpy as jnp

from bbqrec_jax import (
  losses,
  optim,
  plugins,
  train_state,
)
from bbqrec_jax import partition as partition_lib
from bbqrec_jax.data import batches, scaling
from bbqrec_jax.data.dataset import Dataset
from bbqrec_jax.evaluators import codebook, ranking
from bbqrec_jax.metric_writer import MetricWriter
from bbqrec_jax.models import mlp
from bbqrec_jax.trainers import fitting, item_codes

STAGE = "tokenizer"
# What can select the parameters; larger is better. "reconstruction" is for a run without L_Rec.
MONITORS = (*ranking.NAMES, "reconstruction")


def make_model(config, *, num_items: int, feature_dims: dict[str, int]):
  """The model of a config's `tokenizer` section, for these inputs."""
  module = plugins.load("models", config.model_name, "tokenizer.model_name")
  return module.Model(num_items=num_items, feature_dims=feature_dims, **config.model)


def train(config, dataset: Dataset, workdir: pathlib.Path, writer: MetricWriter) -> dict:
  """Runs the stage, or goes on with it; returns its record, JSON-able."""
  started = time.perf_counter()
  section = config.tokenizer
  inputs, scalings = scaling.standardise(dataset)
  feature_dims = {name: x.shape[1] for name, x in inputs["features"].items()}
  model = make_model(section, num_items=dataset.num_items, feature_dims=feature_dims)
  for modality in config.data.modalities:
    if modality not in feature_dims:
      print(f"tokenizer: no item has a vector of {modality}; that signal is left out.", flush=True)
  partition = partition_lib.Partition(**config.parallel)
  constants = partition.place_tables(inputs)
  max_history = config.max_history
  data = batches.Batches(
    dataset.items,
    *batches.windows(dataset, max_history),
    batch_size=section.batch_size,
    lengths=batches.group_lengths(max_history, section.length_groups),
    seed=config.seed,
    every_target=True,
    micro_batch_size=section.micro_batch_size,
    row_multiple=partition.row_multiple,
    share=partition.share,
  )

  init_key, kmeans_key = partition.replicate(tuple(jax.random.split(jax.random.key(config.seed))))
  params = partition.init(functools.partial(item_codes.init_params, model), init_key)
  sample_key, kmeans_key = jax.random.split(kmeans_key)
  sampled = item_codes.sample(model, constants, sample_key, partition)
  if section.center_latents:
    center = jax.jit(functools.partial(center_latents, model), out_shardings=partition.replicated)
    params = params | center(params, *sampled[1:])
  params = item_codes.with_kmeans_codebooks(
    model, params, sampled, kmeans_key, section.kmeans_iters, partition
  )
  num_steps = section.num_epochs * data.steps_per_epoch
  tx, train_step = make_step(section, model, num_steps, partition.axis_name)
  state = partition.init(functools.partial(item_codes.init_state, tx), params)
  encode_catalogue = item_codes.make_encode_catalogue(model)
  evaluate = _make_eval_fn(
    model, encode_catalogue, dataset, constants, section, max_history, partition
  )
  fitted = fitting.fit(
    config,
    STAGE,
    state,
    train_step,
    data=data,
    epoch_fn=lambda epoch: data.epoch_with_distinct_items(epoch, dataset.num_items),
    constants=constants,
    eval_fn=evaluate,
    partition=partition,
    workdir=workdir,
    writer=writer,
  )

  codes, vectors = partition_lib.fetch(encode_catalogue(fitted.params, constants))
  if partition_lib.is_main():
    item_codes.save(
      workdir, dataset, model, fitted.params, codes=codes, vectors=vectors, scalings=scalings
    )
  report = codebook.report(codes, model.codebook_size, model.signals, model.shared_codebook)
  results = dict(valid_at_best=evaluate(fitted.params), codebook=report)
  return fitting.record(fitted, started) | results


def center_latents(model, params, features, present):
  """The encoders' parameters with which outputs have mean 0 over these items, by their last bias.

  Behind random layers with ReLU all items lie in a narrow cone: the modality's part of v begins as
  much the same for every item, and the modality with few codes of its own.

  Args:
    features, present: [P, F] float32 and [P] bool of every modality, as the model's.

  Returns:
    {name: parameters} of the encoders alone: what grows with the catalogue stays where it lies.
  """
  centered = {}
  for modality in model.feature_dims:
    weights = present[modality].astype(jnp.float32)[:, None]
    for kind in ("behavior", "specific") if model.use_specific else ("behavior",):
      outputs = model.apply(
        {"params": params}, kind, modality, features[modality], method=_encoder_outputs
      )
      mean = jnp.sum(weights * outputs, axis=0) / jnp.maximum(jnp.sum(weights), 1.0)
      name = f"{kind}_encoder_{modality}"
      centered[name] = mlp.shift(params[name], -mean)
  return centered


def _encoder_outputs(model, kind: str, modality: str, x: jax.Array) -> jax.Array:
  return getattr(model, f"{kind}_encoder")[modality](x)


def make_step(section, model, num_steps: int, axis_name: str | None = None):
  """(optimizer, step of train_state.make_train_step) of a config's `tokenizer` section.

  Args:
    num_steps: length of the whole training.
    axis_name: as in losses.py.
  """
  modalities = model.feature_dims if model.use_specific else ()
  tx = optim.make_optimizer(
    num_steps=num_steps,
    scales={f"club_{modality}": section.club_lr_scale for modality in modalities},
    **section.optimizer,
  )
  loss = functools.partial(
    loss_fn,
    model,
    recon_weights=dict(section.recon_weights),
    commitment_weight=section.commitment_weight,
    rec_weight=section.rec_weight,
    mim_weight=section.mim_weight,
    temperature=section.temperature,
    logq_correction=section.logq_correction,
    axis_name=axis_name,
  )
  revive = functools.partial(
    item_codes.revive_codes,
    signals=model.signals,
    patience=section.revive_steps,
    axis_name=axis_name,
  )
  after_update = revive if section.revive_steps else None
  return tx, train_state.make_train_step(loss, tx, after_update=after_update, axis_name=axis_name)


def loss_fn(
  model,
  params,
  batch,
  constants,
  key,
  *,
  recon_weights: dict[str, float],
  commitment_weight: float,
  rec_weight: float,
  mim_weight: float,
  temperature: float,
  logq_correction: bool,
  axis_name: str | None = None,
):
  """L_total, BBQRec Eq. (13), with each of its terms; and -log q_theta, which trains theta alone.

  batch is a step of what Batches.epoch_with_distinct_items() gives; axis_name as in losses.py.
  """
  items = batch["items"][0]
  features, present = item_codes.rows(constants, items)
  out = model.apply({"params": params}, items, features, present, axis_name)
  weights = (items >= 0).astype(jnp.float32)
  codebook_loss, commitment_loss = losses.quantization_losses(
    out.quantized.residuals, out.quantized.embeds, weights, axis_name
  )
  terms = dict(codebook=codebook_loss, commitment=commitment_loss)
  total = codebook_loss + commitment_weight * commitment_loss
  for name, x_hat in out.reconstructions.items():
    terms[f"recon_{name}"] = losses.reconstruction_loss(
      features[name], x_hat, present[name], weights, axis_name
    )
    total += recon_weights[name] * terms[f"recon_{name}"]
  for name, club in out.mutual_information.items():
    terms[f"mim_{name}"] = club.mim_loss
    terms[f"club_likelihood_{name}"] = club.likelihood_loss
    total += mim_weight * club.mim_loss + club.likelihood_loss
  if rec_weight:
    item_weights, log_q = losses.gather_rows((weights, batch["log_q"][0]), axis_name)
    num_targets = sum(jnp.sum(group["targets"] >= 0) for group in batch["groups"])
    num_targets = jnp.maximum(losses.total(num_targets, axis_name), 1)

    def contrast(group, key):
      h = model.apply(
        {"params": params}, out.v, group["history"], False, rngs={"dropout": key},
        method="represent",
      )  # fmt: skip
      targets = group["targets"].reshape(-1)
      return losses.info_nce(
        h.reshape(-1, h.shape[-1]),
        out.v,
        targets,
        (targets >= 0) / num_targets,
        item_weights,
        temperature,
        log_q if logq_correction else None,
      )

    terms["rec"] = losses.total(
      train_state.sum_micro_batches(contrast, batch["groups"], key), axis_name
    )
    total += rec_weight * terms["rec"]
  return total, (terms, (out.quantized, present, weights))


def _make_eval_fn(
  model, encode_catalogue, dataset, constants, section, max_history: int, partition
):
  """Validation: the rank of the held-out item by cos(h_t, v_i), and the use of the codes."""
  evaluator = ranking.Evaluator(
    dataset,
    split="valid",
    max_history=max_history,
    batch_size=section.eval_batch_size,
    row_multiple=partition.row_multiple,
  )

  def ranks(context, history, seen, targets):
    params, unit_vectors, vectors = context
    mask = history >= 0
    v = jnp.where(mask[:, :, None], vectors[jnp.maximum(history, 0)], 0.0)
    h = model.apply({"params": params}, v, history, True, method="represent_sequence")
    last = jnp.take_along_axis(h, (jnp.sum(mask, axis=1) - 1)[:, None, None], axis=1)[:, 0]
    scores = jnp.einsum("be,ie->bi", last, unit_vectors, precision="highest")
    return ranking.by_scores(scores, seen, targets)

  rank_fn = ranking.make_rank_fn(ranks, partition)

  def reconstruct(params, q, latents):
    return model.apply({"params": params}, q, latents.specific, method="reconstruct")

  reconstruction_error = item_codes.make_reconstruction_error(model, reconstruct, partition)

  def eval_fn(params):
    codes, vectors = encode_catalogue(params, constants)
    context = (params, losses.unit(vectors), vectors)
    results, _ = evaluator.run(functools.partial(rank_fn, context))
    report = codebook.report(
      partition_lib.fetch(codes), model.codebook_size, model.signals, model.shared_codebook
    )
    results["colliding_items"] = report["num_colliding_items"]
    # Larger is better, as for every figure that can be monitored.
    results["reconstruction"] = -float(reconstruction_error(params, constants))
    return results

  return eval_fn

"""Contrastive pre-training of a sequence model, which the ranker then fine-tunes.

Wang et al. 2023 (MISSRec, arXiv:2308.11175), section 3: sequences are brought near to the item that
follows (sequence to item) and to themselves without some of their items (sequence to sequence),
and away from those of the rest of the batch. The model is an item_ranker.OneTarget, and everything
but the loss is the ranker's (trainers/ranker.py); the section's fields are too.

Where we differ: on the same data as the fine-tuning, so that validation selects and stops here as
everywhere; a sequence is augmented by dropping items alone (the authors drop words of one in ten
instead, for which texts would have to be encoded again), each but the first with `item_drop_rate`,
so that a short one may stay whole; an item that is the target of several sequences of a batch is
one candidate and no negative of its own.
"""

import functools
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bbqrec_jax import losses
from bbqrec_jax.data.dataset import Dataset
from bbqrec_jax.metric_writer import MetricWriter
from bbqrec_jax.models import layers
from bbqrec_jax.trainers import fitting, ranker

STAGE = "pretrainer"


def train(config, dataset: Dataset, workdir: pathlib.Path, writer: MetricWriter) -> dict:
  """Runs the stage, or goes on with it; returns its record, JSON-able."""
  started = time.perf_counter()
  section = config.pretrainer
  make_loss = functools.partial(
    functools.partial,
    loss_fn,
    temperature=section.temperature,
    sequence_weight=section.sequence_weight,
    item_drop_rate=section.item_drop_rate,
  )
  trained = ranker.fit(STAGE, config, dataset, workdir, writer, make_loss=make_loss)
  ranks = trained.ranks_by(trained.fitted.params)
  valid, _ = trained.make_evaluator(split="valid").run(ranks)
  return fitting.record(trained.fitted, started) | dict(valid_at_best=valid)


def loss_fn(
  model,
  params,
  batch,
  inputs,
  key,
  *,
  temperature: float,
  sequence_weight: float,
  item_drop_rate: float,
  axis_name: str | None = None,
):
  """The contrast of each sequence to items plus that to augmented sequences: a mean over sequences.

  Args:
    batch: a step of what Batches.epoch() gives without every_target, one micro-batch a group, since
      the negatives are those of the whole batch.
    temperature: of the contrast between sequences; that to items is scored as the model ranks.
    sequence_weight: of the contrast between sequences.
    item_drop_rate: how probably an augmented sequence lacks each of its items but the first.
    axis_name: as in losses.py.
  """
  items = ranker.catalogue(model, params, inputs)
  vectors, scorer = items.vectors.astype(model.dtype), model.scorer(items)

  sequences, augmented, targets = [], [], []
  for n, group in enumerate(batch):
    history, target = group["history"][0], group["targets"][0, :, 0]
    drop_key, dropout_key = jax.random.split(jax.random.fold_in(key, n))
    dropped = drop_items(history, jax.random.bits(drop_key, (2,), jnp.uint32), item_drop_rate)
    both = model.apply(  # In one pass: programs compile longer than that takes.
      {"params": params}, items, jnp.concatenate([history, dropped]), inputs, False,
      method="sequence", rngs=dict(dropout=dropout_key),
    )  # fmt: skip
    own, other = jnp.split(both.astype(model.dtype), 2)
    sequences.append(own)
    augmented.append(other)
    targets.append(target)
  h, views, targets = map(jnp.concatenate, (sequences, augmented, targets))  # [R, E], [R, E], [R]
  all_views, candidates = losses.gather_rows((views, targets), axis_name)  # [P, E], [P]
  weights = (targets >= 0) / jnp.maximum(losses.total(targets >= 0, axis_name), 1)

  rows = jnp.maximum(candidates, 0)
  scores = scorer.items(h, vectors[rows], items.bias[rows])
  to_items = contrast(scores, targets, candidates, weights)
  places = jnp.where(candidates >= 0, jnp.arange(len(candidates)), -1)
  start = 0 if axis_name is None else jax.lax.axis_index(axis_name) * len(h)
  own_places = jax.lax.dynamic_slice_in_dim(places, start, len(h))
  products = jnp.einsum("re,pe->rp", h, all_views, preferred_element_type=jnp.float32)
  to_sequences = contrast(products / temperature, own_places, places, weights)
  terms = dict(
    to_items=losses.total(to_items, axis_name), to_sequences=losses.total(to_sequences, axis_name)
  )
  return terms["to_items"] + sequence_weight * terms["to_sequences"], (terms, ())


def contrast(
  scores: jax.Array, positives: jax.Array, candidates: jax.Array, weights: jax.Array
) -> jax.Array:
  """Cross-entropy of the right candidate among the distinct ones of a batch.

  Args:
    scores: [R, P] float32, divided by the temperature.
    positives: [R] int32, the name of the right candidate; one that does not occur where the weight
      is 0.
    candidates: [P] int32, their names; of equal ones the first counts, and -1 is none.
    weights: [R] float32, of each row in the sum.

  Returns:
    [] float32, nats; weighted sum.
  """
  same = candidates[:, None] == candidates[None, :]
  first = ~jnp.any(same & np.tri(len(candidates), k=-1, dtype=bool), axis=1)
  valid = first & (candidates >= 0)  # [P]
  right = jnp.argmax((positives[:, None] == candidates[None, :]) & valid[None, :], axis=1)
  per_row = optax.softmax_cross_entropy_with_integer_labels(scores, right, where=valid[None, :])
  return jnp.sum(jnp.where(weights > 0, weights * per_row, 0.0))


def drop_items(history: jax.Array, words: jax.Array, rate: float) -> jax.Array:
  """Histories that may lack some of their items; what is left moves up.

  Args:
    history: [R, T] int32, -1 behind the end; the first item always stays.
    words: [2] uint32, random.
    rate: how probably each of the others is dropped.

  Returns:
    [R, T] int32.
  """
  # Hashed, since a generator of random bits may give others where devices share the rows.
  drawn = layers.hashed_bits(words, history.shape) < np.uint32(rate * 2**32)
  dropped = (drawn & (jnp.arange(history.shape[1]) > 0)[None, :]) | (history < 0)
  order = jnp.argsort(dropped, axis=1, stable=True)
  return jnp.take_along_axis(jnp.where(dropped, -1, history), order, axis=1)

"""What stages that give items semantic IDs share: codebooks' start and revival, encoding, saving.

`model` is one of models/tokenizer.py or models/rqvae.py, which have these methods alike.
"""

import functools
import pathlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from bbqrec_jax import losses, train_state
from bbqrec_jax.data import scaling, semantic_ids
from bbqrec_jax.data.dataset import Dataset, train_counts
from bbqrec_jax.models import quantizer

ENCODE_SIZE = 1024  # Items encoded at once when the whole catalogue is.
_SAMPLE_SIZE = 20_000  # Enough for 256 codes a level; bounds the memory of the initialisation.


def rows(inputs, items: jax.Array):
  """(features, present) of items [P] int32; any rows at -1."""
  take = lambda x: x[jnp.maximum(items, 0)]
  return jax.tree.map(take, inputs["features"]), jax.tree.map(take, inputs["present"])


def init_params(model, key):
  """Random parameters, codebooks among them."""
  items = jnp.arange(2, dtype=jnp.int32)
  features = {name: jnp.zeros((2, dim), jnp.float32) for name, dim in model.feature_dims.items()}
  present = {name: jnp.ones(2, bool) for name in features}
  return jax.jit(model.init)(key, items, features, present)["params"]


def init_state(tx, params) -> train_state.TrainState:
  """The state before the first step: no code is idle yet."""
  return train_state.create(params, tx, no_idle(params))


def no_idle(params) -> jax.Array:
  """[G, L, N] int32 zeros: since how many steps each code has been idle."""
  return jnp.zeros(params["quantizer"]["codebooks"].shape[:3], jnp.int32)


def sample(model, constants, key, partition):
  """(items, features, present) of random items, or of all where there are few, on every device.

  What parameters start from is computed of them by every device alike: shared work would round
  otherwise, and k-means magnifies that.
  """
  size = min(model.num_items, _SAMPLE_SIZE)

  @functools.partial(jax.jit, out_shardings=partition.replicated)
  def take(constants, key):
    items = jax.random.permutation(key, model.num_items)[:size].astype(jnp.int32)
    return items, *rows(constants, items)

  return take(constants, key)


def with_kmeans_codebooks(model, params, sampled, key, num_iters: int, partition):
  """Codebooks from k-means over the latents of a sample(); 0 iterations leave them."""
  if not num_iters:
    return params

  @functools.partial(jax.jit, out_shardings=partition.replicated)
  def cluster(params, items, features, present, key):
    latents = model.apply({"params": params}, items, features, present, method="encode")
    return quantizer.kmeans_init(
      key,
      latents.behavior,
      num_levels=model.num_levels,
      codebook_size=model.codebook_size,
      num_iters=num_iters,
      shared=model.shared_codebook,
    )

  codebooks = cluster(params, *sampled, key)
  return params | {"quantizer": params["quantizer"] | {"codebooks": codebooks}}


def revive_codes(
  params,
  idle,
  outputs,
  key,
  *,
  signals: Sequence[str],
  patience: int,
  axis_name: str | None = None,
):
  """Behind the optimizer's update: moves codes that were idle for `patience` steps.

  Residuals of missing inputs are all alike, so only those of present ones are taken.

  Args:
    idle: as no_idle() begins it.
    outputs: (Quantized, modality -> [P] bool present, [P] float32 weights) of the step's items.
    signals: the model's, in the order in which Quantized has them; jit sorts a dict's names.
  """
  quantized, present, weights = outputs
  codes, residuals, present, weights = losses.gather_rows(
    (quantized.codes, quantized.residuals, present, weights), axis_name
  )
  per_signal = [weights * present.get(name, 1.0) for name in signals]  # The id is never missing.
  per_signal = jnp.stack(per_signal, axis=1)  # [P, M]
  idle = quantizer.update_idle(idle, codes, per_signal)
  codebooks, idle = quantizer.revive(
    key,
    params["quantizer"]["codebooks"],
    idle,
    residuals,
    per_signal,
    patience,
  )
  return params | {"quantizer": params["quantizer"] | {"codebooks": codebooks}}, idle


def make_encode_catalogue(model):
  """Builds jitted (params, inputs) -> (codes [I, L, M] int32, v [I, M * D]) of all items."""

  def encode(variables, quantized):
    # Looked up, not taken from the forward pass: v is a function of the codes alone.
    return quantized.codes, model.apply(variables, quantized.codes, method="lookup")

  return _make_of_quantized(model, encode)


def make_last_residuals(model):
  """Builds jitted (params, inputs) -> [I, M, D] float32, what the last level quantizes of all."""
  return _make_of_quantized(model, lambda _, quantized: quantized.residuals[:, :, -1])


def _make_of_quantized(model, of_chunk: Callable):
  """Builds jitted (params, inputs) -> what of_chunk(variables, Quantized) has a row an item of."""
  chunks = _chunks(model.num_items)

  @jax.jit
  def of_catalogue(params, inputs):
    variables = {"params": params}

    def quantize(items):
      latents = model.apply(variables, items, *rows(inputs, items), method="encode")
      return of_chunk(variables, model.apply(variables, latents, method="tokenize"))

    found = jax.lax.map(quantize, chunks)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[: model.num_items], found)

  return of_catalogue


def make_reconstruction_error(model, reconstruct: Callable, partition):
  """Builds jitted (params, inputs) -> [] float32, the error with which all items are reconstructed.

  It is losses.reconstruction_loss() of each modality, summed over them.

  Args:
    reconstruct: (params, q [P, M, D], Latents) -> modality -> [P, F] float32.
  """
  items = _chunks(model.num_items)

  @functools.partial(jax.jit, out_shardings=partition.replicated)
  def reconstruction_error(params, inputs):
    variables = {"params": params}

    def of_chunk(items):
      features, present = rows(inputs, items)
      latents = model.apply(variables, items, features, present, method="encode")
      q = model.apply(variables, latents, method="tokenize").latent
      weights = (items >= 0).astype(jnp.float32)
      counts, errors = {}, {}
      for name, x_hat in reconstruct(params, q, latents).items():
        counts[name] = jnp.sum(weights * present[name])
        errors[name] = losses.reconstruction_loss(features[name], x_hat, present[name], weights)
      return counts, errors

    counts, errors = jax.lax.map(of_chunk, items)
    means = jax.tree.map(losses.weighted_mean, errors, counts)
    return sum(means.values())

  return reconstruction_error


def _chunks(num_items: int) -> jax.Array:
  """All items, [chunks, ENCODE_SIZE] int32, -1 behind the last."""
  num_chunks = -(-num_items // ENCODE_SIZE)
  items = jnp.arange(num_chunks * ENCODE_SIZE, dtype=jnp.int32)
  return jnp.where(items < num_items, items, -1).reshape(num_chunks, ENCODE_SIZE)


def save(
  workdir: pathlib.Path,
  dataset: Dataset,
  model,
  params,
  *,
  codes: np.ndarray,
  vectors: np.ndarray,
  scalings: dict[str, scaling.Scaling],
) -> None:
  """Writes what the generator reads, and what gives new items their IDs.

  Args:
    codes: [I, L, M] int32; vectors: [I, M * D] float32, of make_encode_catalogue().
    scalings: of scaling.standardise(), of the model's modalities.
  """
  scaling.save(workdir, scalings)
  semantic_ids.save(
    workdir,
    semantic_ids.SemanticIds(
      codes=codes,
      vectors=vectors,
      item_ids=dataset.item_ids,
      titles=dataset.titles,
      popularity=train_counts(dataset),
      signals=np.array(model.signals),
      codebooks=np.asarray(params["quantizer"]["codebooks"]),
    ),
  )

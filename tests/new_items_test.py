"""Semantic IDs of items that stage one was not trained with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bbqrec_jax import new_items
from bbqrec_jax.data import scaling
from bbqrec_jax.models import tokenizer
from tests.reference import tokenizer as reference

NUM_ITEMS, D, F = 9, 6, 5  # Fewer items than neighbours: all of them stand in for the missing id.


@pytest.mark.parametrize("normalizes", [True, False])
def test_the_id_latent_of_a_new_item_is_the_mean_of_its_neighbours(normalizes):
  model = tokenizer.Model(
    num_items=NUM_ITEMS, feature_dims=dict(text=F), latent_dim=D, num_levels=3, codebook_size=32,
    hidden_dims=(7,), init_scale=1.0, normalize_latents=normalizes,
    sequence_kwargs=dict(width=8, num_layers=1),
  )  # fmt: skip
  items = jnp.arange(NUM_ITEMS)
  features = dict(text=jax.random.normal(jax.random.key(0), (NUM_ITEMS, F)))
  present = dict(text=jnp.ones(NUM_ITEMS, bool))
  params = jax.jit(model.init)(jax.random.key(1), items, features, present)["params"]
  # Of different lengths and means, so that it matters in which order they are normalised.
  rows = len(params["id_embedding"])
  scale, shift = np.linspace(0.5, 3.0, rows)[:, None], np.linspace(-2.0, 3.0, rows)[:, None]
  table = np.asarray(params["id_embedding"]) * scale + shift
  params = params | dict(id_embedding=jnp.asarray(table, jnp.float32))

  latents = np.array([centered(row) if normalizes else row for row in table[:NUM_ITEMS]])
  mean = latents.mean(axis=0)
  expected, _, _ = reference.residual_quantize(
    centered(mean) if normalizes else mean, np.asarray(params["quantizer"]["codebooks"][0])
  )
  vectors = np.random.default_rng(0).normal(size=(NUM_ITEMS, 2 * D)).astype(np.float32)
  scalings = dict(text=scaling.Scaling(np.zeros(F, np.float32), np.ones(F, np.float32)))
  frozen = new_items.FrozenTokenizer(model, params, scalings, vectors)
  codes, _ = frozen.encode(1, dict(text=np.ones((1, F), np.float32)))
  np.testing.assert_array_equal(codes[0, :, 0], expected)


def centered(x):
  x = x - x.mean()
  return x / np.linalg.norm(x)

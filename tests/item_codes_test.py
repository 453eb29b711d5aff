"""What stages that give items semantic IDs share: which inputs count where."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bbqrec_jax import partition
from bbqrec_jax.models import quantizer, tokenizer
from bbqrec_jax.trainers import item_codes

SIGNALS = ("id", "text", "image")
P, L, N, D = 6, 2, 5, 3
MISSING = 99.0  # What residuals of missing inputs are here.


def step_outputs():
  """(Quantized, present, weights): row 0 lacks text, rows 1 and 2 an image, row 5 is padding."""
  rng = np.random.default_rng(0)
  present = dict(text=np.arange(P) != 0, image=~np.isin(np.arange(P), (1, 2)))
  residuals = rng.standard_normal((P, len(SIGNALS), L, D)).astype(np.float32)
  codes = rng.integers(1, N, (P, L, len(SIGNALS)), np.int32)
  for m, name in enumerate(SIGNALS[1:], start=1):
    residuals[~present[name], m] = MISSING
    codes[~present[name], :, m] = 0  # A code that nothing else uses.
  residuals[5] = MISSING
  weights = np.array([1, 1, 1, 1, 1, 0], np.float32)
  quantized = quantizer.Quantized(codes, None, residuals, None)
  return quantized, present, weights


@pytest.mark.parametrize("groups", [1, 3])
def test_codes_that_only_missing_inputs_use_are_idle_and_no_code_moves_onto_them(groups):
  quantized, present, weights = step_outputs()
  codebooks = jnp.zeros((groups, L, N, D))
  params = {"quantizer": {"codebooks": codebooks}}

  @jax.jit  # Sorts the names of `present`.
  def revive(outputs, patience):
    return item_codes.revive_codes(
      params, item_codes.no_idle(params), outputs, jax.random.key(0),
      signals=SIGNALS, patience=patience,
    )  # fmt: skip

  unmoved, idle = revive((quantized, present, weights), 2)
  np.testing.assert_array_equal(unmoved["quantizer"]["codebooks"], codebooks)
  expected = np.ones((groups, L, N), np.int32)
  for m, name in enumerate(SIGNALS):
    for row in range(P):
      if weights[row] and (name == "id" or present[name][row]):
        for level in range(L):
          expected[m if groups == 3 else 0, level, quantized.codes[row, level, m]] = 0
  np.testing.assert_array_equal(idle, expected)

  moved, idle = revive((quantized, present, weights), 1)
  moved = np.asarray(moved["quantizer"]["codebooks"])
  assert np.all(np.asarray(idle) == 0) and not np.any(moved == MISSING)
  assert np.all(np.any(moved != 0, axis=-1) == (expected == 1))


def test_the_error_is_that_of_all_items_whatever_they_are_cut_into(monkeypatch):
  num_items, dims = 11, dict(text=7, image=4)
  model = tokenizer.Model(
    num_items=num_items, feature_dims=dims, latent_dim=D, num_levels=L, codebook_size=N,
    hidden_dims=(5,), sequence_kwargs=dict(width=4, num_layers=1),
  )  # fmt: skip
  rng = np.random.default_rng(0)
  features = {m: rng.standard_normal((num_items, f)).astype(np.float32) for m, f in dims.items()}
  present = dict(text=np.arange(num_items) % 3 > 0, image=np.arange(num_items) < 2)
  params = item_codes.init_params(model, jax.random.key(0))
  apply = functools.partial(model.apply, {"params": params})
  out = apply(np.arange(num_items), features, present)
  expected = sum(
    np.mean(np.sum((features[m] - out.reconstructions[m]) ** 2, axis=1)[present[m]]) for m in dims
  )

  def reconstruct(params, q, latents):
    return model.apply({"params": params}, q, latents.specific, method="reconstruct")

  for size in (4, 1024):  # The last four hold no image, and three items.
    monkeypatch.setattr(item_codes, "ENCODE_SIZE", size)
    error = item_codes.make_reconstruction_error(model, reconstruct, partition.Partition())
    found = error(params, dict(features=features, present=present))
    np.testing.assert_allclose(found, expected, rtol=1e-5)

"""Similarity-enhanced attention against the equations as printed."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bbqrec_jax.models import attention
from tests.reference import attention as reference

B, H, L, T, D = 7, 2, 3, 5, 11


def _inputs(batch_size=B):
  keys = jax.random.split(jax.random.key(0), 4)
  scores = jax.random.normal(keys[0], (batch_size, H, L * T, L * T))
  mask = jax.random.bernoulli(keys[1], 0.7, (batch_size, 1, 1, L * T)).at[..., 0].set(True)
  values = jax.random.normal(keys[2], (batch_size, L * T, H, D))
  factors = jax.random.normal(keys[3], (batch_size, T, T, H, D))
  return jnp.where(mask, scores, -1e9), values, factors


class SimAttentionTest(chex.TestCase):
  @chex.variants(with_jit=True, without_jit=True)
  def test_factorised_form_is_the_naive_one(self):
    inputs = _inputs()
    out = self.variant(attention.sim_attention)(*inputs)
    chex.assert_trees_all_close(out, reference.sim_attention(*inputs), atol=1e-5)

  def test_gradients_are_those_of_the_naive_form(self):
    inputs = _inputs()
    cotangent = jax.random.normal(jax.random.key(1), inputs[1].shape)
    grads = jax.jit(lambda args: jax.vjp(attention.sim_attention, *args)[1](cotangent))(inputs)
    expected = jax.vjp(reference.sim_attention, *inputs)[1](cotangent)
    chex.assert_trees_all_close(grads, expected, atol=1e-4)

  def test_factors_of_one_give_plain_attention(self):
    scores, values, factors = _inputs()
    out = attention.sim_attention(scores, values, jnp.ones_like(factors))
    chex.assert_trees_all_close(out, reference.attention(scores, values), atol=1e-5)

  def test_slices_of_a_large_batch_change_nothing(self):
    inputs = _inputs(batch_size=66)  # Not a multiple of the slice size.
    out = attention.sim_attention(*inputs)
    chex.assert_trees_all_close(out, reference.sim_attention(*inputs), atol=1e-5)


def test_shapes_that_do_not_match_raise():
  scores, values, factors = _inputs()
  with pytest.raises(ValueError, match="do not match"):
    attention.sim_attention(scores, values[:, :-1], factors)


def test_buckets_are_those_of_the_equation_and_span_0_to_k():
  vectors = np.array([[[1.0, 0.0], [2.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [9.0, 9.0]]], np.float32)
  mask = np.array([[True, True, True, True, False]])
  buckets = attention.similarity_buckets(jnp.asarray(vectors), jnp.asarray(mask), 100)
  assert buckets[0, 0].tolist() == [
    100,
    100,
    0,
    50,
    50,
  ]  # Same, same, opposite, right angle, padding.
  random = np.random.default_rng(0).normal(size=(2, T, 7)).astype(np.float32)
  cosine = np.array(
    [[[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in row] for a in row] for row in random]
  )
  expected = np.round((cosine + 1) / 2 * 13)
  got = attention.similarity_buckets(jnp.asarray(random), jnp.ones((2, T), bool), 13)
  np.testing.assert_array_equal(got, expected)

"""SASRec as a sequence encoder: causality, padding, shapes."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bbqrec_jax.models import sasrec_encoder

B, T, E = 2, 5, 7


class EncoderTest(chex.TestCase):
  def setUp(self):
    super().setUp()
    self.v = jax.random.normal(jax.random.key(0), (B, T, E))
    self.items = jnp.array([[4, 2, 4, 9, 1], [3, 8, -1, -1, -1]])
    self.encoder = sasrec_encoder.Encoder(out_dim=E, max_history=T, width=6)
    self.variables = self.encoder.init(jax.random.key(1), self.v, self.items, True)
    self.apply = lambda v: self.encoder.apply(self.variables, v, self.items, True)

  def test_no_position_sees_a_later_one(self):
    # One random projection of each output is enough.
    direction = jax.random.normal(jax.random.key(2), (E,))
    jacobian = jax.jit(jax.jacobian(lambda v: self.apply(v) @ direction))(self.v)  # [B, T, B, T, E]
    reaches = np.any(np.asarray(jacobian) != 0, axis=-1)  # [B, T, B, T]
    expected = np.eye(B)[:, None, :, None] * np.tri(T)[None, :, None, :]
    np.testing.assert_array_equal(reaches, expected)

  @chex.variants(with_jit=True, without_jit=True)
  def test_padding_changes_no_item_and_stays_finite(self):
    out = self.variant(self.apply)(self.v)
    other = self.variant(self.apply)(self.v.at[1, 2:].set(0.0))
    chex.assert_trees_all_close((out[0], out[1, :2]), (other[0], other[1, :2]))
    chex.assert_tree_all_finite((out, other))

  def test_positions_matter_and_dropout_draws(self):
    same = self.apply(jnp.broadcast_to(self.v[:, :1], self.v.shape))
    assert jnp.max(jnp.abs(same[:, 0] - same[:, 1])) > 1e-4  # By position alone.
    draws = [
      self.encoder.apply(self.variables, self.v, self.items, False, rngs={"dropout": key})
      for key in jax.random.split(jax.random.key(3))
    ]
    assert jnp.any(draws[0] != draws[1])

  def test_a_history_longer_than_the_positions_raises(self):
    longer = jnp.concatenate([self.v, self.v], axis=1)
    items = jnp.concatenate([self.items, self.items], axis=1)
    with pytest.raises(ValueError, match="T <= 5"):
      self.encoder.apply(self.variables, longer, items, True)

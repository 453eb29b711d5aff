"""SR-GNN over all prefixes at once against one graph per prefix."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bbqrec_jax.models import srgnn_encoder
from tests.reference import tokenizer as reference

B, T, E, OUT, WIDTH = 3, 7, 5, 4, 6
# A loop, a repeated edge, a node with two neighbours; a short row; an empty one.
ITEMS = np.array([[8, 2, 8, 2, 5, 5, 2], [3, 9, 3, -1, -1, -1, -1], [-1] * T])


class EncoderTest(chex.TestCase):
  def setUp(self):
    super().setUp()
    table = jax.random.normal(jax.random.key(0), (11, E))
    self.v = jnp.where((ITEMS >= 0)[:, :, None], table[ITEMS], 0.0)
    self.items = jnp.asarray(ITEMS)
    self.encoder = srgnn_encoder.Encoder(out_dim=OUT, width=WIDTH)
    variables = self.encoder.init(jax.random.key(1), self.v, self.items, True)
    # Biases too must differ from zero.
    self.variables = jax.tree.map(
      lambda p: p + 0.3 * jnp.sin(jnp.arange(p.size)).reshape(p.shape), variables
    )

  def apply(self, v):
    return self.encoder.apply(self.variables, v, self.items, True)

  @chex.variants(with_jit=True, without_jit=True)
  def test_equals_a_graph_per_prefix(self):
    out = self.variant(self.apply)(self.v)
    chex.assert_tree_all_finite(out)
    for b, t in np.argwhere(ITEMS >= 0):
      vectors = np.asarray(self.v[b, : t + 1], np.float64)
      expected = reference.srgnn(self.variables["params"], vectors, ITEMS[b, : t + 1].tolist())
      np.testing.assert_allclose(out[b, t], expected, atol=1e-5)

  def test_no_position_sees_a_later_one(self):
    direction = jax.random.normal(jax.random.key(2), (OUT,))
    jacobian = jax.jit(jax.jacobian(lambda v: self.apply(v) @ direction))(self.v)  # [B, T, B, T, E]
    reaches = np.any(np.asarray(jacobian) != 0, axis=-1)
    first = ITEMS[0][:, None] == ITEMS[0][None, :]
    # A node's vector is read where the item first stands.
    expected = np.tri(T) * (np.arange(T) == first.argmax(1))[None, :]
    np.testing.assert_array_equal(reaches[0, :, 0], expected)
    assert not reaches[0, :, 1:].any() and not reaches[1:, :, 0].any()

  def test_only_which_items_are_equal_matters(self):
    renamed = jnp.where(self.items >= 0, 100 - self.items, -1)
    out = self.encoder.apply(self.variables, self.v, renamed, True)
    chex.assert_trees_all_equal(out, self.apply(self.v))

  def test_wrong_shapes_raise(self):
    with pytest.raises(ValueError, match="must agree"):
      self.encoder.apply(self.variables, self.v[:, 1:], self.items, True)


def test_adjacency_rows_are_shares():
  node_at = srgnn_encoder.first_occurrence(jnp.asarray(ITEMS))
  outgoing, incoming = srgnn_encoder.prefix_adjacency(node_at)
  # The first row's edges: 8>2 2>8 8>2 2>5 5>5 5>2; 2 is slot 1, and leaves to 8 and to 5.
  np.testing.assert_allclose(outgoing[0, -1, 1], [0.5, 0, 0, 0, 0.5, 0, 0])
  np.testing.assert_allclose(incoming[0, -1, 1], [2 / 3, 0, 0, 0, 1 / 3, 0, 0])
  np.testing.assert_allclose(outgoing[0, 0], np.zeros((T, T)))  # One item, no edge.

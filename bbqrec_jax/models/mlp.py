"""The multilayer perceptron that encoders, decoders and q_theta are made of."""

from collections.abc import Sequence

import flax.linen as nn
import jax


class MLP(nn.Module):
  """Hidden layers with ReLU, then a linear layer of out_dim units."""

  hidden_dims: Sequence[int]
  out_dim: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [..., F] to [..., out_dim], float32."""
    for width in self.hidden_dims:
      x = nn.relu(nn.Dense(width)(x))
    return nn.Dense(self.out_dim)(x)

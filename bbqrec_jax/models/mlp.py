"""The multilayer perceptron that encoders, decoders and q_theta are made of."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class MLP(nn.Module):
  """Hidden layers with ReLU, then a linear layer of out_dim units."""

  hidden_dims: Sequence[int]
  out_dim: int
  dtype: str = "float32"  # Of products; parameters and the result are float32.

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [..., F] to [..., out_dim], float32."""
    for width in self.hidden_dims:
      x = nn.relu(nn.Dense(width, dtype=self.dtype)(x))
    return nn.Dense(self.out_dim, dtype=self.dtype)(x).astype(jnp.float32)


def shift(params: Mapping[str, Any], offset: jax.Array) -> dict[str, Any]:
  """An MLP's parameters with which its outputs are larger by offset, [out_dim] float32."""
  last = f"Dense_{len(params) - 1}"
  return {**params, last: {**params[last], "bias": params[last]["bias"] + offset}}

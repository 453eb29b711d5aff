"""Blocks of the encoder-decoder: relative position bias, attention, feed-forward, dropout."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

MASKED = -1e9  # Added to masked scores: finite, so that a fully masked row stays free of NaN.


class Dropout(nn.Module):
  """Dropout whose mask is hashed from the key and each element's place.

  A generator of random bits costs more than the products around it on a CPU; the hash is a dozen
  integer operations, which XLA fuses into whatever reads the mask. It gives the same mask on every
  kind of device, and any part of a sharded mask alone.
  """

  rate: float

  @nn.compact
  def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
    if deterministic or not self.rate:
      return x
    words = jax.random.bits(self.make_rng("dropout"), (2,), jnp.uint32)
    dropped = hashed_bits(words, x.shape) < np.uint32(self.rate * 2**32)
    return jnp.where(dropped, 0.0, x / (1.0 - self.rate))


def hashed_bits(words: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Bits that look random: two rounds of an integer hash of each element's index.

  The hash is lowbias32 of Wellons 2018 (https://nullprogram.com/blog/2018/07/31/).

  Args:
    words: [2] uint32, random: one is mixed in before each round.
    shape: of at most 2**32 elements.

  Returns:
    uint32 array of that shape.
  """
  index, stride = jnp.zeros(shape, jnp.uint32), 1
  for axis in reversed(range(len(shape))):
    index += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * np.uint32(stride)
    stride *= shape[axis]
  return _lowbias32(_lowbias32(index ^ words[0]) ^ words[1])


def _lowbias32(x: jax.Array) -> jax.Array:
  x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
  x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
  return x ^ (x >> 16)


def relative_buckets(
  relative: np.ndarray, num_buckets: int, max_distance: int, bidirectional: bool
) -> np.ndarray:
  """T5's buckets of relative positions: exact when near, logarithmic when far.

  Raffel et al. 2020 (arXiv:1910.10683), section 2.1, in the form of the released code.

  Args:
    relative: int array of key position - query position.

  Returns:
    int32 array of the same shape, in [0, num_buckets).
  """
  offset = np.zeros_like(relative)
  if bidirectional:
    num_buckets //= 2
    offset = (relative > 0) * num_buckets
    distance = np.abs(relative)
  else:
    distance = np.maximum(-relative, 0)
  exact = num_buckets // 2
  # 1 at max_distance. Divided first: the other order rounds bucket 14 of distance 64 down to 13.
  share = np.log(np.maximum(distance, 1) / exact) / math.log(max_distance / exact)
  far = exact + (share * (num_buckets - exact)).astype(np.int32)
  bucket = np.where(distance < exact, distance, np.minimum(far, num_buckets - 1))
  return (offset + bucket).astype(np.int32)


class RelativePositionBias(nn.Module):
  """A learned scalar per head and bucket of relative position, added to attention scores."""

  num_heads: int
  bidirectional: bool
  num_buckets: int = 32
  max_distance: int = 128

  @nn.compact
  def __call__(self, query_positions: np.ndarray, key_positions: np.ndarray) -> jax.Array:
    """Positions are static: [Q] and [K] ints. Returns [H, Q, K] float32."""
    table = self.param(
      "table", nn.initializers.normal(stddev=0.02), (self.num_buckets, self.num_heads)
    )
    relative = key_positions[None, :] - query_positions[:, None]
    buckets = relative_buckets(relative, self.num_buckets, self.max_distance, self.bidirectional)
    return jnp.einsum("qkh->hqk", table[buckets])


class Attention(nn.Module):
  """Multi-head projections and the softmax mix; callers own masks, biases and caches."""

  num_heads: int
  head_dim: int
  model_dim: int

  def setup(self):
    heads = (self.num_heads, self.head_dim)
    self.query_proj = nn.DenseGeneral(heads, use_bias=False, name="query")
    self.key_proj = nn.DenseGeneral(heads, use_bias=False, name="key")
    self.value_proj = nn.DenseGeneral(heads, use_bias=False, name="value")
    self.out_proj = nn.DenseGeneral(self.model_dim, axis=(-2, -1), use_bias=False, name="out")

  def query(self, x: jax.Array) -> jax.Array:
    """[..., d] -> [..., H, D], scaled by 1 / sqrt(D)."""
    return self.query_proj(x) / math.sqrt(self.head_dim)

  def key_value(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """[..., d] -> two of [..., H, D]."""
    return self.key_proj(x), self.value_proj(x)

  def out(self, x: jax.Array) -> jax.Array:
    """[..., H, D] -> [..., d]."""
    return self.out_proj(x)


def scores(query: jax.Array, key: jax.Array) -> jax.Array:
  """[..., Q, H, D], [..., K, H, D] -> [..., H, Q, K]."""
  return jnp.einsum("...qhd,...khd->...hqk", query, key)


def mix(scores: jax.Array, value: jax.Array) -> jax.Array:
  """Softmax over keys, then the weighted sum: [..., H, Q, K], [..., K, H, D] -> [..., Q, H, D]."""
  return jnp.einsum("...hqk,...khd->...qhd", jax.nn.softmax(scores, axis=-1), value)


class FeedForward(nn.Module):
  """Two layers with a ReLU between them, as T5's."""

  hidden_dim: int
  dropout_rate: float

  @nn.compact
  def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
    hidden = nn.relu(nn.Dense(self.hidden_dim, use_bias=False, name="in")(x))
    hidden = Dropout(self.dropout_rate)(hidden, deterministic)
    return nn.Dense(x.shape[-1], use_bias=False, name="out")(hidden)

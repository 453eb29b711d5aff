"""Blocks of the encoder-decoder: relative position bias, attention, feed-forward, dropout."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

# Parameters with a row for every item have this multiple of rows, so that as many devices can share
# them: the same shape whatever their number, for a checkpoint fits all.
TABLE_MULTIPLE = 128
MASKED = -1e9  # Added to masked scores: finite, so that a fully masked row stays free of NaN.


def table_rows(num_items: int) -> int:
  """Rows of a parameter that has one for every item."""
  return -(-num_items // TABLE_MULTIPLE) * TABLE_MULTIPLE


class Dropout(nn.Module):
  """Dropout whose mask is hashed from the key and each element's place.

  A generator of random bits costs more than the products around it on a CPU; the hash is a dozen
  integer operations, which XLA fuses into whatever reads the mask. From the same two words, which
  are the generator's, it makes the same mask on every kind of device, and any part of it alone.
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
  return hashed_words(hashed_words(index ^ words[0]) ^ words[1])


def hashed_words(x: jax.Array) -> jax.Array:
  """lowbias32 of each element of x, uint32."""
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


def dot(x: jax.Array, kernel: jax.Array, dimension_numbers, precision=None, **_) -> jax.Array:
  """jax.lax.dot_general of the last axes of x and the first of a kernel, for flax's Dense layers.

  Its gradient for the kernel is asked for in the order in which the narrower operand is the one
  that has to be transposed: on a CPU, XLA transposes the first operand, and works out again what it
  was made of, element by element, while it does. Other devices do not mind.
  """
  (contracted, _), batch = dimension_numbers
  num_axes = len(contracted)
  if batch != ((), ()) or tuple(contracted) != tuple(range(x.ndim - num_axes, x.ndim)):
    raise ValueError(f"Only products over the last axes are meant, got {dimension_numbers}.")
  size = math.prod(kernel.shape[:num_axes])
  lead, out = x.shape[: x.ndim - num_axes], kernel.shape[num_axes:]
  y = _matmul(x.reshape(-1, size), kernel.reshape(size, -1), precision)
  return y.reshape(*lead, *out)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _matmul(x, kernel, precision):
  return jnp.matmul(x, kernel, precision=precision)


def _matmul_forward(x, kernel, precision):
  return _matmul(x, kernel, precision), (x, kernel)


def _matmul_backward(precision, residuals, grad):
  x, kernel = residuals
  over_rows = functools.partial(
    jax.lax.dot_general, dimension_numbers=(((0,), (0,)), ((), ())), precision=precision
  )
  narrow_first = x.shape[1] <= grad.shape[1]
  grad_kernel = over_rows(x, grad) if narrow_first else over_rows(grad, x).T
  return jnp.matmul(grad, kernel.T, precision=precision), grad_kernel


_matmul.defvjp(_matmul_forward, _matmul_backward)


class Attention(nn.Module):
  """The projections of multi-head attention; callers own masks, biases and caches."""

  num_heads: int
  head_dim: int
  model_dim: int
  dtype: str = "float32"  # Of products; parameters are float32.

  def setup(self):
    shape = (self.num_heads, self.head_dim)
    kwargs = dict(use_bias=False, dtype=self.dtype, dot_general=dot)
    self.qkv_proj = nn.DenseGeneral((3, *shape), name="qkv", **kwargs)
    self.query_proj = nn.DenseGeneral(shape, name="query", **kwargs)
    self.out_proj = nn.DenseGeneral(self.model_dim, axis=(-2, -1), name="out", **kwargs)

  def qkv(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries (divided by sqrt(D)), keys and values of self-attention: [..., d] -> [..., H, D].

    One product: three small ones take longer on any device.
    """
    query, key, value = jnp.unstack(self.qkv_proj(x), axis=-3)
    return query / math.sqrt(self.head_dim), key, value

  def query(self, x: jax.Array) -> jax.Array:
    """Queries alone, of attention to something whose keys and values are projected elsewhere."""
    return self.query_proj(x) / math.sqrt(self.head_dim)

  def out(self, x: jax.Array) -> jax.Array:
    """[..., H, D] -> [..., d]."""
    return self.out_proj(x)


def scores(query: jax.Array, key: jax.Array) -> jax.Array:
  """[..., Q, H, D], [..., K, H, D] -> [..., H, Q, K] float32."""
  return jnp.einsum("...qhd,...khd->...hqk", query, key, preferred_element_type=jnp.float32)


def mix(scores: jax.Array, value: jax.Array) -> jax.Array:
  """Softmax over keys, then the weighted sum: [..., H, Q, K], [..., K, H, D] -> [..., Q, H, D]."""
  alpha = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
  return jnp.einsum("...hqk,...khd->...qhd", alpha, value)


class FeedForward(nn.Module):
  """Two layers with a ReLU between them, as T5's."""

  hidden_dim: int
  dropout_rate: float
  dtype: str = "float32"  # Of products; parameters are float32.

  @nn.compact
  def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
    dense = functools.partial(nn.Dense, use_bias=False, dtype=self.dtype, dot_general=dot)
    hidden = nn.relu(dense(self.hidden_dim, name="in")(x))
    hidden = Dropout(self.dropout_rate)(hidden, deterministic)
    return dense(x.shape[-1], name="out")(hidden)

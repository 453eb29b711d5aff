"""Similarity-enhanced attention (BBQRec section 4.2), in its item-factorised form.

The similarity of two tokens is that of the items they belong to, so it is constant over each
L x L block of tokens, and the sum over an item's L tokens can be taken before the product with
the similarity embedding. Tokens are ordered (level, item): token s = l * T + t is level l of item
t, which keeps the items of one level contiguous.
"""

import functools

import jax
import jax.numpy as jnp

# Histories of a batch that one pass of the unrolled loops handles. XLA on CPU keeps the loops
# vectorised only while their temporaries stay in cache; a larger batch goes slice by slice.
_SLICE_SIZE = 32


def similarity_buckets(vectors: jax.Array, mask: jax.Array, num_buckets: int) -> jax.Array:
  """Cosine similarity of every pair of items of a history, in buckets: BBQRec Eqs. (14)-(15).

  The paper's ||q_j|| in Eq. (14) is read as ||v_j||.

  Args:
    vectors: [B, T, E] float32, the frozen stage-one vectors v.
    mask: [B, T] bool, True for an item, False for padding.
    num_buckets: K.

  Returns:
    [B, T, T] int32 in [0, K]: K + 1 values. Pairs with padding get the bucket of cosine 0.
  """
  norm = jnp.linalg.norm(vectors, axis=-1, keepdims=True)
  unit = jnp.where(mask[:, :, None], vectors / jnp.maximum(norm, 1e-12), 0.0)
  cosine = jnp.einsum("bie,bje->bij", unit, unit, precision="highest")
  return jnp.round((jnp.clip(cosine, -1.0, 1.0) + 1.0) / 2.0 * num_buckets).astype(jnp.int32)


def sim_attention(scores: jax.Array, values: jax.Array, factors: jax.Array) -> jax.Array:
  """Attention whose every value is multiplied by the similarity embedding: BBQRec Eqs. (16)-(17).

  out_i = sum_j factors_ij * (softmax(scores)_ij values_j), the product with `factors` elementwise
  over the value dimensions. Factors of one give plain attention.

  Args:
    scores: [B, H, S, S] float32, scaled dot products, masked and biased, before the softmax.
    values: [B, S, H, D] float32.
    factors: [B, T, T, H, D] float32, the similarity embedding of each pair (query item, key
      item). S = L * T with tokens ordered (level, item).

  Returns:
    [B, S, H, D] float32.
  """
  batch_size, num_heads, num_tokens, _ = scores.shape
  num_items = factors.shape[1]
  if num_tokens % num_items or values.shape[:3] != (batch_size, num_tokens, num_heads):
    raise ValueError(
      f"scores {scores.shape}, values {values.shape} and factors {factors.shape} do not match."
    )
  return _sim_attention(scores, values, factors)


@jax.custom_vjp
def _sim_attention(scores, values, factors):
  return _sim_attention_fwd(scores, values, factors)[0]


def _sim_attention_fwd(scores, values, factors):
  def forward(args):
    scores, values, factors = args
    alpha = jax.nn.softmax(scores, axis=-1)
    return _weighted_sum(alpha, values, factors), alpha

  out, alpha = _map_slices(forward, (scores, values, factors))
  return out, (alpha, values, factors)


def _sim_attention_bwd(residuals, cotangent):
  def backward(args):
    alpha, values, factors, grad = args
    grad_alpha = _grad_alpha(grad, values, factors)
    inner = jnp.sum(alpha * grad_alpha, axis=-1, keepdims=True)
    grad_scores = alpha * (grad_alpha - inner)  # Through the softmax.
    grad_values = _grad_values(alpha, grad, factors)
    grad_factors = _grad_factors(alpha, grad, values, factors.shape[1])
    return grad_scores, grad_values, grad_factors

  return _map_slices(backward, (*residuals, cotangent))


_sim_attention.defvjp(_sim_attention_fwd, _sim_attention_bwd)


def _map_slices(fn, args):
  """fn over slices of the batch axis, one after the other."""
  batch_size = args[0].shape[0]
  slice_size = next(n for n in range(min(_SLICE_SIZE, batch_size), 0, -1) if batch_size % n == 0)
  if slice_size == batch_size:
    return fn(args)
  split = jax.tree.map(lambda x: x.reshape((-1, slice_size, *x.shape[1:])), args)
  merged = jax.lax.map(fn, split)
  return jax.tree.map(lambda x: x.reshape((batch_size, *x.shape[2:])), merged)


# The four sums below are unrolled over T, L or D: XLA fuses each into one vectorised loop with
# H * D (or the key items) innermost, where small batched matrix products would run far below the
# machine's rate. Letters: k, l levels of query and key; i, j items of query and key.


def _by_level_and_item(alpha, num_items):  # [B, H, S, S] -> [B, k, i, l, j, H]
  batch_size, num_heads, num_tokens, _ = alpha.shape
  num_levels = num_tokens // num_items
  alpha = alpha.reshape(batch_size, num_heads, num_levels, num_items, num_levels, num_items)
  return jnp.einsum("bhkilj->bkiljh", alpha)


def _split_levels(x, num_items):  # [B, S, H, D] -> [B, L, T, H, D]
  return x.reshape(x.shape[0], -1, num_items, *x.shape[2:])


def _unrolled_sum(terms):
  return functools.reduce(jnp.add, terms)


def _weighted_sum(alpha, values, factors):
  num_items = factors.shape[1]
  alpha, by_level = _by_level_and_item(alpha, num_items), _split_levels(values, num_items)
  num_levels = by_level.shape[1]

  def key_item(j):  # The sum over the item's L tokens comes before the product.
    mixed = _unrolled_sum(
      alpha[:, :, :, l, j, :, None] * by_level[:, l, j][:, None, None] for l in range(num_levels)
    )  # [B, k, i, H, D]
    return mixed * factors[:, :, j][:, None]

  return _unrolled_sum(map(key_item, range(num_items))).reshape(values.shape)


def _grad_values(alpha, grad, factors):
  num_items = factors.shape[1]
  alpha, by_level = _by_level_and_item(alpha, num_items), _split_levels(grad, num_items)
  num_levels = by_level.shape[1]

  def query_item(i):
    mixed = _unrolled_sum(
      alpha[:, k, i, :, :, :, None] * by_level[:, k, i][:, None, None] for k in range(num_levels)
    )  # [B, l, j, H, D]
    return mixed * factors[:, i][:, None]

  return _unrolled_sum(map(query_item, range(num_items))).reshape(grad.shape)


def _grad_factors(alpha, grad, values, num_items):
  alpha = _by_level_and_item(alpha, num_items)
  grad, values = _split_levels(grad, num_items), _split_levels(values, num_items)
  levels = range(values.shape[1])

  def query_level(k):
    mixed = _unrolled_sum(
      alpha[:, k, :, l, :, :, None] * values[:, l][:, None] for l in levels
    )  # [B, i, j, H, D]
    return mixed * grad[:, k][:, :, None]

  return _unrolled_sum(map(query_level, levels))


def _grad_alpha(grad, values, factors):
  num_items = factors.shape[1]
  # The key item goes innermost: a float sum over the innermost axis would not be vectorised.
  grad = jnp.einsum("bkihd->dbhki", _split_levels(grad, num_items))
  values = jnp.einsum("bljhd->dbhlj", _split_levels(values, num_items))
  factors = jnp.einsum("bijhd->dbhij", factors)

  def value_dim(d):  # [B, H, k, i, l, j]
    pair = factors[d][:, :, :, None, :] * values[d][:, :, None]  # [B, H, i, l, j]
    return grad[d][..., None, None] * pair[:, :, None]

  total = _unrolled_sum(map(value_dim, range(grad.shape[0])))
  batch_size, num_heads, num_levels = total.shape[:3]
  return total.reshape(batch_size, num_heads, num_levels * num_items, -1)

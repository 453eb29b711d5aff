"""Similarity-enhanced attention in XLA, in its item-factorised form, with its own gradient.

The similarity of two tokens is that of the items they belong to, so it is constant over each
L x L block of tokens, and the sum over an item's L tokens can be taken before the product with
the similarity embedding. Letters: k, l levels of query and key; i, j items of query and key.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

# On a CPU, the products of factors and values that one slice of the batch makes should fit into a
# core's cache. Slices of a single history take another, slower path through XLA.
_SLICE_BYTES = 4 * 2**20
_MIN_SLICE = 2


def sim_attention(
  scores: jax.Array, values: jax.Array, factors: jax.Array, witness: jax.Array
) -> jax.Array:
  """Attention whose every value is multiplied by the similarity embedding: BBQRec Eqs. (16)-(17).

  out_i = sum_j factors_ij * (softmax(scores)_ij values_j), the product with `factors` elementwise
  over the value dimensions. Factors of one give plain attention.

  Args:
    scores: [B, H, S, S] float32, scaled dot products, masked and biased, before the softmax.
    values: [B, S, H, D] float32.
    factors: [B, T, T, H, D] float32, the similarity embedding of each pair (query item, key
      item). S = L * T with tokens ordered (level, item).
    witness: [] float32, any number that is known at run time only. Where it is NaN, so is the
      result; otherwise its value does not matter. See _apart().

  Returns:
    [B, S, H, D] float32.
  """
  return _sim_attention(scores, values, factors, witness)


@jax.custom_vjp
def _sim_attention(scores, values, factors, witness):
  return _forward(scores, values, factors, witness)[0]


def _forward(scores, values, factors, witness):
  alpha = jax.nn.softmax(scores, axis=-1)
  out = _apart(_weighted_sum, witness, alpha, values, factors)
  return out, (alpha, values, factors, witness)


def _backward(residuals, grad):
  alpha, values, factors, witness = residuals
  grad_alpha = _in_slices(_grad_alpha, grad, values, factors)
  inner = jnp.sum(alpha * grad_alpha, axis=-1, keepdims=True)
  grad_scores = alpha * (grad_alpha - inner)  # Through the softmax.
  grad_values, grad_factors = _apart(
    _grad_values_and_factors, witness, alpha, values, factors, grad
  )
  return grad_scores, grad_values, grad_factors, jnp.zeros_like(witness)


_sim_attention.defvjp(_forward, _backward)


# The sums over items are unrolled: XLA fuses each into one vectorised loop with H * D innermost.
# Small batched matrix products would be slower, except where D itself is summed over.


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


def _grad_values_and_factors(alpha, values, factors, grad):
  return _grad_values(alpha, factors, grad), _grad_factors(alpha, values, factors, grad)


def _grad_values(alpha, factors, grad):
  num_items = factors.shape[1]
  alpha, by_level = _by_level_and_item(alpha, num_items), _split_levels(grad, num_items)
  num_levels = by_level.shape[1]

  def query_item(i):
    mixed = _unrolled_sum(
      alpha[:, k, i, :, :, :, None] * by_level[:, k, i][:, None, None] for k in range(num_levels)
    )  # [B, l, j, H, D]
    return mixed * factors[:, i][:, None]

  return _unrolled_sum(map(query_item, range(num_items))).reshape(grad.shape)


def _grad_factors(alpha, values, factors, grad):
  num_items = factors.shape[1]
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
  pairs = _split_levels(values, num_items)[:, None] * factors[:, :, None]  # [B, i, l, j, H, D]
  total = jnp.einsum("bkihd,biljhd->bhkilj", _split_levels(grad, num_items), pairs)
  batch_size, num_tokens, num_heads, _ = grad.shape
  return total.reshape(batch_size, num_heads, num_tokens, num_tokens)


def _by_level_and_item(alpha, num_items):  # [B, H, S, S] -> [B, k, i, l, j, H]
  batch_size, num_heads, num_tokens, _ = alpha.shape
  num_levels = num_tokens // num_items
  alpha = alpha.reshape(batch_size, num_heads, num_levels, num_items, num_levels, num_items)
  return jnp.einsum("bhkilj->bkiljh", alpha)


def _split_levels(x, num_items):  # [B, S, H, D] -> [B, L, T, H, D]
  return x.reshape(x.shape[0], -1, num_items, *x.shape[2:])


def _unrolled_sum(terms):
  return functools.reduce(jnp.add, terms)


def _apart(fn: Callable, witness: jax.Array, *args: jax.Array):
  """fn(*args); on a CPU, fn is kept apart from the operations around it.

  XLA on CPU would fuse its neighbours into the unrolled sums, which then compute them again in
  every term and are no longer vectorised; optimization_barrier is gone before it fuses. It does
  not fuse into a branch of a conditional, so fn becomes one: the branch taken unless the witness
  is NaN.
  """

  def as_branch(*args):
    nan = lambda x: jnp.full(x.shape, jnp.nan, x.dtype)
    poisoned = lambda *args: jax.tree.map(nan, jax.eval_shape(fn, *args))
    return jax.lax.cond(jnp.isnan(witness), poisoned, fn, *args)

  return jax.lax.platform_dependent(*args, cpu=as_branch, default=fn)


def _in_slices(fn: Callable, *args: jax.Array) -> jax.Array:
  """fn(*args) of arrays [B, ...]; on a CPU, over slices of the batch, one after the other."""
  grad, _, factors = args
  batch_size, num_items = factors.shape[:2]
  history_bytes = num_items * grad[0].size * grad.dtype.itemsize
  slice_size = min(max(_SLICE_BYTES // history_bytes, _MIN_SLICE), batch_size)
  if slice_size == batch_size:
    return fn(*args)

  def sliced(*args):
    result = jax.eval_shape(fn, *args)

    def one_slice(n, out):
      start = jnp.minimum(n * slice_size, batch_size - slice_size)  # The last may overlap.
      take = lambda x: jax.lax.dynamic_slice_in_dim(x, start, slice_size)
      return jax.lax.dynamic_update_slice_in_dim(out, fn(*map(take, args)), start, 0)

    num_slices = -(-batch_size // slice_size)
    return jax.lax.fori_loop(0, num_slices, one_slice, jnp.zeros(result.shape, result.dtype))

  return jax.lax.platform_dependent(*args, cpu=sliced, default=fn)

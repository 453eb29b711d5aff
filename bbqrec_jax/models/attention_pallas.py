"""Similarity-enhanced attention as a Pallas kernel for GPUs, forward and backward.

A program takes one head of one history and walks over its key items. The similarity embeddings of
an item's pairs are looked up in the head's table inside, so that no [B, T, T, H, D] array exists.
Letters: k, l levels of query and key; i, j items of query and key. A block is a level's items and
a head's dimensions, both padded: Triton's arrays have sizes that are powers of two.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

_MIN_SIZE = 16  # The smallest side of a Triton matrix product.
_PADDING_SCORE = -1e30  # Below every masked score, and finite.


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def sim_attention(
  scores: jax.Array,
  values: jax.Array,
  table: jax.Array,
  buckets: jax.Array,
  interpret: bool = False,
) -> jax.Array:
  """Attention whose every value is multiplied by the similarity embedding: BBQRec Eqs. (16)-(17).

  Sums are taken in float32 whatever the inputs' type. The table's gradient passes one matrix
  product at the GPU's default precision (TF32), as the matrix products around this kernel do.

  Args:
    scores: [B, H, S, S] float, scaled dot products, masked and biased, before the softmax.
      S = L * T with tokens ordered (level, item).
    values: [B, S, H, D] float.
    table: [K + 1, H, D] float, the similarity embedding of each bucket.
    buckets: [B, T, T] int32 in [0, K] of each pair (query item, key item).
    interpret: runs without a GPU, slowly, to test.

  Returns:
    [B, S, H, D], of the values' type.
  """
  call = _make_call(scores, values, table, buckets, interpret)
  inputs = ("scores", "values", "table", "buckets")
  (out,) = call(_forward_kernel, inputs, dict(values=values.dtype), scores, values, table, buckets)
  return out


def _forward(scores, values, table, buckets, interpret):
  out = sim_attention(scores, values, table, buckets, interpret)
  return out, (scores, values, table, buckets, out)


def _backward(interpret, residuals, grad):
  scores, values, table, buckets, _ = residuals
  call = _make_call(scores, values, table, buckets, interpret)
  inputs = ("scores", "values", "table", "buckets", "values", "values")
  outputs = dict(scores=scores.dtype, values=values.dtype, table_per_history=jnp.float32)
  grad_scores, grad_values, grad_tables = call(_backward_kernel, inputs, outputs, *residuals, grad)
  grad_table = jnp.einsum("bhkd->khd", grad_tables).astype(table.dtype)
  return grad_scores, grad_values, grad_table, None


sim_attention.defvjp(_forward, _backward)


def _make_call(scores, values, table, buckets, interpret):
  """Builds (kernel, names of inputs, outputs: name -> dtype, *arrays) -> list of results."""
  batch_size, num_heads, num_tokens, _ = scores.shape
  num_buckets, _, head_dim = table.shape
  num_items = buckets.shape[1]
  shapes = dict(
    scores=scores.shape,
    values=values.shape,
    table=table.shape,
    buckets=buckets.shape,
    table_per_history=(batch_size, num_heads, num_buckets, head_dim),
  )
  # What the program of history b and head h sees of an array; None drops the axis.
  specs = dict(
    scores=pl.BlockSpec((None, None, num_tokens, num_tokens), lambda b, h: (b, h, 0, 0)),
    values=pl.BlockSpec((None, num_tokens, None, head_dim), lambda b, h: (b, 0, h, 0)),
    table=pl.BlockSpec((num_buckets, None, head_dim), lambda b, h: (0, h, 0)),
    buckets=pl.BlockSpec((None, num_items, num_items), lambda b, h: (b, 0, 0)),
    table_per_history=pl.BlockSpec((None, None, num_buckets, head_dim), lambda b, h: (b, h, 0, 0)),
  )

  def call(kernel, inputs, outputs, *arrays):
    return pl.pallas_call(
      kernel,
      grid=(batch_size, num_heads),
      in_specs=[specs[name] for name in inputs],
      out_specs=[specs[name] for name in outputs],
      out_shape=[jax.ShapeDtypeStruct(shapes[name], dtype) for name, dtype in outputs.items()],
      compiler_params=plgpu.CompilerParams(num_warps=4 if head_dim <= 32 else 8),
      interpret=interpret,
      name=kernel.__name__.strip("_"),
    )(*arrays)

  return call


def _forward_kernel(scores_ref, values_ref, table_ref, buckets_ref, out_ref):
  num_items, head_dim = len(buckets_ref), values_ref.shape[1]
  levels = range(len(scores_ref) // num_items)
  items, dims = _padded_range(num_items), _padded_range(head_dim)
  stats = [_softmax_stats(scores_ref, k, items, num_items) for k in levels]

  def key_item(j, sums):
    embeds, _ = _embeddings(table_ref, buckets_ref, j, items, dims)
    values = [_load_row(values_ref, l * num_items + j, dims) for l in levels]
    new_sums = []
    for k in levels:
      mixed = jnp.zeros_like(embeds)  # The sum over the item's L tokens precedes the product.
      for l in levels:
        alpha = _alpha(scores_ref, k, l, j, items, num_items, stats[k])
        mixed += alpha[:, None] * values[l][None, :]
      new_sums.append(sums[k] + embeds * mixed)
    return new_sums

  zeros = [jnp.zeros((len(items), len(dims)), jnp.float32) for _ in levels]
  sums = jax.lax.fori_loop(0, num_items, key_item, zeros)
  for k in levels:
    _store_block(out_ref, k * num_items, num_items, items, dims, sums[k])


def _backward_kernel(
  scores_ref, values_ref, table_ref, buckets_ref, out_ref, grad_ref,
  grad_scores_ref, grad_values_ref, grad_table_ref,
):  # fmt: skip
  num_items = len(buckets_ref)
  num_buckets, head_dim = table_ref.shape
  levels = range(len(scores_ref) // num_items)
  items, dims = _padded_range(num_items), _padded_range(head_dim)
  rows = _padded_range(num_buckets)
  stats = [_softmax_stats(scores_ref, k, items, num_items) for k in levels]
  grads = [_load_block(grad_ref, k * num_items, num_items, items, dims) for k in levels]
  outs = [_load_block(out_ref, k * num_items, num_items, items, dims) for k in levels]
  # sum_j alpha_ij grad_alpha_ij, which the softmax's gradient needs before grad_alpha is known.
  inners = [jnp.sum(grad * out, axis=1) for grad, out in zip(grads, outs)]

  def key_item(j, grad_table):
    embeds, buckets = _embeddings(table_ref, buckets_ref, j, items, dims)
    values = [_load_row(values_ref, l * num_items + j, dims) for l in levels]
    grad_values = [jnp.zeros_like(value) for value in values]
    grad_embeds = jnp.zeros_like(embeds)
    for k in levels:
      weighted = grads[k] * embeds
      mixed = jnp.zeros_like(embeds)
      for l in levels:
        alpha = _alpha(scores_ref, k, l, j, items, num_items, stats[k])
        mixed += alpha[:, None] * values[l][None, :]
        grad_values[l] += jnp.sum(alpha[:, None] * weighted, axis=0)
        grad_alpha = jnp.sum(weighted * values[l][None, :], axis=1)
        plgpu.store(
          grad_scores_ref.at[k * num_items + items, l * num_items + j],
          (alpha * (grad_alpha - inners[k])).astype(grad_scores_ref.dtype),
          mask=items < num_items,
        )
      grad_embeds += grads[k] * mixed
    for l in levels:
      _store_row(grad_values_ref, l * num_items + j, dims, grad_values[l])
    # Rows are chosen by a matrix product: unlike atomic sums, it adds in the same order always.
    one_hot = (rows[:, None] == buckets[None, :]).astype(jnp.float32)
    return grad_table + jnp.dot(one_hot, grad_embeds)

  zeros = jnp.zeros((len(rows), len(dims)), jnp.float32)
  grad_table = jax.lax.fori_loop(0, num_items, key_item, zeros)
  _store_block(grad_table_ref, 0, num_buckets, rows, dims, grad_table)


def _padded_range(size):
  return jnp.arange(max(pl.next_power_of_2(size), _MIN_SIZE))


def _softmax_stats(scores_ref, k, items, num_items):
  """Maximum and sum of exponentials of each query token of level k: two [i]."""
  num_tokens = scores_ref.shape[1]
  keys = _padded_range(num_tokens)
  mask = (items < num_items)[:, None] & (keys < num_tokens)[None, :]
  ref = scores_ref.at[(k * num_items + items)[:, None], keys[None, :]]
  scores = plgpu.load(ref, mask=mask, other=_PADDING_SCORE).astype(jnp.float32)
  maximum = jnp.max(scores, axis=1)
  return maximum, jnp.sum(jnp.exp(scores - maximum[:, None]), axis=1)


def _alpha(scores_ref, k, l, j, items, num_items, stats):
  """Attention [i] of level k's query tokens to token l of item j; 0 at padding."""
  ref = scores_ref.at[k * num_items + items, l * num_items + j]
  scores = plgpu.load(ref, mask=items < num_items, other=_PADDING_SCORE).astype(jnp.float32)
  maximum, total = stats
  return jnp.where(items < num_items, jnp.exp(scores - maximum) / total, 0.0)


def _embeddings(table_ref, buckets_ref, j, items, dims):
  """Similarity embeddings [i, D] of all items to item j, and their buckets [i]; 0 at padding."""
  num_items, head_dim = len(buckets_ref), table_ref.shape[1]
  buckets = plgpu.load(buckets_ref.at[items, j], mask=items < num_items, other=0)
  mask = (items < num_items)[:, None] & (dims < head_dim)[None, :]
  embeds = plgpu.load(table_ref.at[buckets[:, None], dims[None, :]], mask=mask, other=0.0)
  return embeds.astype(jnp.float32), buckets


def _load_row(ref, row, dims):
  return plgpu.load(ref.at[row, dims], mask=dims < ref.shape[1], other=0.0).astype(jnp.float32)


def _store_row(ref, row, dims, value):
  plgpu.store(ref.at[row, dims], value.astype(ref.dtype), mask=dims < ref.shape[1])


def _block(ref, start, size, rows, dims):
  """The part of `ref` that is block [rows, dims], rows counted from `start`, and what is real."""
  mask = (rows < size)[:, None] & (dims < ref.shape[1])[None, :]
  return ref.at[(start + rows)[:, None], dims[None, :]], mask


def _load_block(ref, start, size, rows, dims):
  view, mask = _block(ref, start, size, rows, dims)
  return plgpu.load(view, mask=mask, other=0.0).astype(jnp.float32)


def _store_block(ref, start, size, rows, dims, value):
  view, mask = _block(ref, start, size, rows, dims)
  plgpu.store(view, value.astype(ref.dtype), mask=mask)

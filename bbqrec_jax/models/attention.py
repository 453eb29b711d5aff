"""Similarity-enhanced attention (BBQRec section 4.2): buckets of similarity, and its back ends.

Tokens are ordered (level, item): token s = l * T + t is level l of item t, which keeps the items
of one level contiguous.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from bbqrec_jax.models import attention_xla

BACKENDS = ("auto", "reference", "xla", "pallas")


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


def make_sim_attention(table: jax.Array, buckets: jax.Array, backend: str = "auto") -> Callable:
  """Attention whose every value is multiplied by a similarity embedding: BBQRec Eqs. (16)-(17).

  What the layers of an encoder share is computed here, once for all of them.

  Args:
    table: [K + 1, H, D] float32, the similarity embedding of each bucket. A table of ones gives
      plain attention.
    buckets: [B, T, T] int32 in [0, K] of each pair (query item, key item).
    backend: "xla" runs everywhere. "pallas" is a kernel for NVIDIA GPUs that never holds the
      embeddings of the pairs, [B, T, T, H, D]. "reference" is the equation as printed, for every
      pair of tokens: slow. "auto" chooses.

  Returns:
    (scores [B, H, S, S] float32, values [B, S, H, D]) -> [B, S, H, D] of the values' type, from
    float32 sums; S = L * T tokens ordered (level, item). Scores are scaled dot products, masked and
    biased, before the softmax. out_i = sum_j table[buckets_ij] * (softmax(scores)_ij values_j), the
    product with the table's row elementwise over D.

  Raises:
    ValueError: an unknown back end; "pallas" without a GPU; later, from what is returned, shapes
      that do not match.
  """
  if backend not in BACKENDS:
    raise ValueError(f"attention_backend must be one of {BACKENDS}, got {backend!r}.")
  if backend == "auto":
    backend = "xla"  # On GPUs too: the kernel's speed there has not been measured yet.
  if backend == "pallas" and jax.default_backend() != "gpu":
    raise ValueError("attention_backend='pallas' needs a GPU; 'xla' runs everywhere.")
  attend = _BACKENDS[backend](table, buckets)

  def sim_attention(scores: jax.Array, values: jax.Array) -> jax.Array:
    batch_size, num_heads, num_tokens, _ = scores.shape
    if (
      num_tokens % buckets.shape[1]
      or scores.shape[3] != num_tokens
      or values.shape != (batch_size, num_tokens, *table.shape[1:])
      or num_heads != table.shape[1]
      or len(buckets) != batch_size
    ):
      raise ValueError(
        f"scores {scores.shape}, values {values.shape}, similarity table {table.shape} and "
        f"buckets {buckets.shape} do not match."
      )
    return attend(scores, values.astype(jnp.float32)).astype(values.dtype)

  return sim_attention


def _reference(table, buckets):
  def attend(scores, values):
    num_levels = scores.shape[-1] // buckets.shape[-1]
    per_token = jnp.tile(buckets, (1, num_levels, num_levels))  # [B, S, S]
    alpha = jax.nn.softmax(scores, axis=-1)
    return jnp.einsum("bhqk,bqkhd,bkhd->bqhd", alpha, table[per_token], values)

  return attend


def _xla(table, buckets):
  factors = table[buckets]  # [B, T, T, H, D]
  witness = table[0, 0, 0]
  return lambda scores, values: attention_xla.sim_attention(scores, values, factors, witness)


def _pallas(table, buckets):
  from bbqrec_jax.models import attention_pallas  # Slow to import; needed on GPUs alone.

  return lambda scores, values: attention_pallas.sim_attention(scores, values, table, buckets)


_BACKENDS = dict(reference=_reference, xla=_xla, pallas=_pallas)

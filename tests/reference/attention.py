"""Slow and obvious attention, to compare with."""

import jax
import jax.numpy as jnp


def sim_attention(scores, values, factors):
  """BBQRec Eqs. (16)-(17) as printed: one similarity embedding for every pair of tokens.

  scores [B, H, S, S], values [B, S, H, D], factors [B, T, T, H, D] -> [B, S, H, D].
  """
  num_levels = scores.shape[-1] // factors.shape[1]
  # Tokens are ordered (level, item), so the table of item pairs repeats block by block.
  per_token = jnp.tile(factors, (1, num_levels, num_levels, 1, 1))  # [B, S, S, H, D]
  alpha = jax.nn.softmax(scores, axis=-1)
  return jnp.einsum("bhqk,bkhd,bqkhd->bqhd", alpha, values, per_token)


def attention(scores, values):
  """Softmax attention: scores [B, H, S, S], values [B, S, H, D] -> [B, S, H, D]."""
  return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores, axis=-1), values)

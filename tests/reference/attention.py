"""Slow and obvious attention in NumPy, float64, to compare with."""

import numpy as np


def sim_attention(scores, values, table, buckets):
  """BBQRec Eqs. (16)-(17) as printed: one similarity embedding for every pair of tokens.

  scores [B, H, S, S], values [B, S, H, D], table [K + 1, H, D], buckets [B, T, T] ints; tokens are
  ordered (level, item). Returns [B, S, H, D].
  """
  alpha, out = _softmax(scores), np.zeros(values.shape)
  for b, h, q, k, row in _pairs(scores, buckets):
    out[b, q, h] += table[row, h] * (alpha[b, h, q, k] * values[b, k, h])
  return out


def sim_attention_gradients(scores, values, table, buckets, grad):
  """Gradients of sum(grad * sim_attention(...)) with respect to scores, values and table."""
  alpha = _softmax(scores)
  grad_alpha, grad_values, grad_table = (np.zeros(x.shape) for x in (scores, values, table))
  for b, h, q, k, row in _pairs(scores, buckets):
    grad_alpha[b, h, q, k] = np.sum(grad[b, q, h] * table[row, h] * values[b, k, h])
    grad_values[b, k, h] += alpha[b, h, q, k] * grad[b, q, h] * table[row, h]
    grad_table[row, h] += alpha[b, h, q, k] * grad[b, q, h] * values[b, k, h]
  jacobian = alpha[..., :, None] * (np.eye(alpha.shape[-1]) - alpha[..., None, :])  # d alpha
  return np.einsum("bhqk,bhqkm->bhqm", grad_alpha, jacobian), grad_values, grad_table


def attention(scores, values):
  """Softmax attention: scores [B, H, S, S], values [B, S, H, D] -> [B, S, H, D]."""
  return np.einsum("bhqk,bkhd->bqhd", _softmax(scores), np.asarray(values, np.float64))


def _softmax(scores):
  scores = np.asarray(scores, np.float64)
  weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
  return weights / weights.sum(axis=-1, keepdims=True)


def _pairs(scores, buckets):
  """(history, head, query token, key token, bucket of their items), every pair once."""
  num_items = buckets.shape[-1]
  for b, h, q, k in np.ndindex(*scores.shape):
    yield b, h, q, k, buckets[b, q % num_items, k % num_items]

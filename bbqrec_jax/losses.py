"""Losses: arrays in, scalars out. Each names its equation and how it is reduced.

`weights` is 1.0 for a row that counts and 0.0 for padding; a mean over no rows is 0.

`axis_name` is for a program of which every device runs a copy on its part of the batch (jax.pmap):
the mapped axis, over which rows are counted and summed, so that each device has the whole batch's
loss. None, the default, is for everything else.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


def total(x: jax.Array, axis_name: str | None = None) -> jax.Array:
  """The sum of all of x, of every device."""
  x = jnp.sum(x)
  return x if axis_name is None else jax.lax.psum(x, axis_name)


def gather_rows(tree: Any, axis_name: str | None = None) -> Any:
  """The rows of all devices, in their order: arrays [P / devices, ...] -> [P, ...]."""
  if axis_name is None:
    return tree
  return jax.tree.map(lambda x: jax.lax.all_gather(x, axis_name, tiled=True), tree)


def own_rows(x: jax.Array, num_rows: int, axis_name: str | None = None) -> jax.Array:
  """This device's rows [P / devices, ...] of what gather_rows() has gathered, [P, ...]."""
  if axis_name is None:
    return x
  return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(axis_name) * num_rows, num_rows)


def weighted_mean(values: jax.Array, weights: jax.Array, axis_name: str | None = None) -> jax.Array:
  """Mean of values over the rows whose weight is 1; both have one shape, 0 if no row counts."""
  if values.shape != weights.shape:
    raise ValueError(f"values {values.shape} and weights {weights.shape} must have one shape.")
  return total(weights * values, axis_name) / jnp.maximum(total(weights, axis_name), 1.0)


def quantization_losses(
  residuals: jax.Array, embeds: jax.Array, weights: jax.Array, axis_name: str | None = None
) -> tuple[jax.Array, jax.Array]:
  """Codebook and commitment losses of the residual quantizer: BBQRec Eq. (9), second line.

  The first moves code vectors to what they quantize, the second (whose weight alpha is the
  caller's) moves the encoders to the code vectors; each gradient reaches its own side only.

  Args:
    residuals: [B, M, L, D] float32, what each level was asked to quantize.
    embeds: [B, M, L, D] float32, the code vector that each level chose.
    weights: [B] float32, 1.0 for an item and 0.0 for a padding row.

  Returns:
    (codebook_loss [], commitment_loss []): squared latent units; sum over M, L and D, mean over
    items.
  """

  def reduce(error):  # [B, M, L, D] -> []
    return weighted_mean(jnp.sum(error**2, axis=(1, 2, 3)), weights, axis_name)

  stop = jax.lax.stop_gradient
  return reduce(stop(residuals) - embeds), reduce(residuals - stop(embeds))


def reconstruction_loss(
  x: jax.Array,
  x_hat: jax.Array,
  present: jax.Array,
  weights: jax.Array,
  axis_name: str | None = None,
) -> jax.Array:
  """Squared error of one modality's reconstruction: a term of BBQRec Eq. (9), first line.

  Args:
    x: [B, F] float32, the input vectors; any finite values where absent.
    x_hat: [B, F] float32, their reconstructions.
    present: [B] bool, whether the item has this modality.
    weights: [B] float32, 1.0 for an item and 0.0 for a padding row.

  Returns:
    [] float32, squared feature units; sum over F, mean over the items that have the modality.
  """
  return weighted_mean(jnp.sum((x - x_hat) ** 2, axis=-1), weights * present, axis_name)


def info_nce(
  h: jax.Array,
  v: jax.Array,
  targets: jax.Array,
  weights: jax.Array,
  item_weights: jax.Array,
  temperature: float,
  log_q: jax.Array | None = None,
) -> jax.Array:
  """Sequence-to-item contrast over a batch's distinct items: BBQRec Eq. (12).

  Every row of v is another item, so the positive stands in the denominator exactly once, and so
  does each negative, however often an item occurs in the batch.

  A popular item is in most batches, and is pushed away by each of them. With log_q, which the paper
  does not have, an item weighs in the denominator what makes up for that, and the denominator's
  expectation is the sum over the whole catalogue: the logQ correction of Bengio and Senecal 2008,
  for in-batch negatives Yi et al. 2019 (doi:10.1145/3298689.3346996).

  Args:
    h: [R, E] float32, what each history predicts: all of the batch's, or a micro-batch's.
    v: [P, E] float32, the batch's distinct items.
    targets: [R] int32, the row of v that comes next; any of them, or -1, where the weight is 0.
    weights: [R] float32, of each history in the sum: 1 over their number makes it a mean, also
      where a batch's parts are added up.
    item_weights: [P] float32, 1.0 for an item and 0.0 for a padding row, which is no negative.
    temperature: tau, by which the cosines are divided.
    log_q: [P] float32, the log-probability that a batch holds the item; any finite values at
      padding. None: no correction.

  Returns:
    [] float32, nats; weighted sum.
  """
  # At full float32 precision: a small temperature magnifies the rounding of the cosines.
  cosines = jnp.einsum("re,pe->rp", unit(h), unit(v), precision=jax.lax.Precision.HIGHEST)
  logits = cosines / temperature
  if log_q is not None:
    logits -= log_q[None, :]
  losses = optax.softmax_cross_entropy_with_integer_labels(
    logits, jnp.maximum(targets, 0), where=(item_weights > 0)[None, :]
  )
  return jnp.sum(weights * losses)


def alignment_loss(q: jax.Array, collaborative: jax.Array, weights: jax.Array) -> jax.Array:
  """LETTER's collaborative regularisation: Wang et al. 2024 (arXiv:2405.07314), L_CF.

  Every item has to find its own collaborative vector among those of the batch's other items, by
  inner product. Like theirs, it knows no temperature: the vectors' scale is part of it.

  Args:
    q: [P, D] float32, quantized latents of the batch's items, all of them distinct.
    collaborative: [P, D] float32, the vectors that a sequential recommender has learned for them.
    weights: [P] float32, 1.0 for an item and 0.0 for a padding row, which is no negative either.

  Returns:
    [] float32, nats; mean over items.
  """
  scores = jnp.einsum("pd,nd->pn", q, collaborative, precision=jax.lax.Precision.HIGHEST)
  losses = optax.softmax_cross_entropy_with_integer_labels(
    scores, jnp.arange(len(q)), where=((weights > 0)[None, :] | jnp.eye(len(q), dtype=bool))
  )
  return weighted_mean(losses, weights)


def diversity_loss(
  embeds: jax.Array,
  codes: jax.Array,
  codebooks: jax.Array,
  positives: jax.Array,
  weights: jax.Array,
  axis_name: str | None = None,
) -> jax.Array:
  """LETTER's diversity regularisation: Wang et al. 2024 (arXiv:2405.07314), L_Div.

  The code vector that an item has chosen is drawn to one of its own cluster, and away from all the
  others of its codebook, by inner product; with itself it is not compared. The gradient reaches
  both sides, which are code vectors. The mean over levels is that of their program.

  Args:
    embeds: [B, L, D] float32, the code vectors that items have chosen.
    codes: [B, L] int32 in [0, N), which ones these are.
    codebooks: [L, N, D] float32.
    positives: [B, L] int32 in [0, N), for each code another one of its cluster.
    weights: [B] float32, 1.0 for an item and 0.0 for a padding row.

  Returns:
    [] float32, nats; mean over levels and items.
  """
  scores = jnp.einsum("bld,lnd->bln", embeds, codebooks, precision=jax.lax.Precision.HIGHEST)
  others = jnp.arange(codebooks.shape[1])[None, None, :] != codes[:, :, None]  # [B, L, N]
  losses = optax.softmax_cross_entropy_with_integer_labels(scores, positives, where=others)
  return weighted_mean(jnp.mean(losses, axis=1), weights, axis_name)


def semantic_id_loss(
  logits: jax.Array, codes: jax.Array, weights: jax.Array, temperature: float = 1.0
) -> jax.Array:
  """Cross-entropy of items' semantic IDs: BBQRec Eq. (1).

  A token's probability is the product of its signals' codes', so the log-likelihoods add up.

  Args:
    logits: [..., L, M, N] of any float type, each level's and signal's scores of the N codes.
    codes: [..., L, M] int32 in [0, N), the right ones; any of them where the weight is 0.
    weights: [...] float32, of each example in the sum: 1 over their number makes it a mean, also
      where a batch's parts are added up.
    temperature: tau, by which the logits are divided. Below 1 it makes the codes that come close
      to the right one weigh more: the ranking-guided generation loss of LETTER, Wang et al. 2024
      (arXiv:2405.07314).

  Returns:
    [] float32, nats an item; sum over L and M, weighted sum over examples.
  """
  scaled = logits.astype(jnp.float32) / temperature
  losses = optax.softmax_cross_entropy_with_integer_labels(scaled, codes)
  return jnp.sum(weights * jnp.sum(losses, axis=(-2, -1)))


def score_items(h: jax.Array, vectors: jax.Array, bias: jax.Array, precision=None) -> jax.Array:
  """Scores of all items: h [R, E], vectors [I, E] of one float type, bias [I] -> [R, I] float32."""
  products = jnp.einsum(
    "re,ie->ri", h, vectors, precision=precision, preferred_element_type=jnp.float32
  )
  return products + bias[None, :]


def score_rows(h: jax.Array, vectors: jax.Array, bias: jax.Array, items: jax.Array) -> jax.Array:
  """Scores of one item each: h [R, E], items [R] int32 in [0, I) -> [R] float32."""
  products = h.astype(jnp.float32) * vectors[items].astype(jnp.float32)
  return jnp.sum(products, axis=-1) + bias[items]


class Scorer(NamedTuple):
  """How items are scored, if not by score_items() and score_rows(): two like them."""

  items: Callable  # (h, vectors, bias, precision=None) -> [R, I] float32.
  rows: Callable  # (h, vectors, bias, items) -> [R] float32.


PRODUCT = Scorer(score_items, score_rows)


def softmax_loss(
  h: jax.Array,
  vectors: jax.Array,
  bias: jax.Array,
  targets: jax.Array,
  weights: jax.Array,
  scorer: Scorer = PRODUCT,
) -> jax.Array:
  """Cross-entropy of the target among all items.

  Args:
    h: [R, E], what each row predicts; vectors [I, E] of the same float type.
    bias: [I] float32, added to the scores; layers.MASKED for a row that is no item.
    targets: [R] int32 in [0, I); any of them where the weight is 0.
    weights: [R] float32, of each row in the sum.
    scorer: what gives the scores; its vectors may have further axes behind the first.

  Returns:
    [] float32, nats; weighted sum.
  """
  # The target's score from its own row: taken out of all scores, its gradient would be one more
  # array of [R, I].
  target_scores = scorer.rows(h, vectors, bias, targets)
  normaliser = jax.nn.logsumexp(scorer.items(h, vectors, bias), axis=-1)
  return jnp.sum(weights * (normaliser - target_scores))


def bce_loss(
  h: jax.Array,
  vectors: jax.Array,
  bias: jax.Array,
  targets: jax.Array,
  negatives: jax.Array,
  weights: jax.Array,
  negative_weights: jax.Array,
  scorer: Scorer = PRODUCT,
) -> jax.Array:
  """Binary cross-entropy of the target and of one sampled negative: SASRec Eq. (7).

  Kang and McAuley 2018 (arXiv:1808.09781).

  Args:
    h, vectors, bias, targets, weights, scorer: as for softmax_loss().
    negatives: [R] int32 in [0, I).
    negative_weights: [R] float32, `weights`, or 0 where the negative is none after all.

  Returns:
    [] float32, nats; weighted sum over both terms.
  """
  positive = jax.nn.log_sigmoid(scorer.rows(h, vectors, bias, targets))
  negative = jax.nn.log_sigmoid(-scorer.rows(h, vectors, bias, negatives))
  return -jnp.sum(weights * positive) - jnp.sum(negative_weights * negative)


def unit(x: jax.Array) -> jax.Array:
  """Scales the last axis of x to unit length; a vector of zeros stays as it is."""
  # Bounded inside the root: the gradient of a plain norm is NaN at zero.
  return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x**2, axis=-1, keepdims=True), 1e-12))

"""Losses against the slow way, and what they must ignore."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bbqrec_jax import losses
from tests.reference import tokenizer as reference

B, M, L, D, P, T, F, N, R = 5, 2, 3, 7, 11, 4, 13, 6, 17


def normal(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape)


def test_codebook_and_commitment_losses_reach_one_side_each():
  residuals, embeds = normal(0, B, M, L, D), normal(1, B, M, L, D)
  weights = jnp.array([1.0, 1.0, 0.0, 1.0, 0.0])
  expected = np.sum(np.asarray(residuals - embeds)[[0, 1, 3]] ** 2) / 3
  np.testing.assert_allclose(
    losses.quantization_losses(residuals, embeds, weights), [expected, expected], rtol=1e-5
  )
  jacobian = jax.jacobian(losses.quantization_losses, argnums=(0, 1))(residuals, embeds, weights)
  (codebook_to_residuals, codebook_to_embeds), (commit_to_residuals, commit_to_embeds) = jacobian
  zeros = jnp.zeros_like(residuals)
  chex.assert_trees_all_equal((codebook_to_residuals, commit_to_embeds), (zeros, zeros))
  gradient = 2 * (residuals - embeds) * weights[:, None, None, None] / 3
  chex.assert_trees_all_close(
    (commit_to_residuals, codebook_to_embeds), (gradient, -gradient), atol=1e-6
  )


def test_reconstruction_is_masked_by_presence_and_weights():
  x, x_hat = normal(0, B, F), normal(1, B, F)
  present = jnp.array([True, False, True, True, True])
  weights = jnp.array([1.0, 1.0, 0.0, 1.0, 1.0])
  value, gradient = jax.value_and_grad(losses.reconstruction_loss, argnums=1)(
    x, x_hat, present, weights
  )
  counted = [0, 3, 4]
  expected = np.mean([np.sum((np.asarray(x)[i] - np.asarray(x_hat)[i]) ** 2) for i in counted])
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  np.testing.assert_array_equal(np.any(np.asarray(gradient) != 0, axis=1), [1, 0, 0, 1, 1])
  assert losses.reconstruction_loss(x, x_hat, present, jnp.zeros(B)) == 0.0


class InfoNceTest(chex.TestCase):
  def setUp(self):
    super().setUp()
    self.h, self.v = normal(0, R, D), normal(1, P, D)
    targets = jax.random.randint(jax.random.key(2), (R,), 0, P)
    # Several histories share a target, some predict nothing, and row 3 of v is padding.
    targets = targets.at[:4].set(5).at[5:8].set(-1)
    self.targets = jnp.where(targets == 3, 4, targets)
    self.item_weights = jnp.ones(P).at[3].set(0.0)

    self.weights = (self.targets >= 0) / jnp.sum(self.targets >= 0)

  @chex.variants(with_jit=True, without_jit=True)
  def test_equals_the_sum_over_distinct_items(self):
    value = self.variant(losses.info_nce)(
      self.h, self.v, self.targets, self.weights, self.item_weights, 0.1
    )
    args = map(np.asarray, (self.h, self.v, self.targets, self.item_weights))
    np.testing.assert_allclose(value, reference.info_nce(*args, 0.1), rtol=1e-5)

  def test_with_log_q_an_item_counts_by_how_rarely_it_is_there(self):
    log_q = -3.0 * jax.random.uniform(jax.random.key(3), (P,))
    args = (self.h, self.v, self.targets, self.weights, self.item_weights, 0.1)
    value = losses.info_nce(*args, log_q)
    args = map(np.asarray, (self.h, self.v, self.targets, self.item_weights))
    expected = reference.info_nce(*args, 0.1, np.exp(np.asarray(log_q)))
    np.testing.assert_allclose(value, expected, rtol=1e-5)

  def test_with_log_q_the_denominator_is_on_average_that_of_the_catalogue(self):
    q = np.linspace(0.2, 1.0, P)  # Item P - 1, the target, is in every batch.
    there = np.array(list(itertools.product((0, 1), repeat=P - 1)))  # Every batch that can be.
    there = np.concatenate([there, np.ones((len(there), 1))], axis=1)
    probability = np.prod(np.where(there > 0, q, 1 - q), axis=1)
    h, target = self.h[:1], jnp.array([P - 1])

    def ratio(weights):  # The denominator over the target's own term.
      loss = losses.info_nce(h, self.v, target, jnp.ones(1), weights, 1.0, jnp.log(jnp.array(q)))
      return jnp.exp(loss)

    found = np.sum(probability * np.asarray(jax.vmap(ratio)(jnp.array(there, jnp.float32))))
    whole = losses.info_nce(h, self.v, target, jnp.ones(1), jnp.ones(P), 1.0)
    np.testing.assert_allclose(found, np.exp(whole), rtol=1e-4)

  def test_padding_changes_nothing_and_gets_no_gradient(self):
    def loss(h, v):
      return losses.info_nce(h, v, self.targets, self.weights, self.item_weights, 0.1)

    value, (grad_h, grad_v) = jax.value_and_grad(loss, argnums=(0, 1))(self.h, self.v)
    # Zeros as a padded sequence gives them: a plain norm's gradient would be NaN there.
    h, v = self.h.at[5:8].set(0.0), self.v.at[3].set(0.0)
    padded, (padded_h, padded_v) = jax.value_and_grad(loss, argnums=(0, 1))(h, v)
    chex.assert_trees_all_close((value, grad_h, grad_v), (padded, padded_h, padded_v), atol=1e-6)
    chex.assert_trees_all_equal((padded_h[5:8], padded_v[3]), (jnp.zeros((3, D)), jnp.zeros(D)))

  def test_no_item_and_no_target_give_zero(self):
    none = losses.info_nce(self.h, self.v, jnp.full(R, -1), jnp.zeros(R), jnp.zeros(P), 0.1)
    assert none == 0.0


def _mean(values, weights):
  return losses.weighted_mean(values, weights, "devices")


def test_a_mean_over_devices_is_the_mean_of_all_rows():
  values, weights = normal(3, 4, B), jnp.arange(4 * B).reshape(4, B) % 3 < 2
  means = jax.vmap(_mean, axis_name="devices")(values, weights.astype(jnp.float32))
  np.testing.assert_allclose(means, np.full(4, np.mean(np.asarray(values)[weights])), rtol=1e-5)
  rows = jax.vmap(lambda x: losses.gather_rows(x, "devices"), axis_name="devices")(values)
  np.testing.assert_array_equal(rows, np.tile(values.reshape(-1), (4, 1)))


def test_semantic_id_loss_is_the_log_probability_of_the_codes():
  logits = normal(0, B, T, L, M, N)
  codes = jax.random.randint(jax.random.key(1), (B, T, L, M), 0, N)
  weights = (jax.random.uniform(jax.random.key(2), (B, T)) < 0.6).astype(jnp.float32)
  probabilities = np.exp(np.asarray(logits, np.float64))
  probabilities /= probabilities.sum(-1, keepdims=True)
  nats = []
  for b, t in np.argwhere(weights):
    chosen = [probabilities[b, t, l, m, codes[b, t, l, m]] for l, m in np.ndindex(L, M)]
    nats.append(-np.log(np.prod(chosen)))
  value = losses.semantic_id_loss(logits, codes, weights / len(nats))
  np.testing.assert_allclose(value, np.mean(nats), rtol=1e-5)
  # Two equal codes in each of L x M places: a uniform guess costs log N for each.
  uniform = losses.semantic_id_loss(jnp.zeros_like(logits), codes, weights / len(nats))
  np.testing.assert_allclose(uniform, L * M * np.log(N), rtol=1e-5)


def test_a_temperature_divides_the_logits():
  logits = normal(0, B, L, M, N)
  codes = jax.random.randint(jax.random.key(1), (B, L, M), 0, N)
  weights = jnp.arange(B) / 10
  plain = losses.semantic_id_loss(logits, codes, weights)
  assert losses.semantic_id_loss(logits, codes, weights, 1.0) == plain
  powers = np.exp(np.asarray(logits, np.float64)) ** (1 / 0.7)  # Of probabilities, up to a factor.
  right = np.take_along_axis(powers, np.asarray(codes)[..., None], axis=-1)[..., 0]
  expected = np.sum(weights[:, None, None] * -np.log(right / powers.sum(-1)))
  np.testing.assert_allclose(
    losses.semantic_id_loss(logits, codes, weights, 0.7), expected, rtol=1e-5
  )


def test_alignment_finds_each_item_among_the_others():
  q, collaborative = normal(0, P, D), normal(1, P, D)
  weights = np.ones(P, np.float32)
  weights[[2, 7]] = 0.0
  counted = np.flatnonzero(weights)
  products = np.exp(np.asarray(q, np.float64) @ np.asarray(collaborative, np.float64).T)
  expected = np.mean([-np.log(products[i, i] / products[i, counted].sum()) for i in counted])
  aligned = jax.jit(jax.value_and_grad(losses.alignment_loss, argnums=(0, 1)))
  value, (to_q, to_vectors) = aligned(q, collaborative, weights)
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  for gradient in (to_q, to_vectors):
    np.testing.assert_array_equal(np.any(gradient != 0, axis=1), weights > 0)
  assert aligned(q, collaborative, np.zeros(P, np.float32))[0] == 0.0


def test_diversity_draws_a_code_to_its_cluster_and_away_from_the_rest():
  rng = np.random.default_rng(0)
  codebooks = rng.normal(size=(L, N, D))
  codes = rng.integers(0, N, (B, L))
  positives = (codes + rng.integers(1, N, (B, L))) % N
  weights = np.array([1.0, 0.0, 1.0, 1.0, 0.0])
  embeds = codebooks[np.arange(L)[None, :], codes]  # [B, L, D]
  nats = np.zeros((B, L))
  for b, l in np.ndindex(B, L):
    powers = np.exp(codebooks[l] @ codebooks[l, codes[b, l]])
    others = [n for n in range(N) if n != codes[b, l]]
    nats[b, l] = -np.log(powers[positives[b, l]] / powers[others].sum())
  args = [jnp.asarray(x) for x in (embeds, codes, codebooks, positives, weights)]
  value, (to_embeds, to_codebooks) = jax.jit(
    jax.value_and_grad(losses.diversity_loss, argnums=(0, 2))
  )(*args)
  np.testing.assert_allclose(value, nats[[0, 2, 3]].mean(), rtol=1e-5)
  np.testing.assert_array_equal(np.any(to_embeds != 0, axis=(1, 2)), weights > 0)
  assert np.any(to_codebooks != 0)
  # A step against the gradient brings the two together, by inner product.
  partners = codebooks[np.arange(L)[None, :], positives]
  assert np.sum((embeds - 0.1 * np.asarray(to_embeds)) * partners) > np.sum(embeds * partners)


def test_weights_of_another_shape_raise():
  with pytest.raises(ValueError, match="one shape"):
    losses.weighted_mean(jnp.ones((B, 1)), jnp.ones(B))


class ItemScoresTest(chex.TestCase):
  """The losses over all items, against closed forms row by row."""

  def setUp(self):
    super().setUp()
    self.h, self.vectors, self.bias = normal(0, R, D), normal(1, P, D), normal(2, P)
    self.targets = jax.random.randint(jax.random.key(3), (R,), 0, P)
    self.weights = jax.random.uniform(jax.random.key(4), (R,)).at[5].set(0.0)
    self.scores = np.asarray(self.h) @ np.asarray(self.vectors).T + np.asarray(self.bias)

  @chex.variants(with_jit=True, without_jit=True)
  def test_softmax_loss(self):
    found = self.variant(losses.softmax_loss)(
      self.h, self.vectors, self.bias, self.targets, self.weights
    )
    expected = 0.0
    for row, target, weight in zip(self.scores, self.targets, self.weights):
      expected -= weight * np.log(np.exp(row[target]) / np.exp(row).sum())
    np.testing.assert_allclose(found, expected, rtol=1e-5)

  def test_softmax_gradient_is_probability_less_one_for_the_target(self):
    gradient = jax.grad(losses.softmax_loss, argnums=2)(
      self.h, self.vectors, self.bias, self.targets, self.weights
    )
    probabilities = np.exp(self.scores) / np.exp(self.scores).sum(axis=1, keepdims=True)
    difference = probabilities - np.eye(P)[np.asarray(self.targets)]
    np.testing.assert_allclose(gradient, np.asarray(self.weights) @ difference, atol=1e-5)

  @chex.variants(with_jit=True, without_jit=True)
  def test_bce_loss(self):
    negatives = jax.random.randint(jax.random.key(5), (R,), 0, P)
    allowed = self.weights * (jnp.arange(R) != 2)
    found = self.variant(losses.bce_loss)(
      self.h, self.vectors, self.bias, self.targets, negatives, self.weights, allowed
    )
    sigmoid = lambda x: 1 / (1 + np.exp(-x))
    rows = np.arange(R)
    positive = np.log(sigmoid(self.scores[rows, self.targets]))
    negative = np.log(1 - sigmoid(self.scores[rows, negatives]))
    expected = -np.sum(self.weights * positive) - np.sum(allowed * negative)
    np.testing.assert_allclose(found, expected, rtol=1e-4)

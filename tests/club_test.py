"""CLUB: closed form, what it measures, and who learns from which loss."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from bbqrec_jax.models import club
from tests.reference import tokenizer as reference

B, D, H = 13, 5, 7


class ClubTest(chex.TestCase):
  def setUp(self):
    super().setUp()
    z_key, bar_key, init_key = jax.random.split(jax.random.key(0), 3)
    self.z = jax.random.normal(z_key, (B, D))
    self.z_bar = 3.0 * jax.random.normal(bar_key, (B, D)) + 1.0
    self.club = club.Club(hidden_dim=H, max_log_variance=2.0)
    self.params = self.club.init(init_key, self.z)["params"]
    # Larger weights, so that variances differ from row to row.
    self.params = jax.tree.map(lambda p: 2.0 * p, self.params)

  @chex.variants(with_jit=True, without_jit=True)
  def test_closed_form_is_the_definition_over_all_pairs(self):
    weights = jnp.ones(B).at[jnp.array([2, 7])].set(0.0)
    out = self.variant(lambda *args: club.club_losses(self.club, *args))(
      self.params, self.z, self.z_bar, weights
    )
    mean, log_variance = self.club.apply({"params": self.params}, self.z)
    kept = np.asarray(weights) > 0
    mean, log_variance, z_bar = (np.asarray(x)[kept] for x in (mean, log_variance, self.z_bar))
    expected = reference.club_upper_bound(mean, log_variance, z_bar)
    np.testing.assert_allclose(out.mim_loss, expected, rtol=1e-4)
    rows = zip(z_bar, mean, log_variance)
    likelihood = np.mean([reference.gaussian_log_density(*row) for row in rows])
    np.testing.assert_allclose(out.likelihood_loss, -likelihood, rtol=1e-5)

  def test_gradients_do_not_leak(self):
    def loss(params, z, z_bar):
      return club.club_losses(self.club, params, z, z_bar, jnp.ones(B))

    jacobian = jax.jacobian(loss, argnums=(0, 1, 2))(self.params, self.z, self.z_bar)
    theta_of_bound, *latents_of_bound = jacobian.mim_loss
    theta_of_likelihood, *latents_of_likelihood = jacobian.likelihood_loss
    for stopped in (theta_of_bound, latents_of_likelihood):
      chex.assert_trees_all_equal(stopped, jax.tree.map(jnp.zeros_like, stopped))
    for learning in (theta_of_likelihood, latents_of_bound):
      assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(learning))

  def test_log_variance_is_bounded(self):
    params = jax.tree.map(lambda p: 1e3 * p, self.params)
    _, log_variance = self.club.apply({"params": params}, self.z)
    np.testing.assert_allclose(np.max(np.abs(log_variance)), 2.0, rtol=1e-6)


def fitted_bound(z, z_bar):
  """The bound after q_theta has been fitted to half of the pairs, on the other half."""
  model = club.Club(hidden_dim=16, max_log_variance=3.0)
  half = len(z) // 2
  params = model.init(jax.random.key(1), z)["params"]
  tx = optax.adam(1e-2)
  weights = jnp.ones(half)

  def step(state, _):
    params, opt_state = state
    grads = jax.grad(
      lambda p: club.club_losses(model, p, z[:half], z_bar[:half], weights).likelihood_loss
    )(params)
    updates, opt_state = tx.update(grads, opt_state)
    return (optax.apply_updates(params, updates), opt_state), None

  (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=300)
  return club.club_losses(model, params, z[half:], z_bar[half:], weights).mim_loss


def test_bound_is_near_zero_for_independent_and_above_the_truth_for_dependent_latents():
  z, noise = jax.random.normal(jax.random.key(0), (2, 2000, 2))
  correlation = 0.8
  dependent = correlation * z + (1 - correlation**2) ** 0.5 * noise
  truth = -0.5 * 2 * np.log(1 - correlation**2)  # Of two independent Gaussian pairs, nats.
  assert abs(fitted_bound(z, noise)) < 0.1
  assert fitted_bound(z, dependent) > truth

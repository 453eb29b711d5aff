"""CLUB: an upper bound on mutual information that encoders minimise.

Cheng et al. 2020 (CLUB, ICML, arXiv:2006.12013), as BBQRec Eq. (3) uses it.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from bbqrec_jax import losses
from bbqrec_jax.models import mlp


class ClubLosses(NamedTuple):
  """Both scalars, in nats, means over the rows that count."""

  mim_loss: jax.Array  # The bound; its gradient reaches z and z_bar only.
  likelihood_loss: jax.Array  # -log q(z_bar | z); its gradient reaches theta only.


class Club(nn.Module):
  """q_theta(z_bar | z): a diagonal Gaussian whose mean and log-variance are MLPs of z."""

  hidden_dim: int
  # b: the log-variance is kept in [-b, b], for a vanishing variance would make the bound, which
  # divides by it, explode.
  max_log_variance: float

  @nn.compact
  def __call__(self, z: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and log-variance of q(. | z), both [B, D], for z [B, D] float32."""
    mean = mlp.MLP((self.hidden_dim,), z.shape[-1], name="mean")(z)
    raw = mlp.MLP((self.hidden_dim,), z.shape[-1], name="log_variance")(z)
    return mean, self.max_log_variance * jnp.tanh(raw)

  def log_likelihood(self, z: jax.Array, z_bar: jax.Array) -> jax.Array:
    """log q(z_bar_i | z_i) of each row, nats: [B] float32, for z and z_bar [B, D] float32."""
    mean, log_variance = self(z)
    squares = (z_bar - mean) ** 2 * jnp.exp(-log_variance)
    return -0.5 * jnp.sum(squares + log_variance + jnp.log(2 * jnp.pi), axis=-1)

  def upper_bound(self, z: jax.Array, z_bar: jax.Array, weights: jax.Array) -> jax.Array:
    """The bound of BBQRec Eq. (3) for one modality, in O(B D).

    mean_i [log q(z_bar_i | z_i) - mean_j log q(z_bar_j | z_i)], i and j over the rows that count.
    log q is quadratic in z_bar, so the mean over j needs only the first and second moments of
    z_bar; log-variances and constants cancel.

    Args:
      z: [B, D] float32.
      z_bar: [B, D] float32.
      weights: [B] float32, 1.0 for a row that counts and 0.0 for one that does not.

    Returns:
      [] float32, nats; 0 if no row counts.
    """
    mean, log_variance = self(z)
    total = jnp.maximum(jnp.sum(weights), 1.0)
    center = jnp.sum(weights[:, None] * z_bar, axis=0, keepdims=True) / total  # [1, D]
    variance = jnp.sum(weights[:, None] * (z_bar - center) ** 2, axis=0, keepdims=True) / total
    # Mean over j of (z_bar_j - mean_i)^2, less (z_bar_i - mean_i)^2.  [B, D]
    gaps = variance + (center - mean) ** 2 - (z_bar - mean) ** 2
    return losses.weighted_mean(0.5 * jnp.sum(gaps * jnp.exp(-log_variance), axis=-1), weights)


def club_losses(
  club: Club, params, z: jax.Array, z_bar: jax.Array, weights: jax.Array
) -> ClubLosses:
  """The bound for the encoders and the likelihood for theta, neither gradient in the other.

  Args:
    club: the module, unbound.
    params: its parameters, theta.
    z: [B, D] float32, behavior-aligned latents.
    z_bar: [B, D] float32, modality-specific latents.
    weights: [B] float32, 1.0 for a row that counts and 0.0 for one that does not.
  """
  stop = jax.lax.stop_gradient
  mim_loss = club.apply({"params": stop(params)}, z, z_bar, weights, method="upper_bound")
  log_likelihood = club.apply({"params": params}, stop(z), stop(z_bar), method="log_likelihood")
  return ClubLosses(mim_loss, -losses.weighted_mean(log_likelihood, weights))

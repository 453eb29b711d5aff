"""Optimized product quantization against brute force, and against SciPy without rotation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.cluster.vq

from bbqrec_jax.models import opq

P, F, S, N = 211, 13, 3, 5  # F is no multiple of S.


def correlated(num_points=P, seed=0):
  """[P, F] whose first dimensions say most, and go together."""
  rng = np.random.default_rng(seed)
  mixing = rng.normal(size=(4, F)) * np.geomspace(3.0, 0.1, F)
  x = rng.normal(size=(num_points, 4)) @ mixing + 0.05 * rng.normal(size=(num_points, F))
  return jnp.asarray(x, jnp.float32)


@pytest.fixture(scope="module")
def fitted():
  return opq.fit(jax.random.key(1), correlated(), num_subspaces=S, codebook_size=N, num_iters=30)


def filled(x, size):
  return np.concatenate([x, np.zeros((len(x), size - x.shape[1]))], axis=1)


def test_codes_are_the_nearest_by_brute_force(fitted):
  x = correlated(num_points=17, seed=2)  # Others than it was fitted to.
  rotation, codebooks = map(np.asarray, fitted)
  assert rotation.shape == (15, 15) and codebooks.shape == (S, N, 5)
  codes = fitted.encode(x)
  assert codes.shape == (17, S) and codes.dtype == jnp.int32
  for p in range(17):
    turned = filled(x, 15)[p] @ rotation
    for s in range(S):
      gaps = turned[5 * s : 5 * s + 5] - codebooks[s]  # [N, D']
      assert codes[p, s] == np.argmin((gaps**2).sum(axis=1))


def test_rotation_is_orthogonal(fitted):
  rotation = np.asarray(fitted.rotation)
  np.testing.assert_allclose(rotation.T @ rotation, np.eye(15), atol=1e-5)
  assert np.abs(rotation - np.eye(15)).max() > 0.1


def test_rotation_loses_less_than_plain_product_quantization(fitted):
  x = correlated()
  rotation, codebooks = map(np.asarray, fitted)
  codes = np.asarray(fitted.encode(x))
  decoded = np.hstack([codebooks[s][codes[:, s]] for s in range(S)]) @ rotation.T
  rows = filled(x, 15)
  plain = np.zeros_like(rows)
  for s in range(0, 15, 5):  # SciPy's k-means in every subspace, the best of twenty starts.
    codebook, _ = scipy.cluster.vq.kmeans(rows[:, s : s + 5], N, rng=0)
    codes, _ = scipy.cluster.vq.vq(rows[:, s : s + 5], codebook)
    plain[:, s : s + 5] = codebook[codes]
  error = lambda found: ((rows - found) ** 2).sum()
  assert error(decoded) < 0.8 * error(plain)


def test_more_subspaces_than_dimensions_raise():
  with pytest.raises(ValueError, match="14 subspaces of 13 dimensions"):
    opq.fit(jax.random.key(0), correlated(), num_subspaces=14, codebook_size=N, num_iters=1)

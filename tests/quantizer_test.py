"""The residual quantizer, its initialisation and its revival."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bbqrec_jax import losses
from bbqrec_jax.models import quantizer
from tests.reference import tokenizer as reference

B, M, L, N, D = 5, 3, 2, 7, 4


def build(shared):
  model = quantizer.ResidualQuantizer(L, N, D, M, shared, init_scale=1.0)
  z = jax.random.normal(jax.random.key(0), (B, M, D))
  return model, z, model.init(jax.random.key(1), z)


def codebooks_of(variables, signal):
  """[L, N, D] of one signal, in NumPy."""
  codebooks = np.asarray(variables["params"]["codebooks"])
  return codebooks[signal if len(codebooks) > 1 else 0]


class ResidualQuantizerTest(chex.TestCase):
  @chex.variants(with_jit=True, without_jit=True)
  def test_equals_the_slow_way(self):
    for shared in (True, False):
      model, z, variables = build(shared)
      out = self.variant(model.apply)(variables, z)
      assert out.codes.shape == (B, L, M) and out.codes.dtype == jnp.int32
      for b, m in np.ndindex(B, M):
        codes, residuals, embeds = reference.residual_quantize(
          np.asarray(z[b, m]), codebooks_of(variables, m)
        )
        np.testing.assert_array_equal(out.codes[b, :, m], codes)
        np.testing.assert_allclose(out.residuals[b, m], residuals, atol=1e-5)
        np.testing.assert_array_equal(out.embeds[b, m], embeds)
        np.testing.assert_allclose(out.latent[b, m], embeds.sum(0), atol=1e-6)

  def test_residuals_telescope(self):
    model, z, variables = build(shared=True)
    out = model.apply(variables, z)
    left = out.residuals[:, :, -1] - out.embeds[:, :, -1]
    chex.assert_trees_all_close(z, out.latent + left, atol=1e-5)

  def test_lookup_of_the_codes_is_the_forward_pass(self):
    for shared in (True, False):
      model, z, variables = build(shared)
      out = model.apply(variables, z)
      chex.assert_trees_all_equal(model.apply(variables, out.codes, method="lookup"), out.latent)

  def test_straight_through_gradient_is_the_identity(self):
    model, z, variables = build(shared=True)
    cotangent = jax.random.normal(jax.random.key(2), z.shape)
    _, pullback = jax.vjp(lambda variables, z: model.apply(variables, z).latent, variables, z)
    grad_variables, grad_z = pullback(cotangent)
    chex.assert_trees_all_equal(grad_z, cotangent)
    chex.assert_trees_all_equal(grad_variables, jax.tree.map(jnp.zeros_like, variables))

  def test_each_loss_moves_one_side(self):
    model, z, variables = build(shared=True)

    def loss(variables, z):
      out = model.apply(variables, z)
      return losses.quantization_losses(out.residuals, out.embeds, jnp.ones(B))

    codebook, commitment = jax.jacobian(loss, argnums=(0, 1))(variables, z)
    chex.assert_trees_all_equal(codebook[1], jnp.zeros_like(z))
    chex.assert_trees_all_equal(commitment[0], jax.tree.map(jnp.zeros_like, variables))
    # A level's code vectors learn from its own error only: the mean pull of their residuals.
    out = model.apply(variables, z)
    expected = np.zeros((1, L, N, D))
    for b, m, l in np.ndindex(B, M, L):
      error = out.embeds[b, m, l] - out.residuals[b, m, l]
      expected[0, l, out.codes[b, l, m]] += 2 * error / B
    np.testing.assert_allclose(codebook[0]["params"]["codebooks"], expected, atol=1e-5)

  def test_shared_codebooks_are_one_array(self):
    model, z, variables = build(shared=True)
    assert variables["params"]["codebooks"].shape == (1, L, N, D)
    same = jnp.broadcast_to(z[:, :1], z.shape)  # Equal latents of all signals, equal codes.
    codes = model.apply(variables, same).codes
    chex.assert_trees_all_equal(codes, jnp.broadcast_to(codes[:, :, :1], codes.shape))
    assert build(shared=False)[2]["params"]["codebooks"].shape == (M, L, N, D)

  def test_ties_go_to_the_lowest_code(self):
    model, z, _ = build(shared=True)
    equal = jnp.ones((1, L, N, D))
    codes = model.apply({"params": {"codebooks": equal}}, z).codes
    chex.assert_trees_all_equal(codes, jnp.zeros_like(codes))

  def test_wrong_shapes_raise(self):
    model, z, variables = build(shared=True)
    with pytest.raises(ValueError, match="z must be"):
      model.apply(variables, z[:, :2])


def blobs(num_blobs, per_blob, seed):
  """Points [P, D] around num_blobs centers [num_blobs, D] that stand 10 apart or more."""
  centers = 10.0 * np.random.RandomState(seed).permutation(np.eye(D).repeat(2, 0))[:num_blobs]
  centers *= np.where(np.arange(num_blobs) % 2, 1, -1)[:, None]
  centers += np.arange(num_blobs)[:, None] * 20.0
  noise = 0.1 * np.random.RandomState(seed + 1).randn(num_blobs, per_blob, D)
  return (centers[:, None] + noise).reshape(-1, D).astype(np.float32), centers


def test_kmeans_finds_separate_clusters_and_then_what_they_leave_over():
  points, centers = blobs(N, 11, seed=0)
  z = jnp.asarray(points)[:, None]  # One signal.
  found = quantizer.kmeans_init(
    jax.random.key(0), z, num_levels=L, codebook_size=N, num_iters=10, shared=True
  )
  assert found.shape == (1, L, N, D)
  gaps = np.linalg.norm(np.asarray(found)[0, 0, :, None] - centers[None], axis=-1)
  assert sorted(gaps.argmin(1)) == list(range(N)) and gaps.min(1).max() < 0.2
  # Level 2 clusters the noise, and so lowers the error further.
  model = quantizer.ResidualQuantizer(L, N, D, 1, True, init_scale=1.0)
  out = model.apply({"params": {"codebooks": found}}, z)
  errors = jnp.sum((out.residuals - out.embeds) ** 2, axis=(0, 1, 3))
  assert errors[1] < 0.7 * errors[0]


def test_kmeans_gives_each_signal_its_own_codebooks_unless_shared():
  first, _ = blobs(N, 3, seed=0)
  z = jnp.stack([jnp.asarray(first), -jnp.asarray(first)], axis=1)  # [P, 2, D]
  own = quantizer.kmeans_init(
    jax.random.key(0), z, num_levels=1, codebook_size=N, num_iters=10, shared=False
  )
  chex.assert_trees_all_close(
    np.sort(own[0, 0], axis=0), np.sort(-np.asarray(own[1, 0]), axis=0), atol=1e-4
  )


def test_kmeans_survives_few_and_equal_points():
  few = jax.random.normal(jax.random.key(0), (2, 1, D))
  equal = jnp.ones((17, 1, D))
  for z in (few, equal):
    found = quantizer.kmeans_init(
      jax.random.key(1), z, num_levels=L, codebook_size=N, num_iters=3, shared=True
    )
    chex.assert_tree_all_finite(found)
    nearest = quantizer.nearest(z[:, 0], found[0, 0])
    np.testing.assert_allclose(found[0, 0][nearest], z[:, 0], atol=1e-2)


def test_idle_counts_steps_without_use():
  for shared in (True, False):
    groups = 1 if shared else M
    idle = jax.random.randint(jax.random.key(0), (groups, L, N), 0, 9)
    codes = jax.random.randint(jax.random.key(1), (B, L, M), 0, N)
    weights = jnp.ones((B, M)).at[0, 1].set(0.0).at[2].set(0.0)
    expected = np.asarray(idle) + 1
    for b, l, m in np.ndindex(B, L, M):
      if weights[b, m] > 0:
        expected[0 if shared else m, l, codes[b, l, m]] = 0
    np.testing.assert_array_equal(quantizer.update_idle(idle, codes, weights), expected)


class ReviveTest(chex.TestCase):
  @chex.variants(with_jit=True, without_jit=True)
  def test_only_idle_codes_move_onto_distinct_valid_residuals_of_their_level(self):
    revive = self.variant(quantizer.revive)
    for groups in (1, M):
      codebooks = jax.random.normal(jax.random.key(0), (groups, L, N, D))
      residuals = jax.random.normal(jax.random.key(1), (B, M, L, D))
      idle = jnp.tile(jnp.array([0, 9, 3, 4, 5, 1, 0])[None, None, :], (groups, L, 1))
      weights = jnp.ones((B, M)).at[1].set(0.0).at[3, 2].set(0.0)
      moved, counts = revive(jax.random.key(2), codebooks, idle, residuals, weights, 4)
      dead = np.asarray(idle) >= 4
      np.testing.assert_array_equal(np.asarray(moved)[~dead], np.asarray(codebooks)[~dead])
      np.testing.assert_array_equal(counts, np.where(dead, 0, idle))
      for g, l in np.ndindex(groups, L):
        signals = range(M) if groups == 1 else [g]
        allowed = {
          tuple(np.asarray(residuals[b, m, l]))
          for b in range(B)
          for m in signals
          if weights[b, m] > 0
        }
        taken = [tuple(vector) for vector in np.asarray(moved[g, l])[dead[g, l]]]
        assert len(taken) == 3 and len(set(taken)) == 3 and set(taken) <= allowed

  def test_no_valid_row_changes_nothing_and_few_rows_serve_many_codes(self):
    codebooks = jax.random.normal(jax.random.key(0), (1, L, N, D))
    residuals = jax.random.normal(jax.random.key(1), (B, M, L, D))
    idle = jnp.full((1, L, N), 9)
    args = (jax.random.key(2), codebooks, idle, residuals)
    chex.assert_trees_all_equal(quantizer.revive(*args, jnp.zeros((B, M)), 4), (codebooks, idle))
    moved, _ = quantizer.revive(*args, jnp.zeros((B, M)).at[2, 1].set(1.0), 4)
    expected = jnp.broadcast_to(residuals[2, 1][None, :, None], moved.shape)
    chex.assert_trees_all_equal(moved, expected)

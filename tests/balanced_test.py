"""Clusters of equal size against assignments that are known to be the best."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from bbqrec_jax.models import balanced
from tests.reference import tokenizer as reference


@jax.jit
def _assign(costs):
  return balanced.balanced_assignment(costs)


def assign(costs):
  return np.asarray(_assign(costs.astype(np.float32)))


def total(costs, clusters):
  return costs[np.arange(len(costs)), clusters].sum()


def least(costs):
  """The cheapest assignment with clusters of N / K points: each cluster stands K times for one."""
  size = len(costs) // costs.shape[1]
  rows, columns = scipy.optimize.linear_sum_assignment(np.repeat(costs, size, axis=1))
  return costs[rows, columns // size].sum()


@pytest.mark.parametrize(("num_points", "num_clusters"), [(17, 5), (60, 6), (7, 7), (8, 1)])
def test_sizes_differ_by_one_at_most(num_points, num_clusters):
  rng = np.random.default_rng(num_points)
  low, num_high = divmod(num_points, num_clusters)
  # Also where all points want the same cluster, and where they want none more than another.
  wanted = rng.normal(size=(num_points, num_clusters)) + 9.0 * np.arange(num_clusters)[None, :]
  for costs in (wanted, np.zeros_like(wanted)):
    clusters = assign(costs)
    sizes = np.bincount(clusters, minlength=num_clusters)
    assert sorted(sizes) == [low] * (num_clusters - num_high) + [low + 1] * num_high


def test_the_assignment_is_close_to_the_best():
  rng = np.random.default_rng(0)
  ratios = []
  for _ in range(20):
    points, centers = rng.normal(size=(60, 3)), rng.normal(size=(6, 3))
    costs = ((points[:, None] - centers[None]) ** 2).sum(-1)
    clusters = assign(costs)
    ratios.append(total(costs, clusters) / least(costs))
  assert min(ratios) > 0.999  # The best is the best.
  assert np.mean(ratios) < 1.02 and max(ratios) < 1.05


def test_the_oracle_is_the_best_of_all():
  costs = np.random.default_rng(0).normal(size=(6, 3))
  everything = set(itertools.permutations([0, 0, 1, 1, 2, 2]))
  np.testing.assert_allclose(least(costs), min(total(costs, list(p)) for p in everything))


def test_clusters_of_equal_size_that_stand_apart_are_found():
  rng = np.random.default_rng(0)
  centers = np.array([[0.0, 0.0], [20.0, 0.0], [0.0, 20.0], [20.0, 20.0]])
  truth = rng.permutation(np.repeat(np.arange(4), 8))
  points = jnp.asarray(centers[truth] + rng.normal(size=(32, 2)), jnp.float32)
  found = balanced.balanced_kmeans(jax.random.key(0), points, num_clusters=4, num_iters=5)
  assert len(set(zip(truth.tolist(), np.asarray(found).tolist()))) == 4


def test_too_few_points_raise():
  with pytest.raises(ValueError, match="2 points cannot fill 3 clusters"):
    balanced.balanced_assignment(jnp.zeros((2, 3)))


@pytest.mark.parametrize(("num_points", "temperature"), [(40, 0.05), (40, 0.003), (3, 0.003)])
def test_balanced_codes_are_those_of_letter_s_program(num_points, temperature):
  rng = np.random.default_rng(num_points)
  points, codebook = rng.normal(size=(num_points, 4)), rng.normal(size=(7, 4))
  expected = reference.sinkhorn_codes(points, codebook, temperature)
  others = np.concatenate([points, 9.0 * rng.normal(size=(5, 4))])  # Of no weight.
  found = balanced.balanced_codes(
    jnp.asarray(others, jnp.float32),
    jnp.asarray(codebook, jnp.float32),
    jnp.asarray(np.arange(len(others)) < num_points, jnp.float32),
    temperature,
  )
  assert found.dtype == jnp.int32
  np.testing.assert_array_equal(found[:num_points], expected)
  nearest = ((points[:, None] - codebook[None]) ** 2).sum(-1).argmin(1)
  used = lambda codes: np.bincount(codes, minlength=7)
  assert used(expected).max() < used(nearest).max() or used(expected).max() == 1


def test_other_members_are_all_others_of_the_cluster_alike():
  clusters = np.array([2, 0, 2, 1, 0, 2, 1, 2, 0])
  draws = jax.random.bits(jax.random.key(0), (6000,), jnp.uint32)
  members = jax.jit(balanced.other_members)
  for point in range(len(clusters)):
    points = np.full(draws.shape, point, np.int32)
    found = np.bincount(members(draws, points, clusters), minlength=len(clusters))
    others = np.flatnonzero((clusters == clusters[point]) & (np.arange(len(clusters)) != point))
    assert found.sum() == found[others].sum()
    np.testing.assert_allclose(found[others], len(draws) / len(others), rtol=0.1)

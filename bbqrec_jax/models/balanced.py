"""Assignments that use what they assign to evenly, on the device: clusters and codes."""

import functools

import jax
import jax.numpy as jnp

from bbqrec_jax.models import quantizer

_SINKHORN_ITERS = 50
# Of the costs' standard deviation. Random points cost 1 % more than at best, on average, after the
# rounding; less needs more iterations, and does not find better ones.
_TEMPERATURE = 0.2
_SAME_SHARE = 0.01  # Of logarithms; above what float32 makes of a large cost.


@functools.partial(jax.jit, static_argnames=("num_clusters", "num_iters"))
def balanced_kmeans(
  key: jax.Array, points: jax.Array, *, num_clusters: int, num_iters: int
) -> jax.Array:
  """Clusters of points that are as equal in size as their number allows.

  Starts from k-means without balance; every further iteration takes balanced_assignment() by
  squared distance, then the clusters' means.

  Args:
    key: PRNG key.
    points: [N, D] float32.
    num_clusters: at most N.
    num_iters: of the one, and then of the other.

  Returns:
    [N] int32 in [0, num_clusters), which cluster each point is in.
  """

  def assign(centers):
    gaps = points[:, None, :] - centers[None, :, :]
    return balanced_assignment(jnp.sum(gaps**2, axis=-1))

  def lloyd(centers, _):
    clusters = assign(centers)
    sums = jax.ops.segment_sum(points, clusters, num_clusters)
    counts = jax.ops.segment_sum(jnp.ones_like(points[:, :1]), clusters, num_clusters)
    return sums / counts, None  # None is empty.

  centers = quantizer.kmeans(key, points, num_clusters, num_iters)
  return assign(jax.lax.scan(lloyd, centers, None, length=num_iters)[0])


def balanced_assignment(costs: jax.Array) -> jax.Array:
  """Gives every point a cluster, each cluster floor(N / K) or ceil(N / K) points, at a low cost.

  Sinkhorn's normalisation (Cuturi 2013, arXiv:1306.0895) finds the entropic transport plan between
  points and clusters of equal weight. It is then rounded: points take, those whose largest share
  in the plan is largest first, the cluster of their largest share among those that have room left.

  Args:
    costs: [N, K] float32, of each point in each cluster; N at least K.

  Returns:
    [N] int32 in [0, K).
  """
  num_points, num_clusters = costs.shape
  if num_points < num_clusters:
    raise ValueError(f"{num_points} points cannot fill {num_clusters} clusters.")
  scale = jnp.maximum(_TEMPERATURE * jnp.std(costs), 1e-12)  # Also where all costs are equal.
  log_plan = _log_shares(costs / scale, jnp.ones(num_points))
  low, num_high = divmod(num_points, num_clusters)

  def place(sizes, shares):
    may_grow = jnp.sum(sizes > low) < num_high
    has_room = (sizes < low) | ((sizes == low) & may_grow)
    chosen = jnp.argmax(jnp.where(has_room, shares, -jnp.inf))
    return sizes.at[chosen].add(1), chosen

  order = jnp.argsort(-jnp.max(log_plan, axis=1))
  _, chosen = jax.lax.scan(place, jnp.zeros(num_clusters, jnp.int32), log_plan[order])
  return jnp.zeros(num_points, jnp.int32).at[order].set(chosen.astype(jnp.int32))


def balanced_codes(
  points: jax.Array, codebook: jax.Array, weights: jax.Array, temperature: float
) -> jax.Array:
  """A code for every point, at a low squared distance, such that codes share the points evenly.

  As LETTER's program (Wang et al. 2024, arXiv:2405.07314) assigns the last level: the code of a
  point's largest share in the entropic transport plan. Nothing rounds the plan, so that codes are
  used about evenly where points are many, and points get different codes where they are few. A
  point that has several codes to itself, within 1 %, takes the nearest of them, where the program
  takes what rounding makes the largest or, of equal ones, the first.

  Args:
    points: [P, D] float32.
    codebook: [N, D] float32.
    weights: [P] float32; of points of weight 0 nothing depends.
    temperature: above 0, of half the range that the distances have.

  Returns:
    [P] int32 in [0, N).
  """
  points, codebook = jax.lax.stop_gradient((points, codebook))
  center = jnp.mean(codebook, axis=0, keepdims=True)  # Products far from it would round away.
  points, codebook = points - center, codebook - center
  cross = jnp.einsum("pd,nd->pn", points, codebook, precision=jax.lax.Precision.HIGHEST)
  distances = jnp.sum(points**2, axis=-1)[:, None] - 2.0 * cross
  distances += jnp.sum(codebook**2, axis=-1)[None, :]
  counts = weights[:, None] > 0
  highest = jnp.max(jnp.where(counts, distances, -jnp.inf))
  lowest = jnp.min(jnp.where(counts, distances, jnp.inf))
  scale = temperature * ((highest - lowest) / 2 + 1e-5)
  log_plan = _log_shares((distances - lowest) / scale, weights)
  largest = log_plan >= jnp.max(log_plan, axis=1, keepdims=True) - _SAME_SHARE
  return jnp.argmin(jnp.where(largest, distances, jnp.inf), axis=1).astype(jnp.int32)


def _log_shares(costs: jax.Array, weights: jax.Array) -> jax.Array:
  """Logarithms of the shares that points have in clusters, by Sinkhorn's normalisation.

  Args:
    costs: [P, K] float32, in units of the temperature.
    weights: [P] float32, what points weigh; one at least is not 0. Clusters weigh all the same.

  Returns:
    [P, K] float32; the shares of a point sum to 1.
  """
  log_weights = jnp.log(weights)  # -inf: no part in what the clusters' scales become.

  def normalise(scales, _):  # [K]
    points = log_weights - jax.nn.logsumexp(scales[None, :] - costs, axis=1)
    return -jax.nn.logsumexp(points[:, None] - costs, axis=0), None

  scales, _ = jax.lax.scan(normalise, jnp.zeros(costs.shape[1]), None, length=_SINKHORN_ITERS)
  return jax.nn.log_softmax(scales[None, :] - costs, axis=1)


def other_members(draws: jax.Array, points: jax.Array, clusters: jax.Array) -> jax.Array:
  """For each point another one of its cluster, every other one being equally likely.

  Args:
    draws: [B] uint32, random.
    points: [B] int32 in [0, N).
    clusters: [N] int32 in [0, N), of at least two points each.

  Returns:
    [B] int32 in [0, N).
  """
  members = jnp.argsort(clusters, stable=True)  # [N], cluster after cluster.
  place = jnp.argsort(members)  # [N], where each point stands among them.
  sizes = jnp.bincount(clusters, length=len(clusters))
  first = jnp.cumsum(sizes) - sizes  # Of each cluster, in members.
  mine = clusters[points]
  size = jnp.maximum(sizes[mine], 2)
  ahead = 1 + (draws % (size - 1).astype(jnp.uint32)).astype(jnp.int32)
  at = (place[points] - first[mine] + ahead) % size
  return members[first[mine] + at].astype(jnp.int32)

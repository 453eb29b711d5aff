"""Clusters of equal size, on the device: k-means whose every assignment is balanced."""

import functools

import jax
import jax.numpy as jnp

from bbqrec_jax.models import quantizer

_SINKHORN_ITERS = 50
# Of the costs' standard deviation. Random points cost 1 % more than at best, on average, after the
# rounding; less needs more iterations, and does not find better ones.
_TEMPERATURE = 0.2


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

  def normalise(log_plan, _):
    log_plan -= jax.nn.logsumexp(log_plan, axis=0, keepdims=True)
    return log_plan - jax.nn.logsumexp(log_plan, axis=1, keepdims=True), None

  log_plan, _ = jax.lax.scan(normalise, -costs / scale, None, length=_SINKHORN_ITERS)
  low, num_high = divmod(num_points, num_clusters)

  def place(sizes, shares):
    may_grow = jnp.sum(sizes > low) < num_high
    has_room = (sizes < low) | ((sizes == low) & may_grow)
    chosen = jnp.argmax(jnp.where(has_room, shares, -jnp.inf))
    return sizes.at[chosen].add(1), chosen

  order = jnp.argsort(-jnp.max(log_plan, axis=1))
  _, chosen = jax.lax.scan(place, jnp.zeros(num_clusters, jnp.int32), log_plan[order])
  return jnp.zeros(num_points, jnp.int32).at[order].set(chosen.astype(jnp.int32))


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

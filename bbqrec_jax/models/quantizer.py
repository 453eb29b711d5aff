"""The residual quantizer: its codebooks, their initialisation, and the revival of dead codes."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from bbqrec_jax.models import layers


class Quantized(NamedTuple):
  codes: jax.Array  # [B, L, M] int32 in [0, N): the items' semantic IDs.
  latent: jax.Array  # [B, M, D] float32, q: sum of the code vectors; its gradient goes to z.
  residuals: jax.Array  # [B, M, L, D] float32, what each level was asked to quantize.
  embeds: jax.Array  # [B, M, L, D] float32, the code vector each level chose.


class ResidualQuantizer(nn.Module):
  """L codebooks of N code vectors; each level quantizes what the levels before it left over.

  BBQRec Eqs. (5)-(7); Zeghidour et al. 2021 (SoundStream, arXiv:2107.03312), Alg. 1. The sum of
  Eq. (7) runs over L levels (the paper prints L + 1). Codebooks learn from `residuals` and
  `embeds` alone, by `losses.quantization_losses`: no gradient reaches them through `latent`.

  The parameter `codebooks` is [G, L, N, D]: G = 1 if the signals share one array, else G = M.
  """

  num_levels: int  # L.
  codebook_size: int  # N.
  latent_dim: int  # D.
  num_signals: int  # M.
  shared: bool
  init_scale: float  # Standard deviation of the codebooks before k-means sets them.

  def setup(self):
    groups = 1 if self.shared else self.num_signals
    shape = (groups, self.num_levels, self.codebook_size, self.latent_dim)
    self.codebooks = self.param("codebooks", nn.initializers.normal(self.init_scale), shape)

  def __call__(self, z: jax.Array, choose_last: Callable | None = None) -> Quantized:
    """Quantizes z, [B, M, D] float32; distance ties go to the lowest code.

    Args:
      choose_last: (residuals [R, D], codebook [N, D]) -> [R] int32, the last level's codes in place
        of the nearest ones.

    Raises ValueError if z has another shape.
    """
    if z.ndim != 3 or z.shape[1:] != (self.num_signals, self.latent_dim):
      raise ValueError(f"z must be [B, {self.num_signals}, {self.latent_dim}], got {z.shape}.")

    def level(residual, codebook, choose=nearest):  # [G, R, D], [G, N, D]
      codes = jax.vmap(choose)(residual, codebook)  # [G, R]
      embed = jnp.take_along_axis(codebook, codes[:, :, None], axis=1)  # [G, R, D]
      # Stopped, so that a later level's loss does not train this level's codebook.
      return residual - jax.lax.stop_gradient(embed), (codes, residual, embed)

    groups = self.codebooks.shape[0]
    levels = jnp.swapaxes(self.codebooks, 0, 1)  # [L, G, N, D]
    if choose_last is None:
      _, per_level = jax.lax.scan(level, _group(z, groups), levels)
    else:
      residual, per_level = jax.lax.scan(level, _group(z, groups), levels[:-1])
      _, last = level(residual, levels[-1], choose_last)
      per_level = jax.tree.map(lambda x, y: jnp.concatenate([x, y[None]]), per_level, last)
    # Each [L, G, R, ...] -> [B, M, L, ...].
    codes, residuals, embeds = (
      _ungroup(jnp.moveaxis(x, 0, 2), self.num_signals) for x in per_level
    )
    stop = jax.lax.stop_gradient
    # The value is exactly q, the gradient that of z: the straight-through estimator.
    latent = stop(jnp.sum(embeds, axis=2)) + (z - stop(z))
    return Quantized(jnp.swapaxes(codes, 1, 2), latent, residuals, embeds)

  def lookup(self, codes: jax.Array) -> jax.Array:
    """q of known codes: [B, M, D] float32 for codes [B, L, M] int32 in [0, N)."""
    groups = self.codebooks.shape[0]
    codes = _group(jnp.swapaxes(codes, 1, 2), groups)  # [G, R, L]
    group = jnp.arange(groups)[:, None, None]
    level = jnp.arange(self.num_levels)[None, None, :]
    embeds = self.codebooks[group, level, codes]  # [G, R, L, D]
    return jnp.sum(_ungroup(embeds, self.num_signals), axis=2)


def nearest(points: jax.Array, codebook: jax.Array) -> jax.Array:
  """Index of the code vector nearest to each point, the lowest on ties: BBQRec Eq. (5).

  Args:
    points: [R, D] float32.
    codebook: [N, D] float32.

  Returns:
    [R] int32 in [0, N).
  """
  # ||r - c||^2 less ||r||^2, which is the same for every code.
  cross = jnp.einsum("rd,nd->rn", points, codebook, precision=jax.lax.Precision.HIGHEST)
  distances = jnp.sum(codebook**2, axis=-1)[None, :] - 2.0 * cross
  return jnp.argmin(distances, axis=-1).astype(jnp.int32)


@functools.partial(jax.jit, static_argnames=("num_levels", "codebook_size", "num_iters", "shared"))
def kmeans_init(
  key: jax.Array,
  z: jax.Array,
  *,
  num_levels: int,
  codebook_size: int,
  num_iters: int,
  shared: bool,
) -> jax.Array:
  """Codebooks by residual k-means: each level clusters what the levels before it left over.

  Args:
    key: PRNG key.
    z: [P, M, D] float32, latents of a sample of items; all signals are clustered together if
      `shared`. Where fewer than N points are given they are repeated, with a little noise.
    num_levels: L.
    codebook_size: N.
    num_iters: Lloyd iterations a level.
    shared: whether the signals use one array.

  Returns:
    [G, L, N, D] float32, the value of ResidualQuantizer's `codebooks`.
  """
  groups = 1 if shared else z.shape[1]

  def fit(key, points):  # [R, D] -> [L, N, D]
    noise_key, key = jax.random.split(key)
    repeats = -(-codebook_size // points.shape[0])
    if repeats > 1:
      points = jnp.tile(points, (repeats, 1))
      points += 1e-3 * jnp.std(points) * jax.random.normal(noise_key, points.shape)

    def level(residual, level_key):
      centers = kmeans(level_key, residual, codebook_size, num_iters)
      return residual - centers[nearest(residual, centers)], centers

    return jax.lax.scan(level, points, jax.random.split(key, num_levels))[1]

  # One group after the other: each compares all its points with all its centers.
  return jax.lax.map(lambda group: fit(*group), (jax.random.split(key, groups), _group(z, groups)))


def kmeans(key: jax.Array, points: jax.Array, num_clusters: int, num_iters: int) -> jax.Array:
  """Lloyd's algorithm: centers [N, D] of points [R, D].

  Seeded by k-means++ (Arthur and Vassilvitskii 2007), so that equal points, such as the latents
  of items without an image, do not take many centers.
  """
  first_key, seed_key, empty_key = jax.random.split(key, 3)

  def seed(state, key):  # Squared distances to the nearest center so far [R], latest center [D].
    distances, center = state
    distances = jnp.minimum(distances, jnp.sum((points - center[None, :]) ** 2, axis=-1))
    chosen = points[jax.random.categorical(key, jnp.log(distances))]
    return (distances, chosen), center

  start = points[jax.random.randint(first_key, (), 0, len(points))]
  far = jnp.full(len(points), jnp.inf)
  _, centers = jax.lax.scan(seed, (far, start), jax.random.split(seed_key, num_clusters))
  improve = lambda centers, key: (lloyd(key, points, centers), None)
  return jax.lax.scan(improve, centers, jax.random.split(empty_key, num_iters))[0]


def lloyd(key: jax.Array, points: jax.Array, centers: jax.Array) -> jax.Array:
  """One iteration of Lloyd's algorithm: centers [N, D], better ones for points [R, D].

  The sum of the squared distances to the nearest center does not grow. A center that has lost its
  points restarts at a random one.
  """
  num_clusters = len(centers)
  codes = nearest(points, centers)
  counts = jax.ops.segment_sum(jnp.ones_like(points[:, 0]), codes, num_clusters)[:, None]
  sums = jax.ops.segment_sum(points, codes, num_clusters)
  others = points[jax.random.randint(key, (num_clusters,), 0, len(points))]
  return jnp.where(counts > 0, sums / jnp.maximum(counts, 1.0), others)


def update_idle(idle: jax.Array, codes: jax.Array, weights: jax.Array) -> jax.Array:
  """Counts one more step for every code that no valid row uses; the others start again at 0.

  Args:
    idle: [G, L, N] int32, steps since each code was used.
    codes: [B, L, M] int32, the step's codes.
    weights: [B, M] float32, rows with weight 0 do not count as use.

  Returns:
    [G, L, N] int32.
  """
  groups, num_levels, _ = idle.shape
  codes = _group(jnp.swapaxes(codes, 1, 2), groups)  # [G, R, L]
  valid = _group(weights > 0, groups)  # [G, R]
  group = jnp.arange(groups)[:, None, None]
  level = jnp.arange(num_levels)[None, None, :]
  used = jnp.zeros(idle.shape, bool).at[group, level, codes].max(valid[:, :, None])
  return jnp.where(used, 0, idle + 1)


def revive(
  key: jax.Array,
  codebooks: jax.Array,
  idle: jax.Array,
  residuals: jax.Array,
  weights: jax.Array,
  patience: int,
) -> tuple[jax.Array, jax.Array]:
  """Moves every code that has been idle for `patience` steps onto a random residual.

  Each dead code of a codebook gets another residual that a valid row of the batch asked this
  level to quantize, as long as there are enough of them. Without any valid row nothing changes.

  Args:
    key: PRNG key.
    codebooks: [G, L, N, D] float32.
    idle: [G, L, N] int32, steps since each code was used.
    residuals: [B, M, L, D] float32, of Quantized.
    weights: [B, M] float32, residuals of rows with weight 0 are not taken.
    patience: steps.

  Returns:
    (codebooks [G, L, N, D], idle [G, L, N] with 0 for the revived).
  """
  groups, num_levels, _, _ = codebooks.shape
  residuals = jnp.swapaxes(_group(residuals, groups), 1, 2)  # [G, L, R, D]
  valid = _group(weights > 0, groups)  # [G, R]

  def revive_level(key, codebook, idle, residuals, valid):  # [N, D], [N], [R, D], [R]
    # Hashed, since a generator of random bits may give others where devices share the rows.
    draws = layers.hashed_bits(jax.random.bits(key, (2,), jnp.uint32), valid.shape)
    order = jnp.lexsort((draws, ~valid))  # [R], valid rows first, in random order.
    num_valid = jnp.sum(valid)
    dead = (idle >= patience) & (num_valid > 0)  # [N]
    turn = (jnp.cumsum(dead) - 1) % jnp.maximum(num_valid, 1)  # The k-th dead code takes row k.
    moved = residuals[order[turn]]  # [N, D]
    return jnp.where(dead[:, None], moved, codebook), jnp.where(dead, 0, idle)

  per_level = jax.vmap(revive_level, in_axes=(0, 0, 0, 0, None))
  keys = jax.random.split(key, (groups, num_levels))
  return jax.vmap(per_level)(keys, codebooks, idle, residuals, valid)


def _group(x: jax.Array, groups: int) -> jax.Array:
  """[B, M, ...] -> [G, R, ...]: the R rows that each of the G codebook arrays serves."""
  return x.reshape(1, -1, *x.shape[2:]) if groups == 1 else jnp.swapaxes(x, 0, 1)


def _ungroup(x: jax.Array, num_signals: int) -> jax.Array:
  """[G, R, ...] -> [B, M, ...]: undoes _group."""
  if x.shape[0] == 1:
    return x.reshape(-1, num_signals, *x.shape[2:])
  return jnp.swapaxes(x, 0, 1)

"""Optimized product quantization: vectors as codes of subspaces, turned so that little is lost.

Ge, He, Ke and Sun 2013 ("Optimized Product Quantization for Approximate Nearest Neighbor Search",
CVPR), the non-parametric solution, which starts from the subspaces as they are.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bbqrec_jax.models import quantizer

_KMEANS_ITERS = 10  # Of the product quantizer that the rotations start from.


class ProductQuantizer(NamedTuple):
  """S subspaces of D' dimensions; F' = S * D' is F, filled up with zeros to a multiple of S."""

  rotation: jax.Array  # [F', F'] float32, orthogonal: a row vector x becomes x @ rotation.
  codebooks: jax.Array  # [S, N, D'] float32, of rotated vectors.

  def encode(self, x: jax.Array) -> jax.Array:
    """The code vector of each subspace that is nearest: [P, F] float32 -> [P, S] int32."""
    rotated = _matmul(_filled(x, len(self.rotation)), self.rotation)
    return _nearest(_subspaces(rotated, len(self.codebooks)), self.codebooks).T


@functools.partial(jax.jit, static_argnames=("num_subspaces", "codebook_size", "num_iters"))
def fit(
  key: jax.Array, x: jax.Array, *, num_subspaces: int, codebook_size: int, num_iters: int
) -> ProductQuantizer:
  """Alternates between the codebooks of the rotated vectors and the rotation to the codebooks.

  Each iteration takes one step of k-means in every subspace, as in the paper, and then the rotation
  that brings the vectors nearest to their code vectors (orthogonal Procrustes). Neither step makes
  the squared error larger, so that it is never above that of plain product quantization.

  Args:
    key: PRNG key.
    x: [P, F] float32, a sample of what will be encoded; P > 0.
    num_subspaces: S.
    codebook_size: N.
    num_iters: 0 for product quantization without rotation.

  Raises ValueError where there are more subspaces than dimensions.
  """
  if not 0 < num_subspaces <= x.shape[1]:
    raise ValueError(f"{num_subspaces} subspaces of {x.shape[1]} dimensions.")
  x = _filled(x, -(-x.shape[1] // num_subspaces) * num_subspaces)
  init_key, key = jax.random.split(key)
  codebooks = quantizer.kmeans_init(
    init_key,
    jnp.swapaxes(_subspaces(x, num_subspaces), 0, 1),  # A subspace is a signal with its own codes.
    num_levels=1,
    codebook_size=codebook_size,
    num_iters=_KMEANS_ITERS,
    shared=False,
  )[:, 0]  # [S, N, D']

  def improve(state, key):
    rotation, codebooks = state
    points = _subspaces(_matmul(x, rotation), num_subspaces)  # [S, P, D']
    keys = jax.random.split(key, num_subspaces)
    codebooks = jax.lax.map(lambda one: quantizer.lloyd(*one), (keys, points, codebooks))
    codes = _nearest(points, codebooks)
    wanted = _chosen(codebooks, codes)  # [P, F']
    u, _, vt = jnp.linalg.svd(_matmul(x.T, wanted))
    return (_matmul(u, vt), codebooks), None

  start = (jnp.eye(x.shape[1]), codebooks)
  (rotation, codebooks), _ = jax.lax.scan(improve, start, jax.random.split(key, num_iters))
  return ProductQuantizer(rotation, codebooks)


def _subspaces(x: jax.Array, num_subspaces: int) -> jax.Array:
  """[P, S * D'] -> [S, P, D']."""
  return jnp.swapaxes(x.reshape(len(x), num_subspaces, -1), 0, 1)


def _nearest(points: jax.Array, codebooks: jax.Array) -> jax.Array:
  """[S, P, D'], [S, N, D'] -> [S, P] int32; one subspace after the other bounds the memory."""
  return jax.lax.map(lambda one: quantizer.nearest(*one), (points, codebooks))


def _chosen(codebooks: jax.Array, codes: jax.Array) -> jax.Array:
  """The code vectors of codes [S, P], of all subspaces side by side: [P, S * D']."""
  chosen = jax.vmap(lambda codebook, codes: codebook[codes])(codebooks, codes)  # [S, P, D']
  return jnp.swapaxes(chosen, 0, 1).reshape(codes.shape[1], -1)


def _filled(x: jax.Array, size: int) -> jax.Array:
  """[P, F] with zeros behind: [P, size]."""
  return jnp.pad(x, ((0, 0), (0, size - x.shape[1])))


def _matmul(a: jax.Array, b: jax.Array) -> jax.Array:
  # Rounded products would leave a rotation that is not quite one.
  return jnp.matmul(a, b, precision="highest")

"""Assigning codes: the matrix-multiplication form of the nearest code against plain differences.

36,000 latents (12,000 items of three signals), three residual levels of 256 codes of width 128.
`assign_vs_naive` is the naive form's time over ours.

python benchmarks/quantize.py --out=results/benchmarks/quantize.json
"""

import argparse
import functools
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from lib import harness

from bbqrec_jax.models import quantizer

SIZES = dict(points=36_000, levels=3, codes=256, width=128)
QUICK_SIZES = dict(points=501, levels=3, codes=17, width=6)


def add_options(parser: argparse.ArgumentParser) -> None:
  harness.add_rounds(parser, default=15)


def run(args: argparse.Namespace) -> dict:
  sizes = QUICK_SIZES if args.quick else SIZES
  points, codebooks = make_data(**sizes)
  forms = dict(naive=naive_nearest, ours=quantizer.nearest)
  assigns = {name: functools.partial(assign, fn, points, codebooks) for name, fn in forms.items()}
  taken = harness.rounds(assigns, args.rounds)
  differing = np.sum(np.asarray(assigns["ours"]()) != np.asarray(assigns["naive"]()))
  return dict(
    ratios=dict(assign_vs_naive=harness.ratio(taken["naive"], taken["ours"])),
    details=dict(sizes=sizes, seconds=harness.summary(taken), differing_codes=int(differing)),
  )


def make_data(points: int, levels: int, codes: int, width: int) -> tuple[jax.Array, jax.Array]:
  """Latents [R, D] of unit length, and codebooks [L, N, D] that shrink from level to level."""
  rng = np.random.default_rng(0)
  latents = rng.normal(size=(points, width))
  latents /= np.linalg.norm(latents, axis=1, keepdims=True)
  scales = 0.5 ** np.arange(levels)[:, None, None] / np.sqrt(width)
  codebooks = scales * rng.normal(size=(levels, codes, width))
  return jnp.asarray(latents, jnp.float32), jnp.asarray(codebooks, jnp.float32)


@functools.partial(jax.jit, static_argnums=0)
def assign(nearest_fn: Callable, points: jax.Array, codebooks: jax.Array) -> jax.Array:
  """Residual quantization of points [R, D] by codebooks [L, N, D]: codes [L, R] int32."""

  def level(residual, codebook):
    codes = nearest_fn(residual, codebook)
    return residual - codebook[codes], codes

  return jax.lax.scan(level, points, codebooks)[1]


def naive_nearest(points: jax.Array, codebook: jax.Array) -> jax.Array:
  """argmin_n ||r - c_n||^2 as it is written: [R, D], [N, D] -> [R] int32."""
  differences = points[:, None, :] - codebook[None, :, :]
  return jnp.argmin(jnp.sum(differences**2, axis=-1), axis=-1).astype(jnp.int32)


if __name__ == "__main__":
  sys.exit(harness.main(run, __doc__, add_options))

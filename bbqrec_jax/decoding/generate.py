"""Histories in, items out: the generator's model and the beam search in one jitted program."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bbqrec_jax.decoding import beam
from bbqrec_jax.decoding import trie as trie_lib
from bbqrec_jax.models import generator


class Catalogue(NamedTuple):
  """What the generator knows of the items; frozen."""

  codes: jax.Array  # [I, L, M] int32 semantic IDs.
  vectors: jax.Array  # [I, M * D] float32 stage-one vectors v.


def lookup(catalogue: Catalogue, history: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  """(codes [B, T, L, M], vectors [B, T, M * D], mask [B, T]) of a history [B, T], -1 = padding."""
  items = jnp.maximum(history, 0)
  return catalogue.codes[items], catalogue.vectors[items], history >= 0


def make_generate(model: generator.Model, *, num_beams: int, num_results: int) -> Callable:
  """Builds jitted (params, catalogue, trie, history [B, T] int32) -> beam.Beams [B, num_results].

  The encoder runs once per user; beams share its keys and values.
  """

  @jax.jit
  def generate(params, catalogue: Catalogue, trie: trie_lib.Trie, history: jax.Array) -> beam.Beams:
    variables = {"params": params}
    return beam.beam_search(
      lambda level, tokens, cache: model.apply(variables, level, tokens, cache, method="step"),
      generator.reorder,
      model.apply(variables, *lookup(catalogue, history), method="start"),
      trie,
      num_beams=num_beams,
      num_results=num_results,
    )

  return generate

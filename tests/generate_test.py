"""The beam search over the real generator against scoring every item without a cache."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bbqrec_jax.decoding import beam, generate
from bbqrec_jax.decoding import trie as trie_lib
from bbqrec_jax.models import generator

B, T, I, L, M, N, D = 5, 3, 29, 3, 2, 7, 4
HISTORY = np.array(
  [[3, 8, 28], [17, 5, -1], [11, -1, -1], [17, 5, 17], [8, 0, -1]], np.int32
)  # [B, T]


@functools.cache
def setup(encoder="bidirectional"):
  """(model, params away from their start, catalogue, trie, popularity); some items collide."""
  rng = np.random.default_rng(0)
  codes = rng.integers(0, N, (I, L, M)).astype(np.int32)
  codes[::4] = codes[2]
  codes[5:9, :2] = codes[2, :2]  # Shared prefixes, beyond those of chance.
  popularity = rng.integers(0, 3, I)
  catalogue = generate.Catalogue(
    jnp.asarray(codes), jnp.asarray(rng.normal(size=(I, M * D)), jnp.float32)
  )
  model = generator.Model(
    num_levels=L, codebook_size=N, num_signals=M, num_buckets=11, code_dim=6, model_dim=16,
    num_heads=2, head_dim=8, ff_dim=20, num_encoder_layers=1, num_decoder_layers=1, encoder=encoder,
  )  # fmt: skip
  inputs = generate.lookup(catalogue, jnp.asarray(HISTORY))
  shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs, inputs[0][:, :1])["params"]
  params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape, scale=0.5), x.dtype), shapes)
  return model, params, catalogue, trie_lib.build(codes, N, popularity), popularity


@functools.cache
def _narrow(max_history=T):
  """A search with a beam narrower than the catalogue, compiled once for the tests that use it."""
  model, params, catalogue, trie, _ = setup()
  history = jax.ShapeDtypeStruct((B, max_history), jnp.int32)
  search = generate.make_generate(model, num_beams=4, num_results=6)
  return search.lower(params, catalogue, trie, history).compile()


@functools.partial(jax.jit, static_argnums=0)
def _log_probs(model, params, catalogue):
  variables, inputs = {"params": params}, generate.lookup(catalogue, jnp.asarray(HISTORY))
  memory = model.apply(variables, *inputs, method="encode")
  targets = jnp.broadcast_to(catalogue.codes[None], (B, I, L, M))
  logits = model.apply(variables, targets, memory, method="decode")
  return jax.nn.log_softmax(logits)  # [B, I, L, M, N]


def all_scores(model, params, catalogue):
  """log P(item | history) of every item: [B, I], by the decoder without cache, trie and beams."""
  log_probs = np.asarray(_log_probs(model, params, catalogue), np.float64)
  codes = np.asarray(catalogue.codes)[None, ..., None]
  return np.take_along_axis(log_probs, codes, axis=-1).sum(axis=(2, 3, 4))


def test_lookup_masks_padding():
  _, _, catalogue, _, _ = setup()
  codes, vectors, mask = generate.lookup(catalogue, jnp.asarray(HISTORY))
  chex.assert_shape((codes, vectors, mask), ((B, T, L, M), (B, T, M * D), (B, T)))
  for b, t in np.ndindex(B, T):
    assert mask[b, t] == (HISTORY[b, t] >= 0)
    if mask[b, t]:
      np.testing.assert_array_equal(codes[b, t], catalogue.codes[HISTORY[b, t]])
      np.testing.assert_array_equal(vectors[b, t], catalogue.vectors[HISTORY[b, t]])


@pytest.mark.parametrize("encoder", generator.ENCODERS)
def test_a_beam_as_wide_as_the_catalogue_ranks_every_item(encoder):
  model, params, catalogue, trie, popularity = setup(encoder)
  expected = all_scores(model, params, catalogue)
  found = generate.make_generate(model, num_beams=I, num_results=I)(
    params, catalogue, trie, jnp.asarray(HISTORY)
  )
  codes = np.asarray(catalogue.codes).reshape(I, -1).tolist()
  leaders = [codes.index(code) for code in codes]  # Items that collide get one score exactly.
  for b in range(B):
    scores = expected[b, leaders]
    order = np.lexsort((range(I), -popularity, -scores)).tolist()  # The last key leads.
    assert found.items[b].tolist() == order
    np.testing.assert_allclose(found.scores[b], expected[b, order], atol=1e-4)
  assert len({tuple(row) for row in found.items.tolist()}) == B  # Users differ: no constant model.


def test_a_narrow_beam_gives_distinct_items_with_their_scores():
  model, params, catalogue, trie, _ = setup()
  expected = all_scores(model, params, catalogue)
  found = _narrow()(params, catalogue, trie, jnp.asarray(HISTORY))
  chex.assert_shape(tuple(found), ((B, 6), (B, 6), (B,)))
  for b in range(B):
    items = found.items[b][found.items[b] >= 0]
    assert len(items) >= 4  # Each beam leads to an item.
    assert len(set(items.tolist())) == len(items) and int(items.max()) < I
    np.testing.assert_allclose(found.scores[b, : len(items)], expected[b, items], atol=1e-4)
    assert (np.diff(found.scores[b, : len(items)]) <= 0).all()
    assert (found.scores[b, len(items) :] == -jnp.inf).all()


def test_the_program_sorts_no_candidates():
  program = _narrow().as_text()
  assert program.count('custom_call_target="TopK"') == L
  assert not re.search(r" sort\(", program)  # XLA's way of a top_k that it does not know as one.


def test_more_padding_changes_nothing():
  _, params, catalogue, trie, _ = setup()
  found = _narrow()(params, catalogue, trie, jnp.asarray(HISTORY))
  padded = np.pad(HISTORY, ((0, 0), (0, 2)), constant_values=-1)
  wider = _narrow(T + 2)(params, catalogue, trie, jnp.asarray(padded))
  chex.assert_trees_all_equal(wider.items, found.items)
  chex.assert_trees_all_close(wider.scores, found.scores, atol=1e-5)


def test_other_parameters_and_histories_compile_nothing(monkeypatch):
  traces, search = [], beam.beam_search
  traced = lambda *args, **kwargs: traces.append(1) or search(*args, **kwargs)
  monkeypatch.setattr(beam, "beam_search", traced)
  model, params, catalogue, trie, _ = setup()
  make = generate.make_generate(model, num_beams=5, num_results=7)
  found = make(params, catalogue, trie, jnp.asarray(HISTORY))
  other = make(jax.tree.map(lambda x: -x, params), catalogue, trie, jnp.asarray(HISTORY[::-1]))
  assert other.items.tolist() != found.items.tolist()
  assert len(traces) == 1

"""Similarity-enhanced attention: each back end against the equations as printed."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bbqrec_jax.models import attention, attention_pallas, attention_xla, generator, layers
from tests.reference import attention as reference

B, H, L, T, D, K = 7, 2, 3, 5, 11, 12  # K + 1 = 13 rows.
BACKENDS = ("reference", "xla", "pallas")


def make_inputs(key, batch_size=B, num_items=T, head_dim=D):
  """(scores, values, table, buckets) with some keys masked."""
  keys = jax.random.split(key, 5)
  num_tokens = L * num_items
  scores = jax.random.normal(keys[0], (batch_size, H, num_tokens, num_tokens))
  mask = jax.random.bernoulli(keys[1], 0.7, (batch_size, 1, 1, num_tokens)).at[..., 0].set(True)
  values = jax.random.normal(keys[2], (batch_size, num_tokens, H, head_dim))
  table = jax.random.normal(keys[3], (K + 1, H, head_dim))
  buckets = jax.random.randint(keys[4], (batch_size, num_items, num_items), 0, K + 1)
  return jnp.where(mask, scores, layers.MASKED), values, table, buckets


def attend(backend, scores, values, table, buckets):
  if backend == "pallas":  # Without a GPU.
    return attention_pallas.sim_attention(scores, values, table, buckets, interpret=True)
  return attention.make_sim_attention(table, buckets, backend)(scores, values)


def with_gradients(backend, scores, values, table, buckets, grad):
  """(result, its gradients with respect to scores, values and table)."""
  fn = lambda *args: attend(backend, *args, buckets)
  out, vjp = jax.vjp(fn, scores, values, table)
  return out, vjp(grad)


def make_case(key, *sizes):
  """Inputs, a cotangent of the result, and what should come out."""
  inputs = make_inputs(key, *sizes)
  grad = jax.random.normal(jax.random.fold_in(key, 1), inputs[1].shape)
  arrays = [np.asarray(x) for x in (*inputs, grad)]
  expected = (reference.sim_attention(*arrays[:-1]), reference.sim_attention_gradients(*arrays))
  return (*inputs, grad), expected


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_back_end_is_the_equation_and_has_its_gradients(backend, key):
  inputs, expected = make_case(key)
  got = jax.jit(with_gradients, static_argnums=0)(backend, *inputs)
  chex.assert_trees_all_close(got, expected, atol=1e-5)


def test_kernel_fits_sizes_at_and_behind_a_power_of_two(key):
  inputs, expected = make_case(key, 1, 17, 16)
  got = jax.jit(with_gradients, static_argnums=0)("pallas", *inputs)
  chex.assert_trees_all_close(got, expected, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_table_of_ones_gives_plain_attention(backend, key):
  scores, values, table, buckets = make_inputs(key)
  out = attend(backend, scores, values, jnp.ones_like(table), buckets)
  chex.assert_trees_all_close(out, reference.attention(scores, values), atol=1e-5)


def test_slices_of_a_batch_change_nothing(key, monkeypatch):
  monkeypatch.setattr(attention_xla, "_SLICE_BYTES", 0)  # Two histories at a time, and B is odd.
  inputs, expected = make_case(key)
  program = jax.jit(lambda *args: with_gradients("xla", *args)).lower(*inputs)
  assert "stablehlo.while" in program.as_text()
  chex.assert_trees_all_close(program.compile()(*inputs), expected, atol=1e-5)


def test_xla_keeps_a_fraction_of_the_naive_forms_temporaries(key):
  inputs = jax.eval_shape(lambda key: make_inputs(key, 64, 20, 16), key)
  temporaries = {
    backend: jax.jit(with_gradients, static_argnums=0)
    .lower(backend, *inputs, inputs[1])
    .compile()
    .memory_analysis()
    .temp_size_in_bytes
    for backend in ("reference", "xla")
  }
  assert 8 * temporaries["xla"] < temporaries["reference"]


def test_nan_in_the_table_reaches_the_result(key):
  scores, values, table, buckets = make_inputs(key)
  out = attend("xla", scores, values, table.at[0, 0, 0].set(jnp.nan), buckets)
  assert np.all(np.isnan(out))


def test_kernel_sums_half_precision_in_float32(key):
  *arrays, buckets, grad = make_case(key)[0]
  half = [x.astype(jnp.bfloat16) for x in (*arrays, grad)]
  out, grads = jax.jit(with_gradients, static_argnums=0)("pallas", *half[:3], buckets, half[3])
  exact = [np.asarray(x, np.float64) for x in half]
  expected = reference.sim_attention(*exact[:3], np.asarray(buckets))
  # No more is lost than by one rounding of the result.
  np.testing.assert_allclose(np.asarray(out, np.float64), expected, rtol=2**-8, atol=1e-6)
  assert [x.dtype for x in (out, *grads)] == [jnp.bfloat16] * 4


def test_kernel_lowers_to_triton_and_makes_no_array_of_pairs(key):
  *arrays, buckets = make_inputs(key)
  fn = lambda *args: jax.vjp(lambda *x: attention_pallas.sim_attention(*x, buckets), *args)[1](
    args[1]
  )
  text = jax.jit(fn).trace(*arrays).lower(lowering_platforms=("cuda",)).as_text()
  assert text.count("__gpu$xla.gpu.triton") == 2  # Forward and backward.
  assert f"{T}x{T}x{H}" not in text


def test_an_encoder_looks_similarities_up_once_for_all_layers(key):
  model = generator.Model(
    num_levels=L, codebook_size=7, num_signals=2, num_buckets=K, code_dim=4, model_dim=16,
    num_heads=H, head_dim=D, ff_dim=8, num_encoder_layers=3, num_decoder_layers=1,
  )  # fmt: skip
  codes, mask = jnp.zeros((B, T, L, 2), jnp.int32), jnp.ones((B, T), bool)
  vectors = jax.random.normal(key, (B, T, 8))
  variables = jax.eval_shape(model.init, key, codes, vectors, mask, codes[:, :1])

  def loss(variables):
    return jnp.sum(model.apply(variables, codes, vectors, mask, codes[:, :1]))

  found = list(equations(jax.make_jaxpr(jax.grad(loss))(variables).jaxpr))
  table = (K + 1, H, D)
  uses = lambda name: sum(
    eqn.primitive.name == name and eqn.invars[0].aval.shape == table for eqn in found
  )
  assert (uses("gather"), uses("scatter-add")) == (1, 1)
  assert sum(eqn.primitive.name == "round" for eqn in found) == 1  # The buckets.


def equations(jaxpr):
  """Every equation of a jaxpr and of those inside it."""
  for eqn in jaxpr.eqns:
    yield eqn
    for inner in jax.tree.leaves(eqn.params, is_leaf=lambda x: hasattr(x, "jaxpr")):
      if hasattr(inner, "jaxpr"):
        yield from equations(inner.jaxpr)
      elif hasattr(inner, "eqns"):
        yield from equations(inner)


def test_shapes_that_do_not_match_raise(key):
  scores, values, table, buckets = make_inputs(key)
  sim_attention = attention.make_sim_attention(table, buckets)
  with pytest.raises(ValueError, match="do not match"):
    sim_attention(scores, values[:, :-1])
  with pytest.raises(ValueError, match="do not match"):
    sim_attention(scores[:, :, :-1, :-1], values[:, :-1])  # No whole number of levels.


def test_back_ends_that_cannot_be_had_raise(key):
  _, _, table, buckets = make_inputs(key)
  with pytest.raises(ValueError, match=r"one of .*'xla'.* got 'cuda'"):
    attention.make_sim_attention(table, buckets, "cuda")
  if jax.default_backend() != "gpu":
    with pytest.raises(ValueError, match="needs a GPU"):
      attention.make_sim_attention(table, buckets, "pallas")


def test_buckets_are_those_of_the_equation_and_span_0_to_k():
  vectors = np.array([[[1.0, 0.0], [2.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [9.0, 9.0]]], np.float32)
  mask = np.array([[True, True, True, True, False]])
  buckets = attention.similarity_buckets(jnp.asarray(vectors), jnp.asarray(mask), 100)
  # Same, same, opposite, right angle, padding.
  assert buckets[0, 0].tolist() == [100, 100, 0, 50, 50]
  random = np.random.default_rng(0).normal(size=(2, T, 7)).astype(np.float32)
  cosine = np.array(
    [[[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in row] for a in row] for row in random]
  )
  expected = np.round((cosine + 1) / 2 * 13)
  got = attention.similarity_buckets(jnp.asarray(random), jnp.ones((2, T), bool), 13)
  np.testing.assert_array_equal(got, expected)

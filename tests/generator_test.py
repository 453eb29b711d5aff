"""The generator: causality, caching, padding, and what its switches promise."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bbqrec_jax.models import generator

B, T, L, M, N, D = 3, 5, 3, 2, 7, 4


def _model(**changes):
  kwargs = dict(
    num_levels=L,
    codebook_size=N,
    num_signals=M,
    num_buckets=11,
    code_dim=6,
    model_dim=16,
    num_heads=2,
    head_dim=8,
    ff_dim=20,
    num_encoder_layers=2,
    num_decoder_layers=2,
  )
  return generator.Model(**(kwargs | changes))


def _inputs(num_targets=1):
  rng = np.random.default_rng(0)
  codes = jnp.asarray(rng.integers(0, N, (B, T, L, M)))
  vectors = jnp.asarray(rng.normal(size=(B, T, M * D)), jnp.float32)
  mask = jnp.arange(T)[None, :] < jnp.array([T, 2, 1])[:, None]
  targets = jnp.asarray(rng.integers(0, N, (B, num_targets, L, M)))
  return codes, vectors, mask, targets


def _randomised(model, *inputs):
  """Parameters away from their start, so that biases and similarity tables matter.

  NumPy draws them: to compile jax.random for every shape would take most of these tests' time.
  """
  shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)
  rng = np.random.default_rng(1)

  def draw(path, shape):
    mean = 1.0 if path[-1].key == "scale" else 0.0
    return jnp.asarray(rng.normal(mean, 0.4, shape.shape), shape.dtype)

  return jax.tree_util.tree_map_with_path(draw, shapes)


def _jitted(model, method=None):
  """model.apply as one program, which compiles sooner than its operations one by one."""
  static = (1,) if method == "step" else ()  # The level.
  return jax.jit(functools.partial(model.apply, method=method), static_argnums=static)


@pytest.mark.parametrize("num_levels", [1, L])
@pytest.mark.parametrize("encoder", generator.ENCODERS)
def test_cached_steps_equal_the_uncached_decoder(encoder, num_levels):
  model = _model(encoder=encoder, num_levels=num_levels)
  codes, vectors, mask, _ = _inputs()
  codes = codes[:, :, :num_levels]
  beams = _inputs(num_targets=4)[-1][:, :, :num_levels]  # W = 4 beams per user.
  variables = _randomised(model, codes, vectors, mask, beams[:, :1])
  memory = _jitted(model, "encode")(variables, codes, vectors, mask)
  logits = _jitted(model, "decode")(variables, beams, memory)
  expected = jax.nn.log_softmax(logits)
  step = _jitted(model, "step")
  cache = _jitted(model, "start")(variables, codes, vectors, mask)
  log_probs, cache = step(variables, 0, None, cache)
  chex.assert_trees_all_close(log_probs[:, 0], expected[:, 0, 0], atol=1e-5)
  cache = generator.reorder(cache, jnp.zeros((B, 4), jnp.int32))  # One beam becomes four.
  for level in range(1, num_levels):
    log_probs, cache = step(variables, level, beams[:, :, level - 1], cache)
    chex.assert_trees_all_close(log_probs, expected[:, :, level], atol=1e-5)


def test_reorder_moves_each_beams_past_and_leaves_the_memory():
  key = jnp.arange(2 * 3 * 1 * 1 * 1.0).reshape(2, 3, 1, 1, 1)
  memory = generator.Memory((jnp.ones(1),), (jnp.ones(1),), jnp.ones(1))
  cache = generator.Cache(memory, (key,), (10 * key,))
  moved = generator.reorder(cache, jnp.array([[2, 2, 0], [0, 1, 1]]))
  assert moved.keys[0].reshape(2, 3).tolist() == [[2, 2, 0], [3, 4, 4]]
  assert moved.values[0].reshape(2, 3).tolist() == [[20, 20, 0], [30, 40, 40]]
  assert moved.memory is memory


def test_a_level_sees_only_the_levels_before_it():
  model = _model()
  codes, vectors, mask, targets = _inputs()
  variables = _randomised(model, codes, vectors, mask, targets)

  def level_sums(code_embed):  # Gradient of each level's logits with respect to every table.
    params = variables["params"] | {"code_embed": code_embed}
    memory = model.apply(variables, codes, vectors, mask, method="encode")
    logits = model.apply({"params": params}, targets, memory, method="decode")
    return jnp.sum(logits**2, axis=(0, 1, 3, 4))  # [L]

  jacobian = jax.jit(jax.jacrev(level_sums))(variables["params"]["code_embed"])  # [L, L, M, N, E]
  seen = np.asarray(jnp.sum(jnp.abs(jacobian), axis=(2, 3, 4))) > 0
  # Level l is given the true codes of levels < l, never its own or later ones.
  np.testing.assert_array_equal(seen, np.tril(np.ones((L, L), bool), -1))


@pytest.mark.parametrize("encoder", generator.ENCODERS)
def test_padding_changes_nothing(encoder):
  model = _model(encoder=encoder)
  codes, vectors, mask, targets = _inputs()
  variables = _randomised(model, codes, vectors, mask, targets)
  apply = _jitted(model)
  logits = apply(variables, codes, vectors, mask, targets)
  noisy_codes = jnp.where(mask[:, :, None, None], codes, (codes + 3) % N)
  noisy_vectors = jnp.where(mask[:, :, None], vectors, 17.0)
  noisy = apply(variables, noisy_codes, noisy_vectors, mask, targets)
  chex.assert_trees_all_close(noisy, logits, atol=1e-5)
  short = apply(variables, codes[1:, :2], vectors[1:, :2], mask[1:, :2], targets[1:])
  chex.assert_trees_all_close(short, logits[1:], atol=1e-5)  # Fewer padding columns.


def test_causal_encoder_serves_every_prefix_in_one_pass():
  model = _model(encoder="causal")
  codes, vectors, mask, targets = _inputs(num_targets=T)
  variables = _randomised(model, codes, vectors, mask, targets)
  apply = _jitted(model)
  every = apply(variables, codes, vectors, mask, targets)
  for t in range(T):  # Each prefix on its own, as a history that ends there.
    prefix = mask & (jnp.arange(T) <= t)[None, :]
    alone = apply(variables, codes, vectors, prefix, targets[:, t : t + 1])
    rows = np.asarray(mask[:, t])
    chex.assert_trees_all_close(every[rows, t], alone[rows, 0], atol=1e-5)


def test_bidirectional_encoder_refuses_targets_for_every_prefix():
  codes, vectors, mask, targets = _inputs(num_targets=T)
  with pytest.raises(ValueError, match="causal"):
    jax.eval_shape(_model().init, jax.random.key(0), codes, vectors, mask, targets)


def test_similarity_starts_as_plain_attention_and_then_matters():
  codes, vectors, mask, targets = _inputs()
  model, plain = _model(), _model(similarity=False)
  variables = jax.jit(model.init)(jax.random.key(1), codes, vectors, mask, targets)
  apply = _jitted(model)
  params = {k: v for k, v in variables["params"].items() if k != "similarity_table"}
  out = apply(variables, codes, vectors, mask, targets)
  expected = _jitted(plain)({"params": params}, codes, vectors, mask, targets)
  chex.assert_trees_all_close(out, expected, atol=1e-5)
  table = _randomised(model, codes, vectors, mask, targets)["params"]["similarity_table"]
  moved = apply({"params": params | {"similarity_table": table}}, codes, vectors, mask, targets)
  assert float(jnp.max(jnp.abs(moved - expected))) > 1e-3


def test_position_within_the_history_matters():
  model = _model()
  codes, vectors, mask, targets = _inputs()
  variables = _randomised(model, codes, vectors, mask, targets)
  apply = _jitted(model)
  logits = apply(variables, codes[:1], vectors[:1], mask[:1], targets[:1])
  backwards = apply(variables, codes[:1, ::-1], vectors[:1, ::-1], mask[:1], targets[:1])
  assert float(jnp.max(jnp.abs(logits - backwards))) > 1e-3


def test_with_the_causal_encoder_a_target_can_tell_the_latest_item():
  # Without encoder layers a token of the memory knows no other item, and what the decoder's first
  # token attends to is up to the bias alone.
  model = _model(encoder="causal", num_encoder_layers=0)
  codes, vectors, mask, targets = _inputs(num_targets=T)
  variables = _randomised(model, codes, vectors, mask, targets)
  apply = _jitted(model)
  table = jnp.zeros_like(variables["params"]["history_bias"]["table"])
  table = table.at[1 : L + 1].set(1e4)  # By distance: the L tokens before the target's first one.
  variables = {"params": variables["params"] | {"history_bias": {"table": table}}}
  logits = apply(variables, codes, vectors, mask, targets)
  for item in range(T):
    other = apply(
      variables, codes.at[:, item].set((codes[:, item] + 1) % N), vectors, mask, targets
    )
    change = np.asarray(jnp.max(jnp.abs(other - logits)[:, :, 0], axis=(2, 3)))  # [B, T]
    moved = np.arange(T)[None, :] == item
    np.testing.assert_array_equal((change > 1e-3)[mask], np.broadcast_to(moved, (B, T))[mask])
  # A whole history, of two items and padding, as if its second item were all of it.
  whole = apply(variables, codes, vectors, mask, targets[:, :1])[1]
  row, item = slice(1, 2), slice(1, 2)
  inputs = codes[row, item], vectors[row, item], mask[row, item], targets[row, :1]
  alone = apply(variables, *inputs)[0]
  chex.assert_trees_all_close(whole[0, 0], alone[0, 0], atol=1e-5)


def test_the_papers_encoder_needs_no_bias_in_the_attention_to_the_history():
  variables = jax.eval_shape(_model().init, jax.random.key(0), *_inputs())
  assert "history_bias" not in variables["params"]

"""The transformer's blocks against their formulas, written out slowly."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bbqrec_jax.models import layers

B, Q, K, H, D, E = 2, 3, 5, 7, 4, 6


def _normal(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _bucket(relative, num_buckets, max_distance, bidirectional):
  """T5's bucket of one relative position, in whole numbers, so that nothing is rounded."""
  offset = 0
  if bidirectional:
    num_buckets //= 2
    offset = num_buckets if relative > 0 else 0
    distance = abs(relative)
  else:
    distance = -relative if relative < 0 else 0
  exact = num_buckets // 2
  if distance < exact:
    return offset + distance
  # far is the largest f with (distance / exact)^rest >= (max_distance / exact)^f.
  rest, far = num_buckets - exact, 0
  while far < rest - 1 and (
    distance**rest * exact ** (far + 1) >= max_distance ** (far + 1) * exact**rest
  ):
    far += 1
  return offset + exact + far


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (8, 20), (14, 41)])
def test_relative_buckets_are_t5s(num_buckets, max_distance, bidirectional):
  settings = (num_buckets, max_distance, bidirectional)
  relative = range(-2 * max_distance, 2 * max_distance + 1)
  buckets = layers.relative_buckets(np.array(relative), *settings)
  assert buckets.dtype == np.int32
  assert buckets.tolist() == [_bucket(r, *settings) for r in relative]
  assert set(buckets.tolist()) <= set(range(num_buckets)) and buckets.max() == num_buckets - 1


def test_relative_position_bias_is_a_lookup_by_position():
  module = layers.RelativePositionBias(H, bidirectional=True, num_buckets=8, max_distance=20)
  queries, keys = np.array([0, 4, 11]), np.array([9, 0, 2, 30, 7])
  variables = module.init(jax.random.key(0), queries, keys)
  table = variables["params"]["table"]
  chex.assert_shape(table, (8, H))
  bias = module.apply(variables, queries, keys)
  chex.assert_shape(bias, (H, Q, K))
  for q, k in np.ndindex(Q, K):
    np.testing.assert_array_equal(bias[:, q, k], table[_bucket(keys[k] - queries[q], 8, 20, True)])


def test_dropout_keeps_the_mean():
  x = jnp.ones((211, 307))
  out = layers.Dropout(0.1).apply({}, x, False, rngs={"dropout": jax.random.key(0)})
  kept_rate = 0.9
  np.testing.assert_allclose(np.unique(out), [0.0, 1 / kept_rate], rtol=1e-6)
  error = np.sqrt(kept_rate * (1 - kept_rate) / x.size)
  assert abs(float(jnp.mean(out > 0)) - kept_rate) < 4 * error
  assert abs(float(jnp.mean(out)) - 1) < 4 * error / kept_rate


def test_hashed_bits_look_random():
  shape, num_keys = (61, 43, 5), 8
  words = lambda seed: jax.random.bits(jax.random.key(seed), (2,), jnp.uint32)
  bits = np.stack([layers.hashed_bits(words(seed), shape) for seed in range(num_keys)])
  assert bits.dtype == np.uint32
  ones = np.unpackbits(bits.view(np.uint8).reshape(*bits.shape, 4), axis=-1) * 2.0 - 1.0
  # Every bit is 1 half the time, whatever the key, and says nothing about its neighbours in any
  # direction, about other bits of its element, or about the same place under another key.
  count = ones[0, ..., 0].size
  assert np.abs(ones.mean(axis=(1, 2, 3))).max() < 5 / np.sqrt(count)
  for axis in range(4):
    ahead = np.take(ones, range(1, ones.shape[axis]), axis)
    behind = np.take(ones, range(ones.shape[axis] - 1), axis)
    kept = tuple(a for a in range(5) if a not in (0, 4))
    assert np.abs((ahead * behind).mean(axis=kept)).max() < 5.5 / np.sqrt(count * 0.8), axis
  across = np.einsum("kxyzi,kxyzj->ij", ones, ones) / (num_keys * count) - np.eye(32)
  assert np.abs(across).max() < 5 / np.sqrt(num_keys * count)
  assert len(np.unique(bits)) > 0.999 * bits.size


def test_hashed_bits_of_a_part_are_those_of_the_whole():
  words = jnp.array([123, 456], jnp.uint32)
  whole = layers.hashed_bits(words, (7, 11))
  np.testing.assert_array_equal(layers.hashed_bits(words, (3, 11)), whole[:3])

  def slow(x):  # In whole numbers of any size.
    x = (x ^ (x >> 16)) * 0x7FEB352D % 2**32
    x = (x ^ (x >> 15)) * 0x846CA68B % 2**32
    return x ^ (x >> 16)

  expected = [slow(slow(index ^ 123) ^ 456) for index in range(77)]
  assert whole.ravel().tolist() == expected


def test_dropout_masks_depend_on_the_key():
  x = jnp.ones((11, 13))
  drop = lambda seed: layers.Dropout(0.5).apply(
    {}, x, False, rngs={"dropout": jax.random.key(seed)}
  )
  chex.assert_trees_all_equal(drop(0), drop(0))
  assert np.any(np.asarray(drop(0)) != np.asarray(drop(1)))


@pytest.mark.parametrize(("rate", "deterministic"), [(0.5, True), (0.0, False)])
def test_dropout_that_drops_nothing_is_the_identity_and_needs_no_key(rate, deterministic):
  x = jnp.asarray(_normal(0, 3, 5))
  chex.assert_trees_all_equal(layers.Dropout(rate).apply({}, x, deterministic), x)


def _softmax(x):
  exp = np.exp(x - x.max())
  return exp / exp.sum()


def test_scores_and_mix_are_attention_head_by_head():
  query, key, value = _normal(0, B, Q, H, D), _normal(1, B, K, H, D), _normal(2, B, K, H, D)
  scores = layers.scores(query, key)
  mixed = layers.mix(scores, value)
  chex.assert_shape(scores, (B, H, Q, K))
  chex.assert_shape(mixed, (B, Q, H, D))
  for b, h, q in np.ndindex(B, H, Q):
    expected = np.array([query[b, q, h] @ key[b, k, h] for k in range(K)])
    np.testing.assert_allclose(scores[b, h, q], expected, atol=1e-5)
    alpha = _softmax(expected)
    out = sum(alpha[k] * value[b, k, h] for k in range(K))
    np.testing.assert_allclose(mixed[b, q, h], out, atol=1e-5)


def test_masked_keys_do_not_count_and_a_row_without_keys_stays_finite():
  query, key, value = _normal(0, B, Q, H, D), _normal(1, B, K, H, D), _normal(2, B, K, H, D)
  visible = np.arange(K) < 3
  scores = layers.scores(query, key)
  masked = layers.mix(scores + jnp.where(visible, 0.0, layers.MASKED)[None, None, None], value)
  chex.assert_trees_all_close(masked, layers.mix(scores[..., :3], value[:, :3]), atol=1e-6)
  chex.assert_tree_all_finite(layers.mix(scores + layers.MASKED, value))


def test_attention_projections():
  module = layers.Attention(num_heads=H, head_dim=D, model_dim=E)
  x = _normal(3, B, Q, E)

  def all_of_it(module, x):
    query, key, value = module.qkv(x)
    return module.query(x), query, key, value, module.out(value)

  variables = module.init(jax.random.key(0), x, method=all_of_it)
  alone, query, key, value, out = module.apply(variables, x, method=all_of_it)
  kernels = {name: np.asarray(p["kernel"]) for name, p in variables["params"].items()}
  assert set(kernels) == {"query", "qkv", "out"}
  for b, q, h in np.ndindex(B, Q, H):
    row, qkv = x[b, q], kernels["qkv"]
    np.testing.assert_allclose(alone[b, q, h], row @ kernels["query"][:, h] / 2.0, atol=1e-5)
    np.testing.assert_allclose(query[b, q, h], row @ qkv[:, 0, h] / 2.0, atol=1e-5)
    np.testing.assert_allclose(key[b, q, h], row @ qkv[:, 1, h], atol=1e-5)
    np.testing.assert_allclose(value[b, q, h], row @ qkv[:, 2, h], atol=1e-5)
  for b, q in np.ndindex(B, Q):
    expected = sum(np.asarray(value[b, q, h]) @ kernels["out"][h] for h in range(H))
    np.testing.assert_allclose(out[b, q], expected, atol=1e-5)


@pytest.mark.parametrize(("rows", "axes", "into", "out"), [
  ((5, 3), 1, (7,), (11,)), ((5,), 1, (11,), (2, 3)), ((4,), 2, (3, 7), (2,)), ((), 1, (7,), (5,)),
])  # fmt: skip
def test_dot_is_a_product_of_last_and_first_axes(rows, axes, into, out):
  x, kernel = _normal(0, *rows, *into), _normal(1, *into, *out)
  contracted = tuple(range(x.ndim - axes, x.ndim))
  numbers = ((contracted, tuple(range(axes))), ((), ()))
  weights = _normal(2, *rows, *out)
  loss = lambda product: lambda x, kernel: jnp.sum(weights * product(x, kernel))
  expected = loss(lambda x, kernel: jnp.tensordot(x, kernel, axes))
  actual = loss(lambda x, kernel: layers.dot(x, kernel, numbers))
  for fn in (lambda f: f(x, kernel), lambda f: jax.grad(f, argnums=(0, 1))(x, kernel)):
    chex.assert_trees_all_close(fn(actual), fn(expected), rtol=1e-5, atol=1e-5)
  with pytest.raises(ValueError, match="over the last axes"):
    layers.dot(x, kernel, (((0,), (0,)), ((0,), (0,))))


def test_feed_forward_has_two_layers_and_drops_hidden_units_in_training():
  module = layers.FeedForward(hidden_dim=11, dropout_rate=0.5)
  x = _normal(4, B, Q, E)
  variables = module.init(jax.random.key(0), x, True)
  into, back = (np.asarray(variables["params"][name]["kernel"]) for name in ("in", "out"))
  expected = np.maximum(x @ into, 0.0) @ back
  np.testing.assert_allclose(module.apply(variables, x, True), expected, atol=1e-5)
  trained = module.apply(variables, x, False, rngs={"dropout": jax.random.key(1)})
  assert not np.allclose(trained, expected, atol=1e-3)

"""The optimizer against values worked out by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bbqrec_jax import optim

PARAMS = dict(
  encoder=dict(dense=dict(kernel=jnp.full((2, 3), 4.0), bias=jnp.full(3, 4.0))),
  table=dict(embedding=jnp.full((5, 2), 4.0)),
  scale=jnp.full(2, 4.0),
)


def _updates(gradients, **kwargs):
  """The updates that a sequence of gradients of PARAMS causes, the parameters staying put."""
  tx = optim.make_optimizer(**kwargs)
  state, updates = tx.init(PARAMS), []
  for gradient in gradients:
    update, state = tx.update(gradient, state, PARAMS)
    updates.append(update)
  return updates


def _fill(value):
  return jax.tree.map(lambda x: jnp.full_like(x, value), PARAMS)


def _rates(num_steps, **kwargs):
  """The rate of every step: Adam moves by exactly the rate while the gradient is constant."""
  updates = _updates([_fill(1.0)] * num_steps, num_steps=num_steps, **kwargs)
  return [-float(update["scale"][0]) for update in updates]


@pytest.mark.parametrize(("kwargs", "expected"), [
  (dict(), [0.8] * 20),
  (dict(warmup_steps=2), [0.0, 0.4] + [0.8] * 18),
  # A warm-up longer than a tenth of the training is cut to that.
  (dict(warmup_steps=1000), [0.0, 0.4] + [0.8] * 18),
  (dict(schedule="cosine"), [0.4 * (1 + math.cos(math.pi * t / 20)) for t in range(20)]),
  (dict(schedule="cosine", warmup_steps=2),
   [0.0, 0.4] + [0.4 * (1 + math.cos(math.pi * t / 18)) for t in range(18)]),
])  # fmt: skip
def test_schedules(kwargs, expected):
  np.testing.assert_allclose(_rates(20, learning_rate=0.8, **kwargs), expected, rtol=1e-4)


def test_a_training_of_a_few_steps_has_no_warm_up():
  np.testing.assert_allclose(_rates(9, learning_rate=0.8, warmup_steps=5), [0.8] * 9, rtol=1e-4)


def test_the_cosine_ends_at_zero_and_stays_there():
  kwargs = dict(num_steps=20, schedule="cosine", warmup_steps=2, learning_rate=0.8)
  last = _updates([_fill(1.0)] * 23, **kwargs)[20:]
  np.testing.assert_allclose([float(update["scale"][0]) for update in last], 0.0, atol=1e-6)


def test_weight_decay_is_on_kernels_only():
  kwargs = dict(num_steps=10, learning_rate=0.5, weight_decay=0.1)
  (update,) = _updates([_fill(0.0)], **kwargs)
  kernel = update["encoder"]["dense"].pop("kernel")
  np.testing.assert_allclose(kernel, -0.5 * 0.1 * 4.0, rtol=1e-6)
  assert not any(np.any(x) for x in jax.tree.leaves(update))


def test_scales_multiply_the_rate_below_a_name():
  kwargs = dict(num_steps=10, learning_rate=0.5, weight_decay=0.1)
  gradients = [_fill(1.0), _fill(3.0)]
  plain = _updates(gradients, **kwargs)
  scaled = _updates(gradients, **kwargs, scales=dict(encoder=5.0))
  for before, after in zip(plain, scaled):
    expected = before | dict(encoder=jax.tree.map(lambda x: 5.0 * x, before["encoder"]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), after, expected)


def test_clipping_is_by_the_norm_of_all_gradients():
  count = sum(x.size for x in jax.tree.leaves(PARAMS))
  gradients = [_fill(0.01), _fill(9.0)]  # Of norms 0.05 and 43: the second one is cut to 1.
  clipped = _updates(gradients, num_steps=10, learning_rate=0.5, clip_norm=1.0)
  values = [0.01, 1.0 / math.sqrt(count)]
  mean = variance = 0.0
  for step, value in enumerate(values, 1):  # Kingma and Ba 2015 (arXiv:1412.6980), Alg. 1.
    mean, variance = 0.9 * mean + 0.1 * value, 0.999 * variance + 0.001 * value**2
    move = (mean / (1 - 0.9**step)) / math.sqrt(variance / (1 - 0.999**step))
    np.testing.assert_allclose(clipped[step - 1]["scale"], -0.5 * move, rtol=1e-4)
  free = _updates(gradients, num_steps=10, learning_rate=0.5)
  assert abs(float(free[1]["scale"][0] - clipped[1]["scale"][0])) > 0.01


def test_what_has_a_scale_of_its_own_has_a_norm_of_its_own():
  kwargs = dict(num_steps=10, learning_rate=0.5, clip_norm=1.0)
  large = _fill(0.01) | dict(encoder=jax.tree.map(lambda x: 900.0 + 0 * x, PARAMS["encoder"]))
  alone = _updates([_fill(0.01), _fill(0.01)], **kwargs)[1]
  apart = _updates([_fill(0.01), large], **kwargs, scales=dict(encoder=1.0))[1]
  together = _updates([_fill(0.01), large], **kwargs)[1]
  np.testing.assert_allclose(apart["scale"], alone["scale"], rtol=1e-5)
  assert abs(float(together["scale"][0] - alone["scale"][0])) > 0.1
  # The large one is cut to norm 1 by itself: nine elements of 1/3.
  cut = _fill(0.01) | dict(encoder=jax.tree.map(lambda x: 1 / 3 + 0 * x, PARAMS["encoder"]))
  expected = _updates([_fill(0.01), cut], num_steps=10, learning_rate=0.5)[1]
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), apart["encoder"], expected["encoder"]
  )


def test_unknown_names_raise():
  with pytest.raises(ValueError, match=r"schedule must be one of .* got 'linear'"):
    optim.make_optimizer(num_steps=10, learning_rate=0.1, schedule="linear")
  with pytest.raises(ValueError, match=r"names \['decoder'\]; parameters: \['encoder', "):
    _updates([_fill(1.0)], num_steps=10, learning_rate=0.1, scales=dict(decoder=2.0))


def test_it_minimises():
  tx = optim.make_optimizer(
    num_steps=200, learning_rate=0.1, schedule="cosine", warmup_steps=10, clip_norm=1.0
  )
  params = dict(x=jnp.array([3.0, -5.0]))
  state = tx.init(params)
  for _ in range(200):
    updates, state = tx.update(jax.tree.map(lambda x: 2 * (x - 1.0), params), state, params)
    params = optax.apply_updates(params, updates)
  np.testing.assert_allclose(params["x"], 1.0, atol=0.05)

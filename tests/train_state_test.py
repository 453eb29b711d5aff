"""One step: the key it draws from, what it updates, and what it hands back."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from bbqrec_jax import train_state

LEARNING_RATE = 0.1
CONSTANTS = jnp.array([2.0, 3.0, 5.0])


def _params():
  return dict(weight=jnp.array([1.0, -2.0, 4.0]))


def _loss_fn(params, batch, constants, key):
  """sum(constants * batch * weight): its gradient is constants * batch."""
  loss = jnp.sum(constants * batch * params["weight"])
  return loss, (dict(draw=jax.random.uniform(key)), batch + 1.0)


def test_a_step_follows_the_gradient_and_counts():
  step = train_state.make_train_step(_loss_fn, optax.sgd(LEARNING_RATE, momentum=0.5))
  state = train_state.create(_params(), optax.sgd(LEARNING_RATE, momentum=0.5), extra=jnp.ones(2))
  assert state.step.dtype == jnp.int32 and int(state.step) == 0
  weight, trace = np.array([1.0, -2.0, 4.0]), np.zeros(3)
  for n, batch in enumerate([[1.0, 0.0, 2.0], [0.0, 3.0, 1.0]]):
    gradient = np.asarray(CONSTANTS) * batch
    state, metrics = step(state, jnp.array(batch), CONSTANTS, jax.random.key(7))
    np.testing.assert_allclose(metrics["loss"], np.sum(gradient * weight), rtol=1e-6)
    np.testing.assert_allclose(metrics["grad_norm"], np.sqrt(np.sum(gradient**2)), rtol=1e-6)
    trace = 0.5 * trace + gradient
    weight = weight - LEARNING_RATE * trace
    np.testing.assert_allclose(state.params["weight"], weight, rtol=1e-6)
    assert int(state.step) == n + 1
  chex.assert_trees_all_equal(state.extra, jnp.ones(2))  # Nobody touched it.


def test_the_key_of_a_step_is_folded_from_the_runs_key_and_the_step():
  step = train_state.make_train_step(_loss_fn, optax.sgd(LEARNING_RATE))
  state, key = train_state.create(_params(), optax.sgd(LEARNING_RATE)), jax.random.key(7)
  for n in range(4):
    state, metrics = step(state, jnp.ones(3), CONSTANTS, key)
    assert float(metrics["draw"]) == float(jax.random.uniform(jax.random.fold_in(key, n)))


def test_after_update_sees_updated_parameters_and_has_the_last_word():
  def after_update(params, extra, outputs, key):
    extra = dict(seen=params["weight"], outputs=outputs, draw=jax.random.uniform(key))
    return dict(weight=params["weight"] + 100.0), extra

  tx = optax.sgd(LEARNING_RATE)
  step = train_state.make_train_step(_loss_fn, tx, after_update)
  extra = dict(seen=jnp.zeros(3), outputs=jnp.zeros(3), draw=jnp.zeros(()))
  batch, key = jnp.array([1.0, 0.0, 2.0]), jax.random.key(7)
  state, metrics = step(train_state.create(_params(), tx, extra), batch, CONSTANTS, key)
  expected = np.array([1.0, -2.0, 4.0]) - LEARNING_RATE * np.array([2.0, 0.0, 10.0])
  np.testing.assert_allclose(state.extra["seen"], expected, rtol=1e-6)
  np.testing.assert_allclose(state.params["weight"], expected + 100.0, rtol=1e-6)
  np.testing.assert_array_equal(state.extra["outputs"], batch + 1.0)
  assert float(state.extra["draw"]) != float(metrics["draw"])  # A key of its own.


def test_the_state_is_donated_and_nothing_else():
  tx = optax.adam(LEARNING_RATE)
  step = train_state.make_train_step(_loss_fn, tx)
  state, batch, key = train_state.create(_params(), tx), jnp.ones(3), jax.random.key(7)
  step(state, batch, CONSTANTS, key)
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
  assert not any(array.is_deleted() for array in (batch, CONSTANTS, key))


def test_further_steps_compile_nothing():
  chex.clear_trace_counter()
  tx = optax.adam(LEARNING_RATE)
  step = train_state.make_train_step(chex.assert_max_traces(_loss_fn, n=1), tx)
  state = train_state.create(_params(), tx)
  for n in range(3):
    state, _ = step(state, jnp.full(3, float(n)), CONSTANTS, jax.random.key(n))

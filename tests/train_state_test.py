"""One step: the key it draws from, what it updates, and what it hands back."""

import itertools

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


def _step(tx, **kwargs):
  return jax.jit(train_state.make_train_step(_loss_fn, tx, **kwargs), donate_argnums=0)


def _chunk(train_step, max_steps):
  return jax.jit(train_state.make_train_chunk(train_step, max_steps), donate_argnums=0)


def test_a_step_follows_the_gradient_and_counts():
  step = _step(optax.sgd(LEARNING_RATE, momentum=0.5))
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
  step = _step(optax.sgd(LEARNING_RATE))
  state, key = train_state.create(_params(), optax.sgd(LEARNING_RATE)), jax.random.key(7)
  for n in range(4):
    state, metrics = step(state, jnp.ones(3), CONSTANTS, key)
    assert float(metrics["draw"]) == float(jax.random.uniform(jax.random.fold_in(key, n)))


def test_after_update_sees_updated_parameters_and_has_the_last_word():
  def after_update(params, extra, outputs, key):
    extra = dict(seen=params["weight"], outputs=outputs, draw=jax.random.uniform(key))
    return dict(weight=params["weight"] + 100.0), extra

  tx = optax.sgd(LEARNING_RATE)
  step = _step(tx, after_update=after_update)
  extra = dict(seen=jnp.zeros(3), outputs=jnp.zeros(3), draw=jnp.zeros(()))
  batch, key = jnp.array([1.0, 0.0, 2.0]), jax.random.key(7)
  state, metrics = step(train_state.create(_params(), tx, extra), batch, CONSTANTS, key)
  expected = np.array([1.0, -2.0, 4.0]) - LEARNING_RATE * np.array([2.0, 0.0, 10.0])
  np.testing.assert_allclose(state.extra["seen"], expected, rtol=1e-6)
  np.testing.assert_allclose(state.params["weight"], expected + 100.0, rtol=1e-6)
  np.testing.assert_array_equal(state.extra["outputs"], batch + 1.0)
  assert float(state.extra["draw"]) != float(metrics["draw"])  # A key of its own.


def _quadratic(params, batch, constants, key):
  """Weighted sum of squared errors: parts add up. The draw tells which keys were given."""
  del constants
  errors = batch["x"] @ params["weight"] - batch["y"]
  return jnp.sum(batch["share"] * errors**2), (dict(draw=jax.random.uniform(key)), errors)


def test_micro_batches_add_up_to_the_batch():
  rng = np.random.default_rng(0)
  rows = [(2, 3), (1, 5), (3, 1)]  # Parts of n micro-batches of r rows.
  make = lambda n, r: dict(
    x=rng.normal(size=(n, r, 3)), y=rng.normal(size=(n, r)), share=np.full((n, r), 1 / 14)
  )
  parts = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), [make(n, r) for n, r in rows])
  whole = jax.tree.map(
    lambda *leaves: jnp.concatenate([x.reshape(-1, *x.shape[2:]) for x in leaves]), *parts
  )
  tx, key = optax.sgd(LEARNING_RATE, momentum=0.5), jax.random.key(7)
  split = train_state.make_train_step(_quadratic, tx, split_fn=lambda batch: batch["parts"])
  unsplit = train_state.make_train_step(_quadratic, tx)
  expected, expected_metrics = jax.jit(unsplit)(
    train_state.create(_params(), tx), whole, CONSTANTS, key
  )
  state, metrics = jax.jit(split)(
    train_state.create(_params(), tx), dict(parts=parts), CONSTANTS, key
  )
  chex.assert_trees_all_close(state, expected, rtol=1e-5)
  draw, expected_draw = metrics.pop("draw"), expected_metrics.pop("draw")
  chex.assert_trees_all_close(metrics, expected_metrics, rtol=1e-5)
  assert float(draw) != 6 * float(expected_draw)  # Six micro-batches, each with its own key.


def test_a_chunk_equals_its_steps_one_by_one():
  tx, key = optax.adam(LEARNING_RATE), jax.random.key(7)
  epoch = jnp.asarray(np.random.default_rng(0).normal(size=(9, 3)), jnp.float32)
  step, chunk = (
    _step(tx),
    _chunk(train_state.make_train_step(_loss_fn, tx), max_steps=5),
  )
  expected, values = train_state.create(_params(), tx), []
  for n in range(2, 6):
    expected, metrics = step(expected, epoch[n], CONSTANTS, key)
    values.append(metrics)
  state, metrics = chunk(train_state.create(_params(), tx), epoch, 2, 4, CONSTANTS, key)
  chex.assert_trees_all_close(state, expected, rtol=1e-6)
  for name, collected in metrics.items():
    chex.assert_shape(collected, (5,))
    np.testing.assert_allclose(collected[:4], [value[name] for value in values], rtol=1e-6)


def test_how_steps_are_cut_into_chunks_changes_no_bit():
  tx, key = optax.adam(LEARNING_RATE), jax.random.key(7)
  epoch = jnp.asarray(np.random.default_rng(0).normal(size=(9, 3)), jnp.float32)
  chunk = _chunk(train_state.make_train_step(_loss_fn, tx), max_steps=9)

  def run(cuts):
    state = train_state.create(_params(), tx)
    for first, last in itertools.pairwise(cuts):
      state, _ = chunk(state, epoch, first, last - first, CONSTANTS, key)
    return state

  chex.assert_trees_all_equal(run([0, 9]), run([0, 1, 4, 5, 9]))


def test_the_state_is_donated_and_nothing_else():
  tx = optax.adam(LEARNING_RATE)
  chunk = _chunk(train_state.make_train_step(_loss_fn, tx), max_steps=2)
  state, epoch, key = train_state.create(_params(), tx), jnp.ones((4, 3)), jax.random.key(7)
  chunk(state, epoch, 0, 2, CONSTANTS, key)
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
  assert not any(array.is_deleted() for array in (epoch, CONSTANTS, key))


def test_further_chunks_compile_nothing():
  tx, traces = optax.adam(LEARNING_RATE), []

  def loss_fn(*args):
    traces.append(args)
    return _loss_fn(*args)

  chunk = _chunk(train_state.make_train_step(loss_fn, tx), max_steps=3)
  state = train_state.create(_params(), tx)
  state, _ = chunk(state, jnp.ones((4, 3)), 0, 1, CONSTANTS, jax.random.key(0))
  first = len(traces)
  for n, count in enumerate((3, 2, 1)):
    epoch = jnp.full((4, 3), n, jnp.float32)
    state, _ = chunk(state, epoch, n, count, CONSTANTS, jax.random.key(n))
  assert len(traces) == first

"""The state of a training, and the step that advances it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class TrainState(NamedTuple):
  step: jax.Array  # [] int32, steps taken.
  params: Any
  opt_state: Any
  extra: Any = ()  # What a model carries from step to step beside its parameters.


def create(params, tx: optax.GradientTransformation, extra=()) -> TrainState:
  """The state before the first step."""
  return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), extra)


def make_train_step(
  loss_fn: Callable,
  tx: optax.GradientTransformation,
  after_update: Callable | None = None,
) -> Callable:
  """Builds jitted (state, batch, constants, key) -> (state, metrics); donates state.

  Args:
    loss_fn: (params, batch, constants, key) -> (loss [], (metrics: dict of [], outputs)).
    tx: the optimizer.
    after_update: (params, extra, outputs, key) -> (params, extra), applied behind the optimizer's
      update; `outputs` is what loss_fn returned. None leaves both as they are.

  `constants` is a pytree of arrays that no step changes, such as the items' features: passed, not
  closed over, so that it is no part of the compiled program. `key` is the run's one key, never
  split: a step's key is folded from state.step, so resuming needs no key in the checkpoint.
  """

  def train_step(state: TrainState, batch, constants, key):
    step_key = jax.random.fold_in(key, state.step)
    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
    (loss, (metrics, outputs)), grads = grad_fn(state.params, batch, constants, step_key)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params, extra = optax.apply_updates(state.params, updates), state.extra
    if after_update is not None:
      params, extra = after_update(params, extra, outputs, jax.random.fold_in(step_key, 1))
    metrics = metrics | dict(loss=loss, grad_norm=optax.tree.norm(grads))
    return TrainState(state.step + 1, params, opt_state, extra), metrics

  return jax.jit(train_step, donate_argnums=0)

"""The state of a training, the step that advances it, and the loop over steps on the device."""

from collections.abc import Callable, Sequence
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
  *,
  after_update: Callable | None = None,
  split_fn: Callable | None = None,
  axis_name: str | None = None,
  loss_reads_extra: bool = False,
) -> Callable:
  """Builds (state, batch, constants, key) -> (state, metrics: dict of []), to be compiled.

  Args:
    loss_fn: (params, batch, constants, key) -> (loss [], (metrics: dict of [], outputs)).
    tx: the optimizer.
    after_update: (params, extra, outputs, key) -> (params, extra), applied behind the optimizer's
      update; `outputs` is what loss_fn returned. None leaves both as they are.
    split_fn: batch -> a sequence of parts, whose losses and metrics add up to the batch's. Each is
      a pytree of arrays [n, ...]: n micro-batches of one shape, taken one after the other, which
      bounds the memory of a step. loss_fn is then given a micro-batch, and `outputs` are not kept.
    axis_name: the axis over which devices run copies of the step, each on its part of the batch, as
      in losses.py; loss_fn gives each the loss of the whole. Each draws by a key of its own, except
      for after_update, which does the same on all.
    loss_reads_extra: loss_fn is (params, batch, constants, key, extra) -> ..., with the state's
      `extra`; not together with split_fn.

  `constants` is a pytree of arrays that no step changes, such as the items' features: passed, not
  closed over, so that it is no part of the compiled program. `key` is the run's one key, never
  split: a step's key is folded from state.step, so resuming needs no key in the checkpoint.
  """
  grad_fn = jax.value_and_grad(loss_fn, has_aux=True)

  def train_step(state: TrainState, batch, constants, key):
    step_key = jax.random.fold_in(key, state.step)
    own_key = step_key
    if axis_name is not None:
      own_key = jax.random.fold_in(step_key, jax.lax.axis_index(axis_name))
    if split_fn is None:
      extra = (state.extra,) if loss_reads_extra else ()
      (loss, (metrics, outputs)), grads = grad_fn(state.params, batch, constants, own_key, *extra)
    else:
      parts = split_fn(batch)
      (loss, metrics), grads = _summed(grad_fn, state.params, parts, constants, own_key)
      outputs = ()
    if axis_name is not None:
      # Every device differentiates the whole loss with respect to its own copy of the parameters,
      # also by way of the others' rows: the mean over the copies is the gradient.
      grads = jax.lax.pmean(grads, axis_name)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params, extra = optax.apply_updates(state.params, updates), state.extra
    if after_update is not None:
      params, extra = after_update(params, extra, outputs, jax.random.fold_in(step_key, 1))
    metrics = metrics | dict(loss=loss, grad_norm=optax.tree.norm(grads))
    return TrainState(state.step + 1, params, opt_state, extra), metrics

  return train_step


def _summed(grad_fn: Callable, params, parts: Sequence, constants, key):
  """((loss, metrics), grads), each the sum over all micro-batches of all parts."""

  @jax.jit  # So that it is traced once for all that have its shape.
  def one(micro_batch, key):
    (loss, (metrics, _)), grads = grad_fn(params, micro_batch, constants, key)
    return (loss, metrics), grads

  def one_more(total, inputs):
    return jax.tree.map(jnp.add, total, one(*inputs)), None

  shapes = jax.eval_shape(one, jax.tree.map(lambda x: x[0], parts[0]), key)
  total = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  for n, part in enumerate(parts):
    keys = jax.random.split(jax.random.fold_in(key, n), len(jax.tree.leaves(part)[0]))
    total, _ = jax.lax.scan(one_more, total, (part, keys))
  return total


def sum_micro_batches(fn: Callable, groups, key) -> jax.Array:
  """The sum of fn(micro-batch, key) over all of every group.

  For a loss whose micro-batches share something costly, unlike split_fn's, which share nothing.
  Where a group has several, the activations of one are held at a time, and computed again for the
  gradient; what they share has its gradient taken once, at the end.

  Args:
    fn: returns an array; all of them have one shape.
    groups: a sequence of pytrees of arrays [n, ...]: n micro-batches of one shape.
  """
  again = jax.checkpoint(fn)
  total = 0.0
  for n, group in enumerate(groups):
    keys = jax.random.split(jax.random.fold_in(key, n), len(jax.tree.leaves(group)[0]))
    if len(keys) == 1:
      total += fn(jax.tree.map(lambda x: x[0], group), keys[0])
    else:
      total += jnp.sum(jax.lax.map(lambda inputs: again(*inputs), (group, keys)), axis=0)
  return total


def make_train_chunk(train_step: Callable, max_steps: int) -> Callable:
  """Builds (state, epoch, first, count, constants, key) -> (state, metrics), to be compiled.

  Takes the steps first, ..., first + count - 1 of an epoch in one call. `epoch` is a pytree of
  arrays with the epoch's steps as leading axis, on the device; first and count <= max_steps are
  [] int32, so that one program serves whatever number of steps. metrics are [max_steps] float32 by
  name, of which the first `count` are meant.
  """

  step_fn = jax.jit(train_step)  # So that it is traced once for its names and its steps.

  def train_chunk(state: TrainState, epoch, first, count, constants, key):
    batch_of = lambda step: jax.tree.map(
      lambda x: jax.lax.dynamic_index_in_dim(x, step, 0, False), epoch
    )

    def body(n, carry):
      state, collected = carry
      state, metrics = step_fn(state, batch_of(first + n), constants, key)
      return state, {name: collected[name].at[n].set(metrics[name]) for name in collected}

    _, names = jax.eval_shape(step_fn, state, batch_of(first), constants, key)
    collected = {name: jnp.zeros(max_steps, jnp.float32) for name in names}
    return jax.lax.fori_loop(0, count, body, (state, collected))

  return train_chunk

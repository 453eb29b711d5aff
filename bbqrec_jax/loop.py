"""The only training loop: steps, evaluation, selection, early stopping, checkpoints."""

import contextlib
import math
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from bbqrec_jax.checkpoint import Checkpointer
from bbqrec_jax.errors import UserError
from bbqrec_jax.metric_writer import MetricWriter
from bbqrec_jax.progress import Progress
from bbqrec_jax.train_state import TrainState


class Fitted(NamedTuple):
  params: Any  # The parameters that were best by validation.
  summary: dict[str, Any]  # Steps, epochs, seconds, the best validation value; JSON-able.


def fit(
  state: TrainState,
  train_step: Callable,
  batch_fn: Callable,
  *,
  stage: str,
  constants: Any,
  key: jax.Array,
  num_steps: int,
  steps_per_epoch: int,
  eval_fn: Callable,
  eval_steps: int,
  monitor: str,
  patience: int,
  log_steps: int,
  checkpointer: Checkpointer,
  writer: MetricWriter,
) -> Fitted:
  """Trains until num_steps, or until validation has not improved for `patience` evaluations.

  Goes on from the newest checkpoint if there is one, and then ends with the same parameters, bit
  for bit, as a run that was never interrupted. The first Ctrl-C ends the current step, saves and
  raises KeyboardInterrupt; a second one does not wait.

  Args:
    train_step: (state, batch, constants, key) -> (state, metrics: dict of []).
    batch_fn: step -> batch, a pure function.
    eval_fn: params -> dict of floats, on the validation split.
    eval_steps: an evaluation and a checkpoint after every so many steps, and after the last.
    monitor: the name in eval_fn's result to select by; larger is better.
    patience: 0 for no early stopping.

  Raises:
    UserError: a metric of a step is NaN or infinite; names stage, step and metric.
    KeyboardInterrupt: after having saved.
  """
  progress = dict(best=-math.inf, best_step=0, stale=0, train_seconds=0.0, eval_seconds=0.0)
  restored = checkpointer.restore(state)
  if restored is not None:
    state, progress = restored.state, restored.progress
    writer.truncate(stage, restored.step)
    print(f"{stage}: going on from step {restored.step} of {num_steps}.", flush=True)
  earlier_seconds = progress["train_seconds"] + progress["eval_seconds"]
  step = saved_step = int(state.step)
  finished = lambda: step >= num_steps or (patience and progress["stale"] >= patience)
  window = _Window(stage)

  with (
    _deferred_interrupt() as interrupted,
    Progress(num_steps, initial=step, label=stage) as shown,
  ):
    while not finished():
      started = time.perf_counter()
      state, metrics = train_step(state, batch_fn(step), constants, key)
      step += 1
      window.add(step, metrics)  # Fetches the step before, while this one runs.
      at_eval = step % eval_steps == 0 or step == num_steps
      if at_eval or step % log_steps == 0 or interrupted.is_set():
        means = window.flush()
        progress["train_seconds"] += time.perf_counter() - started
        writer.write(step, stage, means | dict(epoch=step / steps_per_epoch))
        shown.update(step, dict(loss=means["loss"]))
      else:
        progress["train_seconds"] += time.perf_counter() - started
        shown.update(step)
      if at_eval:
        started = time.perf_counter()
        results = eval_fn(state.params)
        progress["eval_seconds"] += time.perf_counter() - started
        writer.write(step, stage, {f"valid/{name}": value for name, value in results.items()})
        improved = results[monitor] > progress["best"]
        progress["stale"] = 0 if improved else progress["stale"] + 1
        if improved:
          progress |= dict(best=results[monitor], best_step=step)
        shown.update(step, {"loss": means["loss"], f"valid {monitor}": results[monitor]})
        checkpointer.save(step, state, progress, best=improved)
        saved_step = step
      if interrupted.is_set():
        if saved_step != step:
          window.flush()  # Raises where the state must not be saved; the signal may come late.
          checkpointer.save(step, state, progress, best=False)
        checkpointer.wait()
        raise KeyboardInterrupt(f"{stage} is saved at step {step} of {num_steps}")

  best = checkpointer.restore_best(dict(params=state.params))
  summary = dict(
    steps=step,
    epochs=step / steps_per_epoch,
    stopped_early=step < num_steps,
    best_step=best.step,
    monitor=monitor,
    best_valid=progress["best"],
    train_seconds=progress["train_seconds"],
    eval_seconds=progress["eval_seconds"],
    earlier_seconds=earlier_seconds,  # Of the two, what was spent before this process.
  )
  return Fitted(best.state["params"], summary)


class _Window:
  """Sums of the metrics since the last report; each step's are fetched one step late."""

  def __init__(self, stage: str):
    self._stage, self._pending = stage, None
    self._sums, self._count = {}, 0

  def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
    self._fetch()
    self._pending = (step, metrics)

  def flush(self) -> dict[str, float]:
    """Means since the last flush."""
    self._fetch()
    means = {name: total / self._count for name, total in self._sums.items()}
    self._sums, self._count = {}, 0
    return means

  def _fetch(self) -> None:
    if self._pending is None:
      return
    step, metrics = self._pending
    self._pending = None
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    if bad:
      raise UserError(
        f"{self._stage}, step {step}: {', '.join(sorted(bad))} is not finite; lower the learning "
        "rate or the weight of that term. The last checkpoint is kept."
      )
    for name, value in values.items():
      self._sums[name] = self._sums.get(name, 0.0) + value
    self._count += 1


@contextlib.contextmanager
def _deferred_interrupt():
  """An event that the first Ctrl-C sets; the second one raises KeyboardInterrupt at once."""
  event = threading.Event()
  if threading.current_thread() is not threading.main_thread():
    yield event
    return

  def on_interrupt(signum, frame):
    del signum, frame
    if event.is_set():
      raise KeyboardInterrupt
    event.set()
    print("\nStopping after this step; once more stops at once.", file=sys.stderr, flush=True)

  previous = signal.signal(signal.SIGINT, on_interrupt)
  try:
    yield event
  finally:
    signal.signal(signal.SIGINT, previous)

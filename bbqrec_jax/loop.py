"""The only training loop: steps, evaluation, selection, early stopping, checkpoints."""

import math
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from bbqrec_jax import diagnostics, partition
from bbqrec_jax.checkpoint import Checkpointer
from bbqrec_jax.errors import Stopped, UserError
from bbqrec_jax.metric_writer import MetricWriter
from bbqrec_jax.progress import Progress
from bbqrec_jax.signals import Deferred
from bbqrec_jax.train_state import TrainState

MAX_CHUNK_STEPS = 64  # Steps of one call; more would save nothing.
_CHUNK_SECONDS = 1.0  # About how long a call takes, if its steps are slow enough.


class Fitted(NamedTuple):
  params: Any  # The parameters that were best by validation.
  summary: dict[str, Any]  # Steps, epochs, seconds, the best validation value; JSON-able.


def fit(
  state: TrainState,
  train_chunk: Callable,
  epoch_fn: Callable,
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
  examples_per_step: float,
  checkpointer: Checkpointer,
  writer: MetricWriter,
  workdir: pathlib.Path,
  profile_steps: tuple[int, int] = (0, 0),
  chunk_steps: int = MAX_CHUNK_STEPS,
) -> Fitted:
  """Trains until num_steps, or until validation has not improved for `patience` evaluations.

  Goes on from the newest checkpoint if there is one, and then ends with the same parameters, bit
  for bit, as a run that was never interrupted. The first Ctrl-C or SIGTERM, of any process, ends
  the steps that are under way (about two seconds), saves and raises Stopped; a second Ctrl-C does
  not wait.

  Steps run on the device a chunk at a time, and the metrics of a chunk are fetched while the next
  one runs. How many steps make a chunk changes no result.

  Args:
    train_chunk: train_state.make_train_chunk(train_step, chunk_steps), compiled.
    epoch_fn: epoch -> its batches on the devices, a pytree of arrays [steps_per_epoch, ...]; a pure
      function.
    eval_fn: params -> dict of floats, on the validation split.
    eval_steps: an evaluation and a checkpoint after every so many steps, and after the last.
    monitor: the name in eval_fn's result to select by; larger is better.
    patience: 0 for no early stopping.
    log_steps: a line of metrics, means since the line before, after every so many steps.
    examples_per_step: for the rate that is reported.
    workdir: where traces and reproducers go.
    profile_steps: (first, behind the last) of the steps that jax.profiler traces.
    chunk_steps: the most steps of one call; their number follows from their speed.

  Raises:
    UserError: a metric of a step is NaN or infinite; names stage, step and metric, and the folder
      with the state before that step and its batch.
    Stopped: after having saved.
  """
  template = jax.tree.map(_shape_and_sharding, state)  # The state itself is donated.
  progress = dict(best=-math.inf, best_step=0, stale=0, train_seconds=0.0, eval_seconds=0.0)
  restored = checkpointer.restore(template)
  if restored is not None:
    state, progress = restored.state, restored.progress
    writer.truncate(stage, restored.step)
    print(f"{stage}: going on from step {restored.step} of {num_steps}.", flush=True)
  else:
    writer.truncate(stage, 0)  # What a run wrote that was killed before its first checkpoint.
  earlier_seconds = progress["train_seconds"] + progress["eval_seconds"]
  step = saved_step = int(state.step)
  finished = lambda: step >= num_steps or (patience and progress["stale"] >= patience)
  pace, stopwatch = _Pace(chunk_steps), _Stopwatch()
  epoch, batches = -1, None  # The epoch whose batches lie on the devices.

  try:
    with (
      Deferred("Stopping after this step; Ctrl-C stops at once.") as signals,
      Progress(num_steps, initial=step, label=stage) as shown,
      diagnostics.Profiler(profile_steps, workdir / "profile" / stage) as profiler,
    ):

      def report(step, count, means):
        seconds = stopwatch.lap() / count
        speed = dict(seconds_per_step=seconds, examples_per_second=examples_per_step / seconds)
        line = means | dict(epoch=step / steps_per_epoch) | speed | diagnostics.device_memory()
        writer.write(step, stage, line)
        shown.update(step, dict(loss=means["loss"]))

      window = _Window(log_steps, report)
      while True:
        if finished():  # While a signal still waits: behind here it would cut the save short.
          checkpointer.wait()
        signum, most_steps = partition.agree(signals.signum, pace.steps)
        if signum:
          if saved_step != step:
            window.flush()  # Raises where the state must not be saved.
            checkpointer.save(step, state, progress, best=False)
          checkpointer.wait()
          raise Stopped(f"{stage} is saved at step {step} of {num_steps}", signum)
        if finished():
          break
        started = time.perf_counter()
        if step // steps_per_epoch != epoch:
          epoch = step // steps_per_epoch
          batches = epoch_fn(epoch)
        profiler.at(step, state)
        count = min(
          most_steps,
          num_steps - step,
          steps_per_epoch - step % steps_per_epoch,
          *(every - step % every for every in (log_steps, eval_steps)),
          profiler.steps_to_go(step),
        )
        first = step % steps_per_epoch
        state, metrics = train_chunk(state, batches, first, count, constants, key)
        waited_for = window.add(step, count, metrics)  # The chunk before; this one runs.
        step += count
        pace.update(waited_for, time.perf_counter() - started)
        if step % eval_steps and step < num_steps:
          shown.update(step)
          progress["train_seconds"] += time.perf_counter() - started
          continue
        means = window.flush()
        progress["train_seconds"] += time.perf_counter() - started
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
        stopwatch.lap()  # The evaluation's is not the training's.
  except _NotFinite as bad:
    folder = workdir / "not_finite" / f"{stage}_step_{bad.step + 1}"
    run = _Run(train_chunk, epoch_fn, steps_per_epoch, chunk_steps, constants, key)
    kept = _reproduce(bad, run, checkpointer.restore(template), folder)
    where = f"That step's state and batch are in {folder}." if kept else "None came before it."
    raise UserError(
      f"{stage}, step {bad.step + 1}: {', '.join(bad.names)} is not finite; lower the learning "
      f"rate or the weight of that term. The last checkpoint is kept. {where}"
    ) from None

  best = checkpointer.restore_best(dict(params=template.params))
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
  """The metrics since the last report. Each chunk's are fetched one chunk late."""

  def __init__(self, log_steps: int, report_fn: Callable):
    """report_fn(step, steps since the last one, means) is called for every multiple of log_steps,
    and by flush()."""
    self._log_steps, self._report_fn = log_steps, report_fn
    self._pending = None
    self._sums, self._count, self._means = {}, 0, {}

  def add(self, step: int, count: int, metrics: dict[str, jax.Array]) -> int:
    """Takes the metrics, [at least count] by name, of the `count` steps that began at `step`.

    Returns how many earlier steps were waited for; raises _NotFinite if one of them went wrong.
    """
    fetched = self._fetch()
    self._pending = (step, count, metrics)
    return fetched

  def flush(self) -> dict[str, float]:
    """Reports what has not been reported; returns the means of the last report."""
    self._fetch(report=True)
    return self._means

  def _fetch(self, report: bool = False) -> int:
    if self._pending is None:
      return 0
    step, count, metrics = self._pending
    self._pending = None
    values = {name: x[:count].astype(np.float64) for name, x in jax.device_get(metrics).items()}
    finite = np.logical_and.reduce([np.isfinite(x) for x in values.values()])
    if not finite.all():
      first = int(np.argmin(finite))
      names = sorted(name for name, x in values.items() if not np.isfinite(x[first]))
      raise _NotFinite(step + first, names)
    for name, x in values.items():
      for value in x:  # One after the other, so that the sum does not depend on the chunks.
        self._sums[name] = self._sums.get(name, 0.0) + float(value)
    self._count += count
    if report or (step + count) % self._log_steps == 0:
      self._means = {name: total / self._count for name, total in self._sums.items()}
      steps, self._sums, self._count = self._count, {}, 0
      self._report_fn(step + count, steps, self._means)
    return count


class _Run(NamedTuple):
  """What takes steps again; fields as fit()'s arguments."""

  train_chunk: Callable
  epoch_fn: Callable
  steps_per_epoch: int
  chunk_steps: int
  constants: Any
  key: jax.Array


def _reproduce(bad: "_NotFinite", run: _Run, restored, folder: pathlib.Path) -> bool:
  """Keeps what the bad step was taken with, from the newest checkpoint on; False without one."""
  if restored is None:
    return False
  state, step = restored.state, restored.step
  while step < bad.step:
    epoch, first = divmod(step, run.steps_per_epoch)
    count = min(run.chunk_steps, run.steps_per_epoch - first, bad.step - step)
    batches = run.epoch_fn(epoch)
    state, _ = run.train_chunk(state, batches, first, count, run.constants, run.key)
    step += count
  epoch, first = divmod(bad.step, run.steps_per_epoch)
  batch = jax.tree.map(lambda x: x[first], run.epoch_fn(epoch))
  about = dict(epoch=epoch, step_of_epoch=first, not_finite=bad.names)
  diagnostics.write_reproducer(folder, bad.step, state, batch, about)
  return True


class _Stopwatch:
  def __init__(self):
    self._last = time.perf_counter()

  def lap(self) -> float:
    """Seconds since the last call, or since the start."""
    last, self._last = self._last, time.perf_counter()
    return self._last - last


class _NotFinite(Exception):
  """A metric of a step is NaN or infinite."""

  def __init__(self, step: int, names: list[str]):
    super().__init__(f"step {step}: {names}")
    self.step = step  # From 0.
    self.names = names


def _shape_and_sharding(x: jax.Array) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None))


class _Pace:
  """How many steps to take in one call: so many as last about a second.

  A Ctrl-C is then answered soon and progress is seen; longer calls would save nothing.
  """

  def __init__(self, max_steps: int):
    self._max_steps, self.steps = max_steps, 1

  def update(self, count: int, seconds: float) -> None:
    """Learns that `count` steps took so long."""
    if count < self.steps:  # Cut short, by an evaluation for one; also 0, which nobody waited for.
      return
    if seconds < _CHUNK_SECONDS / 2:
      self.steps = min(2 * self.steps, self._max_steps)
    elif seconds > 2 * _CHUNK_SECONDS:
      self.steps = max(self.steps // 2, 1)

"""What every stage that learns by gradients has in common: its section's fields drive the loop."""

import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax

from bbqrec_jax import checkpoint, diagnostics, loop, run_record, train_state
from bbqrec_jax.data.batches import Batches
from bbqrec_jax.metric_writer import MetricWriter
from bbqrec_jax.partition import Partition
from bbqrec_jax.train_state import TrainState


def fit(
  config,
  stage: str,
  state: TrainState,
  train_step: Callable,
  *,
  data: Batches,
  epoch_fn: Callable,
  constants: Any,
  eval_fn: Callable,
  partition: Partition,
  workdir: pathlib.Path,
  writer: MetricWriter,
) -> loop.Fitted:
  """Trains a stage as its section says, or goes on with it; see loop.fit().

  Args:
    config: the whole one; config[stage] has what fields.py asks of every such section.
    state: before the first step, laid out by the partition.
    train_step: what train_state.make_train_step() gives.
    epoch_fn: epoch -> its batches as NumPy arrays, this process's share.
    constants: what steps read and do not change, on the devices.
    eval_fn: params -> dict of floats, on the validation split.
  """
  section = config[stage]
  train_chunk = train_state.make_train_chunk(train_step, loop.MAX_CHUNK_STEPS)
  with checkpoint.Checkpointer(workdir / "checkpoints" / stage) as checkpointer:
    return loop.fit(
      state,
      partition.compile_chunk(train_chunk, state),
      lambda epoch: partition.place_epoch(epoch_fn(epoch)),
      stage=stage,
      constants=constants,
      # A step draws little but a few words; the RBG generator's compile faster than threefry's.
      key=partition.replicate(jax.random.key(config.seed, impl="rbg")),
      num_steps=section.num_epochs * data.steps_per_epoch,
      steps_per_epoch=data.steps_per_epoch,
      eval_fn=eval_fn,
      eval_steps=section.eval_epochs * data.steps_per_epoch,
      monitor=section.monitor,
      patience=section.patience,
      log_steps=section.log_steps,
      examples_per_step=data.num_examples / data.steps_per_epoch,
      checkpointer=checkpointer,
      writer=writer,
      workdir=workdir,
      profile_steps=diagnostics.parse_steps(config.profile_steps),
    )


def record(fitted: loop.Fitted, started: float) -> dict[str, Any]:
  """What the record of such a stage holds beside its metrics; JSON-able.

  Args:
    started: time.perf_counter() at the beginning of the stage, in this process.
  """
  return fitted.summary | dict(
    num_params=sum(x.size for x in jax.tree.leaves(fitted.params)),
    seconds=fitted.summary["earlier_seconds"] + time.perf_counter() - started,
    peak_memory_mb=run_record.peak_memory_mb(),
  )

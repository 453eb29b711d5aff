"""What helps to understand a training: profiles, device memory, what a step went wrong with."""

import pathlib
import shutil
from typing import Any, Self

import jax
import numpy as np

from bbqrec_jax import partition
from bbqrec_jax.checkpoint import Checkpointer
from bbqrec_jax.errors import UserError


def parse_steps(text: str) -> tuple[int, int]:
  """config.profile_steps: "10:20" are the steps 10 .. 19, "" none, which is (0, 0).

  Raises UserError if the text reads otherwise.
  """
  first, colon, last = text.partition(":")
  if not text:
    return 0, 0
  if not (colon and first.isdecimal() and last.isdecimal() and int(first) < int(last)):
    raise UserError(f"profile_steps={text!r} must be FIRST:LAST, such as 10:20, or empty.")
  return int(first), int(last)


class Profiler:
  """Traces some of a training's steps with jax.profiler; TensorBoard shows them.

  A context manager; leaving it ends a trace that is under way.
  """

  def __init__(self, steps: tuple[int, int], folder: pathlib.Path):
    """steps: (first, behind the last); none if they are equal. folder: where the trace goes."""
    self._first, self._last = steps
    self._folder = folder
    self._tracing = False

  def at(self, step: int, state: Any) -> None:
    """To be called before step `step` (from 0) is taken, with the state that it takes."""
    if self._tracing and step >= self._last:
      self._stop(state)
    elif not self._tracing and self._first <= step < self._last:
      jax.block_until_ready(state)
      jax.profiler.start_trace(self._folder)
      self._tracing = True

  def steps_to_go(self, step: int) -> int:
    """How many steps can be taken until at() must be called."""
    ahead = [bound - step for bound in (self._first, self._last) if bound > step]
    return min(ahead, default=np.iinfo(np.int32).max)

  def _stop(self, state: Any) -> None:
    jax.block_until_ready(state)
    jax.profiler.stop_trace()
    self._tracing = False
    print(f"The profile of steps {self._first}:{self._last} is in {self._folder}.", flush=True)

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *exc_info) -> None:
    if self._tracing:
      jax.profiler.stop_trace()


def device_memory() -> dict[str, float]:
  """{"device_memory_mb", "device_peak_memory_mb"} of this process's first device, in MiB.

  {} where the device does not count, as CPUs do not.
  """
  stats = jax.local_devices()[0].memory_stats()
  if not stats:
    return {}
  return dict(
    device_memory_mb=stats["bytes_in_use"] / 2**20,
    device_peak_memory_mb=stats["peak_bytes_in_use"] / 2**20,
  )


def write_reproducer(
  folder: pathlib.Path, step: int, state: Any, batch: Any, about: dict[str, Any]
) -> None:
  """Keeps what step `step` (from 0) was taken with, as the one checkpoint in a folder.

  Read it with checkpoint.Checkpointer(folder).restore(template); batch.npz holds the batch.

  Args:
    state: before the step.
    batch: a pytree of arrays.
    about: JSON-able, kept as the checkpoint's progress.
  """
  if partition.is_main():
    shutil.rmtree(folder, ignore_errors=True)  # Of an earlier start that came to the same step.
  partition.barrier("an earlier reproducer is removed")
  with Checkpointer(folder) as checkpointer:
    checkpointer.save(step, state, about, best=False)
  leaves = jax.tree_util.tree_leaves_with_path(partition.fetch(batch))
  name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
  if partition.is_main():
    np.savez(folder / "batch.npz", **{name(path): leaf for path, leaf in leaves})

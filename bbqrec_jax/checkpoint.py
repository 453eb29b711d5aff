"""Checkpoints: a stage's state and its progress, the newest few and the best one."""

import contextlib
import copy
import dataclasses
import logging
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import jax
import orbax.checkpoint as ocp

from bbqrec_jax import partition
from bbqrec_jax.errors import UserError


class Restored(NamedTuple):
  state: Any  # The template's structure, types and shardings, with the values saved.
  progress: dict[str, Any]  # What the caller saved beside the state, as JSON has it.
  step: int


class Best(NamedTuple):
  state: Any  # The template's structure, types and shardings, with the values saved.
  step: int


@dataclasses.dataclass
class _NewestAndBest(ocp.checkpoint_managers.PreservationPolicy):
  """Which checkpoints stay. Orbax's own policy reads a metric, and fails on a damaged one."""

  keep: int
  best: int | None = None  # A step.

  def should_preserve(self, checkpoints: Sequence, *, context: Any) -> list[bool]:
    """Orbax asks once a new checkpoint is complete; `checkpoints` come oldest first."""
    del context  # Empty.
    newest = len(checkpoints) - self.keep
    return [i >= newest or info.step == self.best for i, info in enumerate(checkpoints)]


class Checkpointer:
  """Saves and restores one stage's training, in a directory of its own.

  A save appears under its step's name only when all of it is written, so a kill at any moment
  leaves the checkpoints before it. The newest ones are for resuming; the best one, the last that
  was saved with best=True, is kept besides. A context manager.
  """

  def __init__(self, directory: str | os.PathLike, keep: int = 2):
    """Opens the directory, or makes it.

    Args:
      directory: e.g. <workdir>/checkpoints/<stage>.
      keep: how many of the newest checkpoints stay; two, so that a damaged one costs little.
    """
    logging.getLogger("absl").addFilter(_no_chatter)
    self._directory = pathlib.Path(directory).resolve()  # Orbax refuses relative paths.
    self._policy = _NewestAndBest(keep)
    self._manager = ocp.CheckpointManager(
      self._directory,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=self._policy,
        cleanup_tmp_directories=True,  # What a kill in the middle of a save left behind.
      ),
      item_handlers={"state": ocp.PyTreeCheckpointHandler(), "record": ocp.JsonCheckpointHandler()},
    )
    self._policy.best = self._find_best()

  def save(self, step: int, state: Any, progress: dict[str, Any], best: bool) -> None:
    """Saves in the background; `state` may be donated, `progress` changed, once this returns.

    Args:
      step: updates done; a step can be saved once.
      state: a pytree of arrays.
      progress: what else resuming needs, JSON-able.
      best: whether this is the best state so far, by validation.
    """
    # Copied, since Orbax turns it into JSON later, in the background.
    record = ocp.args.JsonSave({"progress": copy.deepcopy(progress), "best": best})
    items = ocp.args.Composite(state=ocp.args.PyTreeSave(state), record=record)
    if best:
      self._policy.best = step
    # Forced: Orbax otherwise skips, silently, a step that is not later than the newest.
    self._manager.save(step, args=items, force=True)

  def restore(self, template: Any) -> Restored | None:
    """The newest usable checkpoint, or None if the directory holds none.

    A damaged one is passed over with a warning and set aside under the name <step>.damaged.

    Args:
      template: a pytree of arrays, or of jax.ShapeDtypeStruct, in the structure that was saved.

    Raises:
      UserError: there are checkpoints, and none can be read into the template.
    """
    self._manager.wait_until_finished()
    damaged = {}  # Step -> the reason, on one line.
    for step in sorted(self._manager.all_steps(), reverse=True):
      try:
        progress = self._read_record(step)["progress"]
        restored = Restored(self._read_state(step, template, partial=False), progress, step)
      except Exception as error:  # Orbax, TensorStore and JSON each raise their own kinds.
        damaged[step] = _first_line(error)
        continue
      # Only now: had every one failed, the template would be to blame and not the files.
      for bad_step, reason in damaged.items():
        logging.getLogger("absl").warning(
          "Checkpoint %s cannot be read (%s); going on from step %d, the one before.",
          self._directory / str(bad_step), reason, step,
        )  # fmt: skip
      self._set_aside(damaged)
      return restored
    if damaged:
      raise UserError(
        f"No checkpoint in {self._directory} can be read ({next(iter(damaged.values()))}); resume "
        "with the code and the configuration that wrote them, or remove the directory to start "
        "anew."
      )
    return None

  def restore_best(self, template: Any) -> Best:
    """The state that was best by validation.

    Args:
      template: as for `restore`, or a dict of only some of the state's fields, such as
        {"params": ...}.

    Raises:
      UserError: there is none, or it cannot be read into the template.
    """
    self._manager.wait_until_finished()
    step = self._policy.best
    if step is None:
      raise UserError(f"{self._directory} holds no best checkpoint; train this stage first.")
    try:
      return Best(self._read_state(step, template, partial=True), step)
    except Exception as error:  # As in restore().
      raise UserError(
        f"The best checkpoint, {self._directory / str(step)}, cannot be read "
        f"({_first_line(error)}); use the code and the configuration that wrote it, or train the "
        "stage again."
      ) from error

  def wait(self) -> None:
    """Returns when everything saved is on disk."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits, and frees the background threads."""
    self._manager.close()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *exc_info) -> None:
    self.close()

  def _read_record(self, step: int) -> dict[str, Any]:
    items = ocp.args.Composite(record=ocp.args.JsonRestore())
    return self._manager.restore(step, args=items).record

  def _read_state(self, step: int, template: Any, partial: bool) -> Any:
    item = ocp.args.PyTreeRestore(
      jax.eval_shape(lambda: template),
      restore_args=ocp.checkpoint_utils.construct_restore_args(template),
      partial_restore=partial,
    )
    state = self._manager.restore(step, args=ocp.args.Composite(state=item)).state
    # A partial restore hands the template's own leaf back where the checkpoint has none.
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
      if isinstance(leaf, jax.ShapeDtypeStruct):
        raise ValueError(f"It has no {jax.tree_util.keystr(path)}.")
    wanted = jax.tree.leaves(template)
    for (path, leaf), like in zip(jax.tree_util.tree_leaves_with_path(state), wanted):
      if leaf.shape != like.shape:  # Orbax does not mind.
        name = jax.tree_util.keystr(path)
        raise ValueError(f"Its {name} is of shape {leaf.shape}, not {like.shape}.")
    return state

  def _find_best(self) -> int | None:
    for step in sorted(self._manager.all_steps(), reverse=True):
      with contextlib.suppress(Exception):  # A damaged record is restore()'s to report.
        if self._read_record(step)["best"]:
          return step
    return None

  def _set_aside(self, steps) -> None:
    """Renames, since a step that is still there could not be saved again when it comes."""
    if partition.is_main():
      for step in steps:
        path = self._directory / str(step)
        path.rename(path.with_name(f"{path.name}.damaged"))
    self._manager.reload()
    self._policy.best = self._find_best()


def _no_chatter(record: logging.LogRecord) -> bool:
  """Drops what Orbax says below a warning: a page for every save."""
  return record.levelno >= logging.WARNING or "orbax" not in record.pathname


def _first_line(error: Exception) -> str:
  return f"{type(error).__name__}: {error}".splitlines()[0]

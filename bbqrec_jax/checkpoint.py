"""Checkpoints: a stage's state and its progress, the newest few and the best one."""

import contextlib
import copy
import dataclasses
import json
import logging
import os
import pathlib
import shutil
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath

from bbqrec_jax import partition
from bbqrec_jax.errors import UserError
from bbqrec_jax.models import layers

# How Orbax's and TensorStore's own errors name what a file system refused.
_FILE_SYSTEM_WORDS = (
  "No space left",
  "Read-only file system",
  "Permission denied",
  "Stale file",
  "File too large",
  "Input/output error",
  "No such file",
  "No ArrayMetadata found",  # Orbax, where the folder went away in the middle of a save.
  "quota",
)

SCHEMA = 1  # Of what is written; a checkpoint of another one is refused by its number.


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
  was saved with best=True, is kept besides. What is read is compared with digests of what was
  saved, so that no damage is taken for a state; it may be read onto other devices than those it
  was saved from. A context manager; of many processes all call it alike.
  """

  def __init__(self, directory: str | os.PathLike, keep: int = 2, read_only: bool = False):
    """Opens the directory, or makes it.

    Args:
      directory: e.g. <workdir>/checkpoints/<stage>.
      keep: how many of the newest checkpoints stay; two, so that a damaged one costs little.
      read_only: whether to change nothing in the directory, where another process may be saving.
    """
    logging.getLogger("absl").addFilter(_no_chatter)
    self._directory = pathlib.Path(directory).resolve()  # Orbax refuses relative paths.
    self._policy = _NewestAndBest(keep)
    self._read_only = read_only
    for step, reason in self._without_metadata().items():  # The manager would fail on them.
      logging.getLogger("absl").warning(
        "Checkpoint %s cannot be read (%s).", self._directory / str(step), reason
      )
      self._rename_damaged(step)
    partition.barrier("checkpoints without metadata are set aside")
    self._manager = ocp.CheckpointManager(
      self._directory,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=self._policy,
        # What a kill in the middle of a save left behind; to a reader it may be a save.
        cleanup_tmp_directories=not read_only,
        read_only=read_only,
        create=not read_only,
        save_interval_steps=0 if read_only else 1,  # As Orbax would set it, with a warning.
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

    Raises:
      UserError: this save, or the one before it, cannot be written.
    """
    # Copied, since Orbax turns it into JSON later, in the background.
    record = dict(
      schema=SCHEMA, progress=copy.deepcopy(progress), best=best, digests=_digests(state)
    )
    record["digest"] = _json_digest(record)
    items = ocp.args.Composite(state=ocp.args.PyTreeSave(state), record=ocp.args.JsonSave(record))
    with self._told():
      # Forced: Orbax otherwise skips, silently, a step that is not later than the newest.
      self._manager.save(step, args=items, force=True)
    if best:
      self._policy.best = step

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
    """Returns when everything saved is on disk; raises UserError if it cannot be written."""
    with self._told():
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits, as wait() does, and frees the background threads."""
    with self._told():
      self._manager.close()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *exc_info) -> None:
    self.close()

  @contextlib.contextmanager
  def _told(self):
    """What the file system refuses, in a sentence."""
    try:
      yield
    except OSError as error:
      reason = _first_line(error)
    except Exception as error:  # Orbax and TensorStore wrap what the system says in their own.
      reason = _first_line(error)
      if not any(word in str(error) for word in _FILE_SYSTEM_WORDS):
        raise
    else:
      return
    raise UserError(
      f"A checkpoint cannot be written to {self._directory} ({reason}); make room or mount it "
      "again. The checkpoints before it are whole, and the same command goes on from them."
    )

  def _read_record(self, step: int) -> dict[str, Any]:
    items = ocp.args.Composite(record=ocp.args.JsonRestore())
    record = self._manager.restore(step, args=items).record
    if record.get("schema") != SCHEMA:
      raise ValueError(f"It is of schema {record.get('schema')}, this code reads {SCHEMA}.")
    if record.pop("digest", None) != _json_digest(record):
      raise ValueError("Its record is not what was written.")
    return record

  def _read_state(self, step: int, template: Any, partial: bool) -> Any:
    template = jax.tree.map(_with_sharding, template)
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
    written = self._read_record(step)["digests"]
    for name, digest in _digests(state).items():
      if written.get(name) != digest:
        raise ValueError(f"Its {name} is not what was written.")
    return state

  def _find_best(self) -> int | None:
    for step in sorted(self._manager.all_steps(), reverse=True):
      with contextlib.suppress(Exception):  # A damaged record is restore()'s to report.
        if self._read_record(step)["best"]:
          return step
    return None

  def _without_metadata(self) -> dict[int, str]:
    """Steps of whose checkpoint Orbax cannot even read what it is -> the reason."""
    damaged = {}
    for path in self._directory.glob("*"):
      if path.name.isdecimal():
        metadata = ocp.path.step.Metadata(int(path.name), epath.Path(path))
        try:
          _ = metadata.commit_timestamp
        except Exception as error:  # As in restore().
          damaged[int(path.name)] = _first_line(error)
    return damaged

  def _rename_damaged(self, step: int) -> None:
    """A step that is still there could not be saved again when it comes."""
    if partition.is_main() and not self._read_only:
      path = self._directory / str(step)
      target = path.with_name(f"{path.name}.damaged")
      shutil.rmtree(target, ignore_errors=True)  # The step may have been damaged before.
      path.rename(target)

  def _set_aside(self, steps) -> None:
    for step in steps:
      self._rename_damaged(step)
    partition.barrier("damaged checkpoints are set aside")
    self._manager.reload()
    self._policy.best = self._find_best()


def best_params(workdir: pathlib.Path, stage: str, template: Any) -> Any:
  """The parameters that were best by validation in a stage of a run.

  Args:
    template: a pytree of arrays or jax.ShapeDtypeStructs, as for Checkpointer.restore().

  Raises UserError if there are none, or they cannot be read into the template.
  """
  with Checkpointer(workdir / "checkpoints" / stage, read_only=True) as checkpointer:
    return checkpointer.restore_best(dict(params=template)).state["params"]


def _digests(tree: Any) -> dict[str, int]:
  """name of a leaf ("params/x") -> a number that changes with any of its bits."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
  return dict(zip(names, map(int, jax.device_get([_digest(leaf) for _, leaf in leaves]))))


@jax.jit
def _digest(x: jax.Array) -> jax.Array:
  """[] uint32; sums integers, so that it does not depend on which device holds what."""
  x = jnp.asarray(x)
  bits = x.astype(jnp.uint32)
  if not jnp.issubdtype(x.dtype, jnp.integer) and x.dtype != bool:
    word = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
    bits = jax.lax.bitcast_convert_type(x, word).astype(jnp.uint32)
  place = layers.hashed_bits(jnp.array([1, 2], jnp.uint32), x.shape)
  return jnp.sum(layers.hashed_words(bits ^ place), dtype=jnp.uint32)


def _json_digest(record: dict[str, Any]) -> int:
  return zlib.crc32(json.dumps(record, sort_keys=True).encode())


def _with_sharding(leaf):
  """A leaf that does not say where it belongs goes to this process's first device."""
  if isinstance(leaf, jax.ShapeDtypeStruct) and leaf.sharding is None:
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
  return leaf


def _no_chatter(record: logging.LogRecord) -> bool:
  """Drops what Orbax says below a warning, a page for every save; and that a reader reads only."""
  is_warning = record.levelno >= logging.WARNING and "is read only" not in record.getMessage()
  return is_warning or "orbax" not in record.pathname


def _first_line(error: Exception) -> str:
  return f"{type(error).__name__}: {error}".splitlines()[0]

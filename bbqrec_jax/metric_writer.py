"""Metrics of a run: metrics.jsonl, and TensorBoard events beside it."""

import json
import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any, Self

from bbqrec_jax import partition
from bbqrec_jax.run_record import to_jsonable


class MetricWriter:
  """Writes scalars to <workdir>/metrics.jsonl and <workdir>/tensorboard; process 0 only.

  A line of metrics.jsonl is {"stage": str, "step": int, "time": Unix seconds, "metrics": {name:
  number, or null for NaN and infinities}}. TensorBoard shows the same as "<stage>/<name>", with
  "_" for "@". A context manager, since events are written in the background.
  """

  def __init__(self, workdir: str | os.PathLike):
    """Opens the workdir, which exists, and drops a last line that a kill cut short."""
    self._path = pathlib.Path(workdir) / "metrics.jsonl"
    self._event_dir = pathlib.Path(workdir) / "tensorboard"
    self._event_writers: dict[str, Any] = {}  # Stage -> tensorboardX.SummaryWriter.
    self._active = partition.is_main()
    if self._active and self._path.exists():
      text = self._path.read_bytes()
      if not text.endswith(b"\n"):  # Also true of an empty file, which stays empty.
        os.truncate(self._path, text.rfind(b"\n") + 1)

  def write(self, step: int, stage: str, metrics: Mapping[str, float]) -> None:
    """Writes one line; it is in the file when this returns.

    Args:
      step: updates done, counted by stage.
      stage: the stage's name, as in the config.
      metrics: scalars; arrays of shape [] are scalars too.
    """
    if not self._active:
      return
    values = {name: float(value) for name, value in metrics.items()}
    line = {"stage": stage, "step": step, "time": round(time.time(), 3), "metrics": values}
    with self._path.open("a", encoding="utf-8") as file:
      file.write(json.dumps(to_jsonable(line), allow_nan=False) + "\n")
    for name, value in values.items():
      tag = f"{stage}/{name}".replace("@", "_")  # TensorBoard's tags have no "@".
      self._events(stage).add_scalar(tag, value, step)

  def truncate(self, stage: str, step: int) -> None:
    """Drops what `stage` wrote after `step`, the step that a resumed run goes on from.

    Damaged lines, which nothing could read, go too.
    """
    if not self._active or not self._path.exists():
      return
    lines = self._path.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if _stays(line, stage, step)]
    temporary = self._path.with_name(f"{self._path.name}.tmp")
    temporary.write_bytes(b"".join(kept))
    os.replace(temporary, self._path)
    if stage in self._event_writers:
      self._event_writers.pop(stage).close()
    self._events(stage, purge_step=step + 1)

  def close(self) -> None:
    """Flushes the events."""
    for writer in self._event_writers.values():
      writer.close()
    self._event_writers.clear()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *exc_info) -> None:
    self.close()

  def _events(self, stage: str, purge_step: int | None = None):
    # Here, since where PyTorch is installed it is imported too, which takes a second; commands that
    # write no events, such as recommend, need not wait for it.
    import tensorboardX

    # A directory per stage: purging hides every later event of the directory, whatever its tag.
    if stage not in self._event_writers:
      self._event_writers[stage] = tensorboardX.SummaryWriter(
        str(self._event_dir / stage), purge_step=purge_step
      )
    return self._event_writers[stage]


def _stays(line: bytes, stage: str, step: int) -> bool:
  """Whether the line is of another stage, or of this step or before; a damaged line is not."""
  try:
    record = json.loads(line)
    return record["stage"] != stage or record["step"] <= step
  except (ValueError, KeyError, TypeError, RecursionError):
    return False

"""What runs say while they go on: their last lines on a terminal, a line now and then elsewhere."""

import os
import pathlib
import shutil
import sys
import time
from collections.abc import Mapping
from typing import Self

LINE_SECONDS = 300.0  # Elsewhere; a run's log has more.
_DRAW_SECONDS = 1.0  # On a terminal.
_TAIL = 4096  # Bytes; of a line that is longer its end is shown.


class Watch:
  """Shows on stderr what each of several runs has said last.

  A context manager. On a terminal two lines for each run are written over again and again: before
  anything else is printed, they have to be cleared.
  """

  def __init__(self):
    self._is_terminal = sys.stderr.isatty()
    self._shown = time.monotonic() - (_DRAW_SECONDS if self._is_terminal else 0)
    self._height = 0  # Lines that stand above the cursor.

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *exc_info) -> None:
    self.clear()

  def show(self, logs: Mapping[str, pathlib.Path]) -> None:
    """Shows the state of the runs, a name -> its log, if it is time for it."""
    now = time.monotonic()
    if now - self._shown < (_DRAW_SECONDS if self._is_terminal else LINE_SECONDS):
      return
    said = [(name, last_line(log)) for name, log in logs.items()]
    if not self._is_terminal:
      for name, line in said:
        print(f"{name}: {line}", file=sys.stderr, flush=True)
    else:
      self.clear()
      columns, rows = shutil.get_terminal_size()
      lines = [line for name, last in said for line in (name, f"  {last}")][: rows - 1]
      for line in lines:
        print(line[: columns - 1], file=sys.stderr, flush=True)  # One that is full may wrap.
      self._height = len(lines)
    self._shown = now

  def clear(self) -> None:
    """Takes what stands on the terminal away; the next show() writes at once."""
    if self._height:
      print(f"\x1b[{self._height}F\x1b[J", end="", file=sys.stderr, flush=True)
      self._height, self._shown = 0, -_DRAW_SECONDS

  def leave(self) -> None:
    """Lets stand what is on the terminal: somebody else has written below it."""
    self._height = 0


def last_line(log: pathlib.Path) -> str:
  """The last line of a run's log that is not blank; "" if there is none."""
  with open(log, "rb") as file:
    file.seek(0, os.SEEK_END)
    file.seek(max(file.tell() - _TAIL, 0))
    lines = file.read().decode("utf-8", errors="replace").splitlines()
  return next((line.strip() for line in reversed(lines) if line.strip()), "")

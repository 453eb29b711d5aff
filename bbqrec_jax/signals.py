"""Signals that wait until what is under way can be kept."""

import signal
import sys
import threading
from typing import Self


class Deferred:
  """Notes the first Ctrl-C or SIGTERM; a second Ctrl-C raises KeyboardInterrupt at once.

  A context manager; does nothing in other threads than the main one, which get no signals.
  """

  def __init__(self, message: str):
    """message: what the first signal is answered with, on stderr."""
    self._message = message
    self.signum = 0  # Of the signal that came, if one has.
    self._previous = {}

  def __enter__(self) -> Self:
    if threading.current_thread() is threading.main_thread():
      for signum in (signal.SIGINT, signal.SIGTERM):
        self._previous[signum] = signal.signal(signum, self._on_signal)
    return self

  def __exit__(self, *exc_info) -> None:
    for signum, handler in self._previous.items():
      signal.signal(signum, handler)

  def _on_signal(self, signum: int, frame) -> None:
    del frame
    if self.signum and signum == signal.SIGINT:
      raise KeyboardInterrupt
    self.signum = signum
    print(f"\n{self._message}", file=sys.stderr, flush=True)

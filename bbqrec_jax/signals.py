"""Signals that wait until what is under way can be kept, or end a command at once."""

import contextlib
import os
import signal
import sys
import threading
from typing import Any, Self

from bbqrec_jax.errors import Stopped


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


def end_at_once(message: str) -> dict[int, Any]:
  """From now on Ctrl-C and SIGTERM end the process: the message on stderr, the status of a shell.

  It ends without an exception, since one that comes up within a callback of JAX is dropped, and
  without Python's orderly end, which can crash where XLA is at work. For a command that has nothing
  to save, or while it has nothing, in the main thread.

  Returns:
    signal -> the handler that it had, as signal.signal() takes it.
  """

  def leave(signum: int, frame) -> None:
    del frame
    with contextlib.suppress(RuntimeError, OSError):  # In the middle of a print; nobody reads.
      sys.stdout.flush()
    os.write(2, f"\n{message}\n".encode())  # sys.stderr can be in the middle of one too.
    os._exit(Stopped("", signum).status)

  return {signum: signal.signal(signum, leave) for signum in (signal.SIGINT, signal.SIGTERM)}

"""The exceptions that commands know how to tell, and how they tell them."""

import os
import signal
import sys
from collections.abc import Callable


class UserError(Exception):
  """Bad input, said in one clear sentence: what is wrong, where, and what to do.

  Commands print it without a traceback and exit with status 1.
  """


class Stopped(Exception):
  """A signal asked the run to stop, and all of it is saved; the message says where."""

  def __init__(self, message: str, signum: int):
    super().__init__(message)
    self.signum = signum
    self.status = 128 + signum  # The command's exit status, as a shell has it.


def exit_status(command: Callable[[], None], interrupted: str = "Stopped.") -> int:
  """Calls what a command does and returns the process's exit status.

  That is 0; 1 where a UserError has been told; that of SIGINT at Ctrl-C, which is told as
  `interrupted`; and that of SIGPIPE, with nothing said, where whoever read the output has had
  enough (`... | head`).
  """
  try:
    command()
    sys.stdout.flush()
  except UserError as error:
    print(f"Error: {error}", file=sys.stderr)
    return 1
  except KeyboardInterrupt:
    print(f"\n{interrupted}", file=sys.stderr)
    return Stopped("", signal.SIGINT).status
  except BrokenPipeError:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # For the flush at the end.
    return Stopped("", signal.SIGPIPE).status
  return 0

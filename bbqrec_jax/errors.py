"""The exceptions that commands know how to tell."""


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

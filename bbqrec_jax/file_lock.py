"""A lock between processes, held by an open file: however its process ends, it is free again."""

import fcntl
import os
import pathlib


class FileLock:
  """The lock at a path, which is free or held by one process. Does not wait for it."""

  def __init__(self, path: pathlib.Path):
    self._path = path
    self._file: int | None = None

  @property
  def is_held(self) -> bool:
    """Whether this object holds it."""
    return self._file is not None

  def acquire(self) -> bool:
    """Tries to take the lock; returns whether it is held now.

    Raises OSError if the file cannot be made, or its file system knows no locks.
    """
    while not self.is_held:
      file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_at(file, self._path):  # Otherwise whoever held it has removed it since.
          self._file, file = file, None
      except BlockingIOError:
        return False
      finally:
        if file is not None:
          os.close(file)
    return True

  def release(self) -> None:
    """Gives the lock back, if it is held, and removes its file."""
    if self._file is None:
      return
    if _is_at(self._file, self._path):
      self._path.unlink()
    os.close(self._file)
    self._file = None


def _is_at(file: int, path: pathlib.Path) -> bool:
  """Whether an open file is the one at the path."""
  try:
    return os.path.samestat(os.fstat(file), os.stat(path))
  except FileNotFoundError:
    return False

"""Numbered lines of a text file, plain or gzipped, with readable errors."""

import collections
import gzip
import os
import zlib
from collections.abc import Iterator, Sequence

from bbqrec_jax.errors import UserError


def read_lines(path: str) -> Iterator[tuple[int, str]]:
  """Yields (line number from 1, line without its end) for every line that is not blank.

  Only "\\n" and "\\r\\n" end a line: titles in the wild hold a lone "\\r".
  Raises UserError where the file is missing, unreadable, not UTF-8, or a truncated .gz.
  """
  opener = gzip.open if path.endswith(".gz") else open
  number = 0
  try:
    with opener(path, "rt", encoding="utf-8-sig", newline="\n") as file:
      for number, line in enumerate(file, start=1):
        line = line.rstrip("\r\n")
        if line:
          yield number, line
  except FileNotFoundError as error:
    raise UserError(f"{path}: no such file.") from error
  except UnicodeDecodeError as error:
    raise UserError(
      f"{path}: the text{_after(number)} is not UTF-8; convert the file to UTF-8."
    ) from error
  except (EOFError, zlib.error, gzip.BadGzipFile) as error:
    raise UserError(
      f"{path}: damaged or truncated .gz{_after(number)}; delete the file and fetch it again."
    ) from error
  except OSError as error:
    raise UserError(f"{path}: cannot be read ({error.strerror or error}).") from error


def _after(number: int) -> str:
  """Where reading ended, for a message; "" if no line was read."""
  return f" after line {number}" if number else ""


def check_distinct(columns: Sequence[str], where: str) -> None:
  """Raises UserError, starting with `where`, if a table has two columns of one name."""
  for name, count in collections.Counter(columns).items():
    if count > 1:
      raise UserError(f"{where}: column {name!r} is there {count} times; keep one.")


def check_file(path: str) -> str:
  """Returns the path with ~ expanded; raises UserError if there is no such file to read."""
  path = os.path.expanduser(path)
  if os.path.isdir(path):
    raise UserError(f"{path}: a folder stands where a file is expected.")
  if not os.path.isfile(path):
    raise UserError(f"{path}: no such file.")
  if not os.access(path, os.R_OK):
    raise UserError(f"{path}: no permission to read it.")
  return path

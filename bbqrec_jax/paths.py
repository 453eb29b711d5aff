"""Paths that a user names: arguments of commands, and files that are to be written."""

import argparse
import os
import pathlib

from bbqrec_jax.errors import UserError


def folder(text: str) -> pathlib.Path:
  """An argument's type: the path of a folder, with ~ expanded."""
  return _path(text, "folder")


def file(text: str) -> pathlib.Path:
  """An argument's type: the path of a file, with ~ expanded."""
  return _path(text, "file")


def _path(text: str, kind: str) -> pathlib.Path:
  if not text:  # An unset variable of a shell; it would be the current folder.
    raise argparse.ArgumentTypeError(f"is empty; give a {kind}")
  return pathlib.Path(os.path.expanduser(text))  # A shell leaves the ~ of --out=~/x.json as it is.


def check_writable(path: str | os.PathLike) -> None:
  """Raises UserError where no file can be written, so that nothing is computed in vain."""
  path = os.fspath(path)
  parent = os.path.dirname(path) or "."
  if os.path.isdir(path):
    raise UserError(f"{path}: a folder stands where a file is to be written; give another name.")
  if not os.path.isdir(parent) or not os.access(parent, os.W_OK | os.X_OK):
    raise UserError(
      f"{path}: there is no folder {parent} that can be written into; make it, or give another."
    )


def check_apart(
  name: str, path: str | os.PathLike, written_name: str, written: str | os.PathLike
) -> None:
  """Raises UserError if a file that is to be written is another that is in use.

  Args:
    name, written_name: the arguments that the two paths were given as.
  """
  try:
    is_same = os.path.samefile(path, written)
  except OSError:  # One of them does not exist yet.
    is_same = os.path.realpath(path) == os.path.realpath(written)
  if is_same:
    raise UserError(
      f"{name} and {written_name} are the same file, {os.fspath(written)}; give another "
      f"{written_name}."
    )

"""Feeding what is wrong to the package's doors: what must come of it, and how often it was done."""

import contextlib
import hashlib
import os
import pathlib
import signal
import threading
from collections.abc import Callable, Iterable, Iterator

import pytest
from hypothesis import strategies as st

from bbqrec_jax.errors import UserError

PROPERTY = "malformed"  # Of a test's report: how many inputs it fed. conftest.py adds them up.
DEEP = "[" * 100_000  # Deeper than any parser of Python's goes.
SECONDS = 30  # Longer, and it hangs; generous for a busy machine.

_fed = 0


class Reached(Exception):
  """Raised in place of long work: the input was accepted."""


def outcome(call: Callable[[], object], folder: pathlib.Path | None = None) -> str | None:
  """What a call makes of a malformed input: its sentence, or None if it accepts the input.

  Args:
    call: raises UserError to refuse; ends, or raises Reached, to accept.
    folder: must be left as it was by a refusal.
  """
  global _fed
  _fed += 1
  before = contents(folder) if folder else None
  with _deadline():
    try:
      call()
    except Reached:
      return None
    except UserError as error:
      said = str(error)
    else:
      return None
  assert said.strip() and "\n" not in said, f"One sentence is wanted, not {said!r}."
  if folder:
    assert contents(folder) == before, "What refuses must not write."
  return said


def command_outcome(
  command: Callable[[], int], capsys: pytest.CaptureFixture, folder: pathlib.Path | None = None
) -> str | None:
  """The same for a command, which tells by its exit status and one line on stderr."""
  capsys.readouterr()

  def call():
    try:
      status = command()
    except SystemExit as error:  # absl's flags and argparse leave like this.
      status = error.code
    said = capsys.readouterr().err
    if status:
      assert status == 1 and said.count("\n") == 1, f"{status}: {said}"
      raise UserError(said.removesuffix("\n"))

  return outcome(call, folder)


def numbered(values: Iterable) -> list:
  """Parameters of a test that go by their number, for their text may be long."""
  return [pytest.param(value, id=str(n)) for n, value in enumerate(values)]


def damage(draw, content: bytes) -> bytes:
  """Bytes with one thing wrong: cut, overwritten, inserted, doubled or left out somewhere."""
  at = draw(st.integers(0, len(content)))
  size = draw(st.integers(0, 20))
  new = draw(st.binary(min_size=1, max_size=8) | st.sampled_from([b"\0", b"\n", b"\t", b"\xff"]))
  kinds = dict(
    cut=content[:at],
    overwrite=content[:at] + new + content[at + len(new) :],
    insert=content[:at] + new + content[at:],
    double=content[: at + size] + content[at:],
    leave_out=content[:at] + content[at + size :],
  )
  return kinds[draw(st.sampled_from(sorted(kinds)))]


def contents(folder: pathlib.Path) -> dict[str, str]:
  """Every path below the folder, with what it holds or what kind of thing it is."""
  found = {}
  for at, folders, files in os.walk(folder):
    for name in folders + files:
      path = pathlib.Path(at) / name
      if path.is_symlink():
        found[str(path)] = f"link to {os.readlink(path)}"
      elif path.is_file():
        found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
      else:
        found[str(path)] = "folder" if path.is_dir() else "other"
  return found


def num_fed() -> int:
  """How many inputs this process has fed so far."""
  return _fed


@contextlib.contextmanager
def _deadline() -> Iterator[None]:
  """Fails what does not end; only the main thread can be told."""
  if threading.current_thread() is not threading.main_thread():
    yield
    return

  def fail(signum, frame):
    raise AssertionError(f"No answer within {SECONDS} seconds.")

  previous = signal.signal(signal.SIGALRM, fail)
  signal.alarm(SECONDS)
  try:
    yield
  finally:
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)

"""Of processes that want a lock one has it, until it gives it back or ends."""

import os
import signal
import subprocess
import sys

import pytest

from bbqrec_jax.file_lock import FileLock

_HOLDER = """
import pathlib, sys, time
from bbqrec_jax.file_lock import FileLock
print(FileLock(pathlib.Path(sys.argv[1])).acquire(), flush=True)
time.sleep(600)
"""


def test_one_of_two_holds_it(tmp_path):
  path = tmp_path / "lock"
  first, second = FileLock(path), FileLock(path)
  second.release()  # Nothing is held.
  assert first.acquire() and first.acquire() and first.is_held
  assert not second.acquire() and not second.is_held
  second.release()
  assert not second.acquire() and path.exists()
  first.release()
  assert not first.is_held and not path.exists()
  assert second.acquire() and not first.acquire()


def test_it_ends_with_its_process(tmp_path):
  path = tmp_path / "lock"
  command = [sys.executable, "-c", _HOLDER, str(path)]
  with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
    assert process.stdout.readline() == "True\n"
    assert not FileLock(path).acquire()
    process.send_signal(signal.SIGKILL)
  assert path.exists() and FileLock(path).acquire()


def test_a_file_that_is_removed_meanwhile_is_no_lock(tmp_path, monkeypatch):
  path = tmp_path / "lock"
  first, second, third = (FileLock(path) for _ in range(3))
  assert first.acquire()
  open_file = os.open

  def slow_open(*args):
    file = open_file(*args)
    monkeypatch.undo()
    first.release()  # Between the second's opening and its locking.
    assert third.acquire()
    return file

  monkeypatch.setattr("os.open", slow_open)
  assert not second.acquire()
  assert third.is_held and path.exists()


def test_where_no_file_can_be_made_it_says_so(tmp_path):
  lock = FileLock(tmp_path / "missing" / "lock")
  with pytest.raises(FileNotFoundError):
    lock.acquire()
  assert not lock.is_held

"""What stands on a screen while runs go on, and what a file gets."""

import io
import os
import re
import shutil
import sys
import types

import pytest

from bbqrec_jax.tables import watch


class Terminal(io.StringIO):
  def isatty(self) -> bool:
    return True


@pytest.fixture
def clock(monkeypatch):
  """The time that passes for a Watch: a list of one number, of seconds."""
  now = [1000.0]
  monkeypatch.setattr(watch, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
  return now


def screen(text: str) -> list[str]:
  """The lines that are left to see; knows of no more than cursor up (F) and erase from here (J)."""
  lines = [""]
  row = 0
  for part in re.split(r"(\x1b\[\d*[FJ]|\n)", text):
    if part == "\n":
      row += 1
      lines += [""] * (row + 1 - len(lines))
    elif part == "\x1b[J":
      del lines[row + 1 :]
      lines[row] = ""
    elif part.startswith("\x1b["):
      row -= int(part[2:-1])
      assert row >= 0
    else:
      lines[row] += part
  return lines


def test_a_terminal_shows_the_last_lines_and_nothing_of_before(tmp_path, monkeypatch, clock):
  terminal = Terminal()
  monkeypatch.setattr(sys, "stderr", terminal)
  monkeypatch.setattr(shutil, "get_terminal_size", lambda: os.terminal_size((12, 6)))
  logs = {name: tmp_path / name for name in ("first", "second")}
  for log in logs.values():
    log.write_text("$ python\n1/9 steps\n\n")
  terminal.write("before\n")
  with watch.Watch() as shown:
    shown.show(logs)
    two = ["before", "first", "  1/9 steps", "second", "  1/9 steps", ""]
    assert screen(terminal.getvalue()) == two
    logs["first"].write_text("0123456789 is too long")
    shown.show(logs)  # Not yet.
    assert screen(terminal.getvalue()) == two
    clock[0] += 1
    shown.show(logs)
    two[2] = "  012345678"
    assert screen(terminal.getvalue()) == two
    logs["second"].write_text("2/9 steps")
    shown.show(logs)  # Not yet, again.
    assert screen(terminal.getvalue()) == two
    logs["second"].write_text("1/9 steps")
    shown.clear()
    terminal.write("first is done\n")
    assert screen(terminal.getvalue()) == ["before", "first is done", ""]
    shown.show({"second": logs["second"]})  # At once.
    one = ["before", "first is done", "second", "  1/9 steps", ""]
    assert screen(terminal.getvalue()) == one
    terminal.write("a signal\n")
    shown.leave()
  assert screen(terminal.getvalue()) == [*one[:-1], "a signal", ""]


def test_a_terminal_is_clear_in_the_end(tmp_path, monkeypatch, clock):
  terminal = Terminal()
  monkeypatch.setattr(sys, "stderr", terminal)
  (tmp_path / "log").touch()
  with watch.Watch() as shown:
    shown.show({"a": tmp_path / "log"})
    assert screen(terminal.getvalue()) == ["a", "  ", ""]
  assert screen(terminal.getvalue()) == [""]


def test_more_runs_than_a_terminal_has_lines(tmp_path, monkeypatch, clock):
  terminal = Terminal()
  monkeypatch.setattr(sys, "stderr", terminal)
  monkeypatch.setattr(shutil, "get_terminal_size", lambda: os.terminal_size((80, 4)))
  (tmp_path / "log").write_text("said")
  with watch.Watch() as shown:
    shown.show(dict.fromkeys("abc", tmp_path / "log"))
    assert screen(terminal.getvalue()) == ["a", "  said", "b", ""]  # None has left at the top.
  assert screen(terminal.getvalue()) == [""]


def test_a_file_gets_a_line_for_each_run_now_and_then(tmp_path, capsys, clock):
  log = tmp_path / "log"
  log.write_text("1/9 steps\n2/9 steps\n")
  with watch.Watch() as shown:
    for seconds, lines in ((0, 0), (watch.LINE_SECONDS - 1, 0), (1, 2), (1, 0)):
      clock[0] += seconds
      shown.show({"a": log, "b": log})
      shown.clear()
      assert capsys.readouterr().err == "a: 2/9 steps\nb: 2/9 steps\n"[: 13 * lines]


@pytest.mark.parametrize(
  ("content", "last"),
  [
    (b"", ""),
    (b"\n \n", ""),
    (b"a\nb \n\n", "b"),
    (b"x" * 10_000 + b"\nb", "b"),
    (b"a\n" + b"x" * 5_000, "x" * 4096),
    (b"a\n\xff", "\N{REPLACEMENT CHARACTER}"),
  ],
)
def test_the_last_line_of_a_log(tmp_path, content, last):
  (tmp_path / "log").write_bytes(content)
  assert watch.last_line(tmp_path / "log") == last

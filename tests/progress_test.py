"""Progress is one bar on a terminal, and few lines elsewhere."""

import io

import pytest

from bbqrec_jax import progress


class Terminal(io.StringIO):
  def isatty(self) -> bool:
    return True


@pytest.fixture
def clock(monkeypatch):
  """A clock that only the test moves: clock.now += seconds."""

  class Clock:
    now = 100.0

  monkeypatch.setattr(progress.time, "monotonic", lambda: Clock.now)
  return Clock


def test_lines_come_seldom_and_tell_rate_and_time_left(monkeypatch, clock):
  stream = io.StringIO()
  monkeypatch.setattr(progress.sys, "stderr", stream)
  with progress.Progress(total=1000, initial=200, label="generator") as shown:
    for done in range(201, 401):  # 100 seconds at 2 steps a second.
      clock.now += 0.5
      shown.update(done, {"loss": 1.0 / done} if done % 100 == 0 else None)
  lines = stream.getvalue().splitlines()
  assert lines == [
    "generator: 260/1000 steps, 2/s, 00:30 so far, 06:10 left",
    "generator: 320/1000 steps, 2/s, 01:00 so far, 05:40 left, loss=0.003333",
    "generator: 380/1000 steps, 2/s, 01:30 so far, 05:10 left, loss=0.003333",
    "generator: 400/1000 steps, 2/s, 01:40 so far, 05:00 left, loss=0.0025",
  ]


def test_nothing_done_in_no_time_divides_by_nothing(monkeypatch, clock):
  stream = io.StringIO()
  monkeypatch.setattr(progress.sys, "stderr", stream)
  with progress.Progress(total=5, initial=5, label="ranker"):
    pass
  assert stream.getvalue() == "ranker: 5/5 steps, 0/s, 00:00 so far\n"


def test_a_terminal_gets_one_bar_with_the_latest_metrics(monkeypatch):
  stream = Terminal()
  monkeypatch.setattr(progress.sys, "stderr", stream)
  with progress.Progress(total=7, initial=2, label="tokenizer") as shown:
    shown.update(5, {"loss": 0.25})
    shown.update(7)
  last = stream.getvalue().split("\r")[-1]
  assert last.startswith("tokenizer: 100%") and "7/7" in last and "loss=0.25" in last
  assert stream.getvalue().count("\n") == 1

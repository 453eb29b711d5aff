"""Progress of something long: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Mapping
from typing import Self

import tqdm

from bbqrec_jax import partition

LINE_SECONDS = 30.0  # Seldom enough for a log file, often enough for somebody who waits.


class Progress:
  """Shows how far something is, how fast it goes and how long it will take, on stderr.

  Of many processes only the first one does. A context manager; leaving it shows the last state.
  """

  def __init__(self, total: int, initial: int = 0, label: str = "", unit: str = "step"):
    """Starts the clock.

    Args:
      total: how many units there are in all.
      initial: how many were done before, as in a resumed run; they do not count for the rate.
      label: what is going on, in front of everything shown.
      unit: what is counted, singular.
    """
    self._total, self._initial, self._label, self._unit = total, initial, label, unit
    self._done = initial
    self._metrics = ""
    self._start = self._last_line = time.monotonic()
    self._bar = None
    self._shown = partition.is_main()
    if self._shown and sys.stderr.isatty():
      self._bar = tqdm.tqdm(total=total, initial=initial, desc=label, unit=unit, file=sys.stderr)

  def update(self, done: int, metrics: Mapping[str, float] | None = None) -> None:
    """Notes that `done` of `total` units are done; metrics None keeps showing the ones before."""
    self._done = done
    if metrics is not None:
      self._metrics = " ".join(f"{name}={value:.4g}" for name, value in metrics.items())
    if self._bar is not None:
      self._bar.set_postfix_str(self._metrics, refresh=False)
      self._bar.update(done - self._bar.n)
    elif time.monotonic() - self._last_line >= LINE_SECONDS:
      self._write_line()

  def close(self) -> None:
    """Shows the last state."""
    if self._bar is not None:
      self._bar.close()
    else:
      self._write_line()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *exc_info) -> None:
    self.close()

  def _write_line(self) -> None:
    if not self._shown:
      return
    self._last_line = time.monotonic()
    elapsed = self._last_line - self._start
    rate = (self._done - self._initial) / elapsed if elapsed > 0 else 0.0
    parts = [f"{self._label}: {self._done}/{self._total} {self._unit}s", f"{rate:.3g}/s"]
    parts.append(f"{tqdm.tqdm.format_interval(elapsed)} so far")
    if rate > 0 and self._done < self._total:
      parts.append(f"{tqdm.tqdm.format_interval((self._total - self._done) / rate)} left")
    if self._metrics:
      parts.append(self._metrics)
    print(", ".join(parts), file=sys.stderr, flush=True)

"""Settings of every test: eight fake CPU devices, no silent broadcasting between ranks, quick
compilation, and one folder for all workers and the commands they start, with a cache of compiled
programs."""

import importlib
import os
import pathlib
import tempfile

if "PYTEST_XDIST_WORKER" not in os.environ:  # Workers inherit what the first process sets here.
  _SHARED = tempfile.TemporaryDirectory(prefix="bbqrec_jax_tests_")  # Removed with the process.
  os.environ["BBQREC_JAX_TESTS"] = _SHARED.name
  os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(_SHARED.name, "compiled")
  os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

import jax  # It reads the environment.
import pytest

from tests import malformed

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_configure(config):
  """Quick tests compile more than they compute: with all optimizations they take twice as long."""
  name = "JAX_DISABLE_MOST_OPTIMIZATIONS"
  if config.option.markexpr == "not slow" and name not in os.environ:
    os.environ[name] = "1"  # For the commands that tests start.
    jax.config.update(name.lower(), True)


@pytest.fixture
def key():
  """The run's one key; fold a number into it where several are needed."""
  return jax.random.key(0)


@pytest.fixture
def load(monkeypatch):
  """Imports a benchmark as its own command does, from the benchmarks' folder."""
  monkeypatch.syspath_prepend(str(pathlib.Path(__file__).resolve().parents[1] / "benchmarks"))
  return importlib.import_module


@pytest.fixture
def counted(record_property):
  """Notes how many malformed inputs a test fed, for the sum at the end."""
  before = malformed.num_fed()
  yield
  record_property(malformed.PROPERTY, malformed.num_fed() - before)


def pytest_terminal_summary(terminalreporter):
  """Says how many malformed inputs all tests fed, those of other processes too."""
  reports = [report for reports in terminalreporter.stats.values() for report in reports]
  total = sum(
    count
    for report in reports
    if getattr(report, "when", None) == "teardown"  # Whose properties are complete.
    for name, count in report.user_properties
    if name == malformed.PROPERTY
  )
  if total:
    terminalreporter.write_line(f"{total} malformed inputs: each refused in a sentence, or fine.")

"""Several processes on this machine, over loopback, run the command as one would."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow
# Small, and long enough that something can happen meanwhile.
ARGS = (
  "--config=configs/quickstart.py:smoke",
  "--config.tokenizer.num_epochs=4",
  "--config.tokenizer.patience=0",
  "--config.generator.num_epochs=2",
)
_LOST_SECONDS = 90  # A process notices within this that another one is gone.


def start(workdir: pathlib.Path, count: int, devices: int = 1) -> list[subprocess.Popen]:
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    coordinator = f"--coordinator=127.0.0.1:{probe.getsockname()[1]}"
  env = os.environ | dict(JAX_PLATFORMS="cpu", JAX_NUM_CPU_DEVICES=str(devices))
  command = [sys.executable, "-m", "bbqrec_jax.main", *ARGS, f"--workdir={workdir}"]
  processes = []
  for n in range(count):
    which = [coordinator, f"--num_processes={count}", f"--process_id={n}"] if count > 1 else []
    with (workdir.parent / f"{workdir.name}_{n}.err").open("a") as errors:
      processes.append(
        subprocess.Popen(
          [*command, *which], cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=errors, text=True
        )
      )
  return processes


def finish(processes: list[subprocess.Popen], timeout: float = 900) -> list[int]:
  end = time.monotonic() + timeout
  try:
    return [process.wait(max(end - time.monotonic(), 0.1)) for process in processes]
  finally:
    for process in processes:
      process.kill()
      process.stdout.close()


def wait_for_steps(workdir: pathlib.Path, processes: list[subprocess.Popen]) -> None:
  """Until a checkpoint of the first stage is there and further steps are reported."""
  metrics, checkpoints = workdir / "metrics.jsonl", workdir / "checkpoints" / "tokenizer"
  while not any(path.name.isdecimal() for path in checkpoints.glob("*")):
    assert all(process.poll() is None for process in processes)
    time.sleep(0.05)
  size = metrics.stat().st_size
  while metrics.stat().st_size == size:
    time.sleep(0.05)


def outcome(workdir: pathlib.Path) -> dict:
  results = json.loads((workdir / "results.json").read_text())
  with np.load(workdir / "semantic_ids.npz") as ids, np.load(workdir / "ranks.npz") as ranks:
    return dict(
      codes=ids["codes"].tolist(),
      ranks={split: ranks[split].tolist() for split in ("valid", "test")},
      metrics={split: results[split] for split in ("valid", "test")},
      steps={name: stage["steps"] for name, stage in results["stages"].items()},
    )


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
  """Of one process with two devices."""
  workdir = tmp_path_factory.mktemp("alone") / "run"
  assert finish(start(workdir, 1, devices=2)) == [0]
  return outcome(workdir)


def test_two_processes_end_as_one(tmp_path, expected):
  workdir = tmp_path / "run"
  processes = start(workdir, 2)
  assert finish(processes) == [0, 0]
  assert outcome(workdir) == expected
  provenance = json.loads((workdir / "results.json").read_text())["provenance"]
  assert (provenance["num_processes"], provenance["num_devices"]) == (2, 2)


def test_sigterm_to_one_stops_all_which_go_on(tmp_path, expected):
  workdir = tmp_path / "run"
  processes = start(workdir, 2)
  wait_for_steps(workdir, processes)
  processes[1].send_signal(signal.SIGTERM)
  assert finish(processes) == [128 + signal.SIGTERM] * 2
  for n in range(2):
    assert "Stopped: tokenizer is saved at step" in (tmp_path / f"run_{n}.err").read_text()
  assert finish(start(workdir, 2)) == [0, 0]
  assert outcome(workdir) == expected


def test_a_process_that_is_gone_ends_the_others_which_go_on(tmp_path, expected):
  workdir = tmp_path / "run"
  processes = start(workdir, 2)
  wait_for_steps(workdir, processes)
  processes[1].kill()
  killed = time.monotonic()
  status = finish(processes, timeout=_LOST_SECONDS)
  assert time.monotonic() - killed < _LOST_SECONDS
  assert status[1] == -signal.SIGKILL and status[0] not in (0, -signal.SIGKILL)
  said = (tmp_path / "run_0.err").read_text()
  assert "connection to another process is lost" in said or "another task died" in said
  assert finish(start(workdir, 2)) == [0, 0]
  assert outcome(workdir) == expected

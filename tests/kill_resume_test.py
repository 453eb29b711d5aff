"""The kill harness finds what differs and counts what is lost; and two kills of the real thing."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from bbqrec_jax import checkpoint

KILL, TERM = signal.SIGKILL, signal.SIGTERM
STAGES = ("tokenizer", "generator")


def write_lines(workdir: pathlib.Path, *lines) -> None:
  """metrics.jsonl; lines are (stage, step, time, metrics)."""
  records = (dict(zip(("stage", "step", "time", "metrics"), line)) for line in lines)
  workdir.mkdir(exist_ok=True)
  (workdir / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in records))


def save(workdir: pathlib.Path, stage: str, step: int, best: bool, **changes) -> None:
  """A checkpoint of a state that follows from the stage and the step."""
  params = dict(kernel=jnp.arange(6.0).reshape(2, 3) + step, bias=jnp.float32(len(stage)))
  state = dict(step=jnp.int32(step), params=params, extra=jnp.zeros(2)) | changes
  with checkpoint.Checkpointer(workdir / "checkpoints" / stage) as checkpointer:
    checkpointer.save(step, state, {}, best=best)


@pytest.fixture(scope="module")
def ended(tmp_path_factory) -> pathlib.Path:
  """What the comparison reads of a finished run."""
  workdir = tmp_path_factory.mktemp("ended") / "run"
  lines = []
  for stage in STAGES:
    for step, best in ((5, False), (10, True), (15, False)):
      save(workdir, stage, step, best)
      lines += [(stage, step, 1.5, {"loss": 2.0}), (stage, step, 1.6, {"valid/recall@10": 0.5})]
  write_lines(workdir, *lines)
  np.savez(workdir / "semantic_ids.npz", codes=np.arange(12).reshape(3, 4), titles=["a", "", "c"])
  np.savez(workdir / "ranks.npz", valid=np.array([1, 7], np.int32), test=np.array([3, 2], np.int32))
  results = dict(
    valid={"recall@10": 0.5},
    test={"recall@10": 0.25},
    codebook=dict(num_colliding_items=3),
    seconds=dict(tokenizer=3.5),
    stages=dict(generator=dict(steps=15, train_seconds=1.5, peak_memory_mb=7.0)),
    provenance=dict(date="2026-01-01"),
  )
  (workdir / "results.json").write_text(json.dumps(results))
  return workdir


def change_array(name: str, key: str):
  def change(workdir):
    with np.load(workdir / name) as file:
      arrays = dict(file)
    arrays[key].flat[0] += 1
    np.savez(workdir / name, **arrays)

  return change


def change_results(change):
  def write(workdir):
    results = json.loads((workdir / "results.json").read_text())
    change(results)
    (workdir / "results.json").write_text(json.dumps(results))

  return write


def change_text(old: str, new: str):
  def change(workdir):
    path = workdir / "metrics.jsonl"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))

  return change


def save_again(stage: str, step: int, best: bool, **changes):
  def change(workdir):
    shutil.rmtree(workdir / "checkpoints" / stage / str(step))
    save(workdir, stage, step, best, **changes)

  return change


def newest_removed(workdir):
  shutil.rmtree(workdir / "checkpoints" / "tokenizer" / "15")


def set_aside(workdir):
  (workdir / "checkpoints" / "tokenizer" / "5.damaged").mkdir()


def line_twice(workdir):
  path = workdir / "metrics.jsonl"
  lines = path.read_text().splitlines(keepends=True)
  path.write_text("".join([*lines[:3], lines[2], *lines[3:]]))


PARAMS = dict(kernel=jnp.arange(6.0).reshape(2, 3) + 10, bias=jnp.float32(-0.0))


@pytest.mark.parametrize(
  ("change", "said"),
  [
    (change_array("semantic_ids.npz", "codes"), "semantic_ids.npz: codes differs in 1 of 12"),
    (change_array("ranks.npz", "test"), "ranks.npz: test differs in 1 of 2"),
    (lambda workdir: (workdir / "ranks.npz").unlink(), "ranks.npz: test is only in one"),
    (
      save_again("tokenizer", 10, True, params=PARAMS),
      "checkpoints/tokenizer: best/params/bias differs",
    ),
    (
      save_again("generator", 15, False, extra=jnp.array([0.0, -0.0])),
      "checkpoints/generator: newest/extra differs",
    ),
    (save_again("generator", 15, True), "checkpoints/generator: best step is 10 in one and 15"),
    (newest_removed, "checkpoints/tokenizer: newest step is 15 in one and 10"),
    (set_aside, "5.damaged was written, and cannot be read"),
    (
      change_results(lambda results: results["test"].update({"recall@10": 0.25000000000000006})),
      "results.json: test.recall@10 is 0.25 in one and 0.25000000000000006",
    ),
    (
      change_results(lambda results: results["stages"]["generator"].update(steps=16)),
      "results.json: stages.generator.steps is 15 in one and 16",
    ),
    (change_results(lambda results: results.pop("codebook")), "codebook.num_colliding_items is on"),
    (
      change_text('"valid/recall@10": 0.5', '"valid/recall@10": 0.6'),
      "metrics.jsonl: validation 1",
    ),
    (line_twice, "('tokenizer', 10, 'training') stands twice"),
  ],
)
def test_whatever_differs_is_found_and_named(load, ended, tmp_path, change, said):
  ends = load("lib.ends")
  other = tmp_path / "other"
  shutil.copytree(ended, other)
  change(other)
  found = ends.differences(ended, other)
  assert any(said in text for text in found), found


def test_what_is_of_the_process_alone_is_no_difference(load, ended, tmp_path):
  other = tmp_path / "other"
  shutil.copytree(ended, other)

  def later(results):
    results["seconds"]["tokenizer"] = 99.0
    results["provenance"]["date"] = "2027-01-01"
    results["stages"]["generator"] |= dict(train_seconds=9.0, peak_memory_mb=9.0)

  change_results(later)(other)
  change_text('"time": 1.5', '"time": 2.5')(other)
  change_text('"loss": 2.0', '"loss": 3.0')(other)  # SIGTERM cuts a mean over steps in two.
  assert load("lib.ends").differences(ended, other) == []


def test_a_start_is_seen_by_what_it_wrote_itself(load, tmp_path):
  look = load("kill_resume").look
  nothing = look(tmp_path / "absent", 100.0, "")
  assert not (nothing.began or nothing.resumed or nothing.reached or nothing.done)
  write_lines(
    tmp_path, ("tokenizer", 30, 90.0, {}), ("generator", 7, 99.9, {}), ("generator", 9, 100.1, {})
  )
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write('{"stage": "generator", "step": 11, "ti')  # Cut short by the kill.
  (tmp_path / "stages").mkdir()
  (tmp_path / "stages" / "tokenizer.json").touch()
  half_written = tmp_path / "checkpoints" / "generator" / "8.orbax-checkpoint-tmp"
  half_written.mkdir(parents=True)
  said = "Devices: cpu\ntokenizer: done before.\ngenerator: going on from step 4 of 20.\n"
  seen = look(tmp_path, 100.0, said)
  assert seen == type(seen)(
    began=True, resumed=dict(generator=4), reached=dict(generator=9), done=("tokenizer",),
    writing=True, all_done=False,
  )  # fmt: skip
  os.utime(half_written, (99.0, 99.0))  # Of an earlier start.
  assert look(tmp_path, 100.0, said) == seen._replace(writing=False)


@pytest.fixture
def ledger(load):
  """A Ledger of two stages, and what makes its entries."""
  kill_resume = load("kill_resume")
  steps = {stage: kill_resume.Steps(interval=10, last=50) for stage in STAGES}
  ledger = kill_resume.Ledger(steps)

  def add(signum=None, status=None, **seen):
    nothing = dict(began=True, resumed={}, reached={}, done=(), writing=False, all_done=False)
    kill = None if signum is None else kill_resume.Kill(signum, at_write=False)
    status = -signum if status is None and signum else status or 0
    ledger.add(kill, 1.5, kill_resume.Seen(**nothing | seen), status)

  ledger.take = add
  return ledger


def test_a_kill_costs_what_the_next_start_that_gets_so_far_takes_back(ledger):
  ledger.take(KILL, began=False)
  ledger.take(KILL, reached=dict(tokenizer=7))  # Before the first checkpoint: all is lost.
  ledger.take(KILL)  # In the set-up of the next one, which says nothing of it.
  ledger.take(KILL, reached=dict(tokenizer=33))
  ledger.take(KILL, resumed=dict(tokenizer=30))  # Before its first line.
  ledger.take(KILL, resumed=dict(tokenizer=30), reached=dict(tokenizer=50))
  ledger.take(
    KILL, resumed=dict(tokenizer=50), reached=dict(generator=14), done=["tokenizer"], writing=True
  )
  ledger.take(resumed=dict(generator=0), reached=dict(generator=50), done=STAGES, all_done=True)
  assert [record["lost_steps"] for record in ledger.records] == [0, 7, 0, 3, 0, 0, 14]
  assert ledger.num_resumed == 4
  assert [record["where"] for record in ledger.records] == [
    "importing", "tokenizer, steps", "tokenizer, set-up", "tokenizer, steps", "tokenizer, steps",
    "tokenizer, last evaluation", "generator, steps",
  ]  # fmt: skip
  assert ledger.problems() == []  # More than an interval, but while a checkpoint was written.


def test_a_kill_must_not_cost_more_than_the_interval(ledger):
  ledger.take(KILL, reached=dict(tokenizer=31))
  ledger.take(resumed=dict(tokenizer=20), reached=dict(tokenizer=50), done=STAGES)
  (problem,) = ledger.problems()
  assert problem.startswith("a kill cost 11 steps, not 0 to 10")


def test_a_run_must_not_go_on_from_where_it_never_was(ledger):
  ledger.take(KILL, reached=dict(tokenizer=31))
  ledger.take(resumed=dict(tokenizer=40), done=STAGES)
  (problem,) = ledger.problems()
  assert problem.startswith("a kill cost -9 steps")


def test_a_kill_whose_cost_nobody_told_is_a_problem(ledger):
  ledger.take(KILL, reached=dict(generator=14), done=["tokenizer"])
  ledger.take(done=STAGES, all_done=True)
  (problem,) = ledger.problems()
  assert problem.startswith("no later start said where it went on")


def test_sigterm_must_save_and_say_so_by_its_status(ledger):
  ledger.take(TERM, began=False)  # Python's own, before the command could do anything about it.
  ledger.take(TERM, status=143, reached=dict(tokenizer=7))
  ledger.take(TERM, status=143, resumed=dict(tokenizer=7), reached=dict(tokenizer=13))
  ledger.take(TERM, done=STAGES, all_done=True, resumed=dict(tokenizer=13))
  assert ledger.problems() == []
  ledger.take(TERM, status=143, reached=dict(generator=13), done=["tokenizer"])
  ledger.take(resumed=dict(generator=12), done=["tokenizer"])
  ledger.take(TERM)
  status, lost = ledger.problems()
  assert status.startswith("SIGTERM ended with status -15")
  assert lost.startswith("a kill cost 1 steps, not 0 to 0")


def test_a_plan_has_the_kills_that_were_asked_for(load):
  kill_resume = load("kill_resume")
  kills = kill_resume.plan(np.random.default_rng(0), 20, 6, writes=0.5)
  kinds = [(kill.signum, kill.at_write) for kill in kills]
  assert sorted(kinds) == sorted([(KILL, True)] * 7 + [(KILL, False)] * 7 + [(TERM, False)] * 6)
  assert len(set(kinds[:6])) > 1  # In random order.


WRITER = """
import pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
(folder / "3.orbax-checkpoint-tmp").rmdir()
time.sleep(0.3)
for _ in range(int(sys.argv[2])):
  (folder / "3.orbax-checkpoint-tmp").mkdir()
  time.sleep(60)
"""


@pytest.mark.parametrize("writes", [0, 1])
def test_a_kill_can_wait_for_a_checkpoint_that_begins_to_be_written(load, tmp_path, writes):
  kill_resume = load("kill_resume")
  folder = tmp_path / "checkpoints" / "tokenizer"
  (folder / "3.orbax-checkpoint-tmp").mkdir(parents=True)  # Of an earlier kill.
  kill, rng = kill_resume.Kill(KILL, at_write=True), np.random.default_rng(0)
  with subprocess.Popen([sys.executable, "-c", WRITER, folder, str(writes)]) as process:
    came = kill_resume.wait_for_moment(process, tmp_path, kill, rng, seconds=0.01)
    assert came == bool(writes)
    assert bool(kill_resume.unfinished_writes(tmp_path)) == came
    process.kill()


@pytest.mark.parametrize("argv", [["--kills=0"], ["--kills=2", "--terms=3"], ["--writes=1.5"]])
def test_what_cannot_be_is_one_sentence(load, capsys, argv):
  kill_resume = load("kill_resume")
  options = (kill_resume.run, "doc", kill_resume.add_options)
  assert load("lib.harness").main(*options, argv) == 1
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith("Error: --kills must be")


@pytest.mark.slow
def test_a_real_run_survives_kills(load, tmp_path, capsys):
  kill_resume, out = load("kill_resume"), tmp_path / "out.json"
  options = (kill_resume.run, "doc", kill_resume.add_options)
  argv = [f"--out={out}", "--kills=2", "--writes=0.5", f"--folder={tmp_path / 'runs'}"]
  status = load("lib.harness").main(*options, argv)
  said = capsys.readouterr()
  assert status == 0, said.err
  record = json.loads(out.read_text())
  assert (record["ratios"]["kills_survived"], record["ratios"]["mismatches"]) == (2, 0)
  kills = record["details"]["kills"]
  assert [kill["signal"] for kill in kills] == ["SIGKILL"] * 2
  assert said.out.count("SIGKILL after") == 2
  assert {path.name for path in (tmp_path / "runs").iterdir()} >= {"alone_1", "alone_2", "killed_1"}

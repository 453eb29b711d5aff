"""The loop on linear regression: resuming, stopping, selecting, reporting."""

import json
import math
import signal
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bbqrec_jax import checkpoint, loop, train_state
from bbqrec_jax.errors import Stopped, UserError
from bbqrec_jax.metric_writer import MetricWriter

STAGE = "toy"
ROWS, WIDTH, BATCH_SIZE = 31, 3, 7
NUM_STEPS, EVAL_STEPS, LOG_STEPS, STEPS_PER_EPOCH = 22, 4, 3, 5
TX = optax.adam(0.05)


def _regression():
  rng = np.random.default_rng(0)
  inputs = rng.normal(size=(ROWS, WIDTH)).astype(np.float32)
  noise = rng.normal(size=ROWS) * 0.1
  return inputs, (inputs @ np.array([1.0, -2.0, 0.5]) + noise).astype(np.float32)


INPUTS, TARGETS = _regression()


def _loss_fn(params, batch, constants, key):
  """Mean squared error, with inputs that are jittered, so that the key matters."""
  inputs = constants[batch["rows"]]
  jitter = batch["jitter"] * jax.random.normal(key, inputs.shape)
  loss = jnp.mean(((inputs + jitter) @ params["weight"] - batch["targets"]) ** 2)
  return loss, (dict(age=params["age"], half=loss / 2), ())


def _grow(params, extra, outputs, key):
  """The age counts steps; extra is a draw of each step, carried along."""
  del outputs
  return params | dict(age=params["age"] + 1.0), 0.5 * extra + jax.random.normal(key)


def _train_chunk(max_steps, loss_fn=_loss_fn):
  step = train_state.make_train_step(loss_fn, TX, after_update=_grow)
  return jax.jit(train_state.make_train_chunk(step, max_steps), donate_argnums=0)


TRAIN_CHUNK = _train_chunk(1)


def _batch(step, jitter=0.1):
  rows = np.random.default_rng(step).permutation(ROWS)[:BATCH_SIZE]
  return dict(rows=rows, targets=TARGETS[rows], jitter=np.float32(jitter))


def _all_rows(step):
  del step
  return dict(rows=np.arange(ROWS), targets=TARGETS, jitter=np.float32(0.0))


def _epochs(batch_fn):
  """The batches of an epoch, one upon the other."""

  def epoch_fn(epoch):
    steps = range(epoch * STEPS_PER_EPOCH, (epoch + 1) * STEPS_PER_EPOCH)
    return jax.tree.map(lambda *x: np.stack(x), *map(batch_fn, steps))

  return epoch_fn


def _fit(workdir, scores=None, **changes):
  """fit() in a workdir. scores: by number of the evaluation, else the negative squared error."""

  def eval_fn(params):
    if scores is not None:
      return dict(score=scores[round(float(params["age"]) / EVAL_STEPS) - 1], other=0.0)
    error = INPUTS @ np.asarray(params["weight"]) - TARGETS
    return dict(score=-float(np.mean(error**2)))

  params = dict(weight=jnp.zeros(WIDTH), age=jnp.zeros(()))
  kwargs = dict(
    state=train_state.create(params, TX, extra=jnp.zeros(())),
    train_chunk=TRAIN_CHUNK,
    epoch_fn=_epochs(_batch),
    stage=STAGE,
    constants=jnp.asarray(INPUTS),
    key=jax.random.key(3),
    num_steps=NUM_STEPS,
    steps_per_epoch=STEPS_PER_EPOCH,
    eval_fn=eval_fn,
    eval_steps=EVAL_STEPS,
    monitor="score",
    patience=0,
    log_steps=LOG_STEPS,
    examples_per_step=BATCH_SIZE,
    workdir=workdir,
    chunk_steps=1,
  )
  with (
    checkpoint.Checkpointer(workdir / "checkpoints") as checkpointer,
    MetricWriter(workdir) as writer,
  ):
    return loop.fit(**kwargs | changes, checkpointer=checkpointer, writer=writer)


def _newest(workdir):
  """The newest checkpoint, with all that a training carries."""
  params = dict(weight=jnp.zeros(WIDTH), age=jnp.zeros(()))
  with checkpoint.Checkpointer(workdir / "checkpoints") as checkpointer:
    return checkpointer.restore(train_state.create(params, TX, extra=jnp.zeros(())))


SPEED = ("seconds_per_step", "examples_per_second")


def _lines(workdir):
  """[(step, metrics)] of metrics.jsonl, without speeds."""
  lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
  slower = lambda metrics: {name: x for name, x in metrics.items() if name not in SPEED}
  return [(line["step"], slower(line["metrics"])) for line in lines]


def _timeless(summary):
  return {name: value for name, value in summary.items() if not name.endswith("_seconds")}


def _at_step(step, fn, train_chunk=TRAIN_CHUNK):
  """train_chunk, before which fn is called when it comes to a step."""

  def wrapped(state, epoch, first, count, *args):
    if int(state.step) <= step < int(state.step) + count:
      fn()
    return train_chunk(state, epoch, first, count, *args)

  return wrapped


def _interrupting(at, signals=1, train_chunk=TRAIN_CHUNK, signum=signal.SIGINT):
  """Steps during one of which somebody presses Ctrl-C."""
  press = lambda: [signal.raise_signal(signum) for _ in range(signals)]
  return _at_step(at, press, train_chunk)


def _refuse(*args):
  raise AssertionError("This must not be called.")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("uninterrupted")
  return _fit(workdir), _newest(workdir), _lines(workdir)


def test_it_finds_the_least_squares_solution(tmp_path):
  fitted = _fit(tmp_path, epoch_fn=_epochs(_all_rows), num_steps=400, eval_steps=50, log_steps=50)
  solution = np.linalg.lstsq(INPUTS, TARGETS, rcond=None)[0]
  np.testing.assert_allclose(fitted.params["weight"], solution, atol=1e-3)
  error = np.mean((INPUTS @ solution - TARGETS) ** 2)
  assert math.isclose(-fitted.summary["best_valid"], error, rel_tol=1e-3)


# Within the first step, before, at and after an evaluation, and within the last step.
@pytest.mark.parametrize("at", [0, 6, 7, 8, NUM_STEPS - 1])
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path, uninterrupted, at):
  signum = signal.SIGTERM if at == 6 else signal.SIGINT
  handler = signal.getsignal(signum)
  with pytest.raises(Stopped, match=f"toy is saved at step {at + 1} of {NUM_STEPS}") as stopped:
    _fit(tmp_path, train_chunk=_interrupting(at, signum=signum))
  assert signal.getsignal(signum) is handler and stopped.value.signum == signum
  assert _newest(tmp_path).step == at + 1  # The step of the Ctrl-C was finished, and no more.

  taken = []

  def train_chunk(state, *args):
    taken.append(int(state.step))
    return TRAIN_CHUNK(state, *args)

  fitted = _fit(tmp_path, train_chunk=train_chunk)
  assert taken == list(range(at + 1, NUM_STEPS))
  expected, expected_newest, _ = uninterrupted
  chex.assert_trees_all_equal(fitted.params, expected.params)
  assert _timeless(fitted.summary) == _timeless(expected.summary)
  newest = _newest(tmp_path)
  chex.assert_trees_all_equal(newest.state, expected_newest.state)
  assert _timeless(newest.progress) == _timeless(expected_newest.progress)


def test_a_second_interrupt_does_not_wait(tmp_path):
  with pytest.raises(KeyboardInterrupt):
    _fit(tmp_path, train_chunk=_interrupting(6, signals=2))
  assert _newest(tmp_path).step == EVAL_STEPS  # As the last evaluation left it.


def test_a_crash_goes_on_from_the_last_evaluation_and_leaves_no_trace(tmp_path, uninterrupted):
  def crash():  # Step 9 was reported behind the checkpoint of step 8.
    raise RuntimeError("power cut")

  with pytest.raises(RuntimeError, match="power cut"):
    _fit(tmp_path, train_chunk=_at_step(11, crash))
  assert _lines(tmp_path)[-1][0] == 9
  fitted = _fit(tmp_path)
  chex.assert_trees_all_equal(fitted.params, uninterrupted[0].params)
  assert _lines(tmp_path) == uninterrupted[2]


def test_a_crash_before_the_first_checkpoint_leaves_no_trace(tmp_path, uninterrupted):
  def crash(params):
    raise RuntimeError("power cut")

  with pytest.raises(RuntimeError, match="power cut"):
    _fit(tmp_path, eval_fn=crash)
  assert [step for step, _ in _lines(tmp_path)] == [LOG_STEPS, EVAL_STEPS]
  chex.assert_trees_all_equal(_fit(tmp_path).params, uninterrupted[0].params)
  assert _lines(tmp_path) == uninterrupted[2]


def test_a_finished_training_is_not_trained_again(tmp_path):
  fitted = _fit(tmp_path)
  lines = _lines(tmp_path)
  again = _fit(tmp_path, train_chunk=_refuse, epoch_fn=_refuse, eval_fn=_refuse)
  chex.assert_trees_all_equal(again.params, fitted.params)
  spent = fitted.summary["train_seconds"] + fitted.summary["eval_seconds"]
  assert again.summary == fitted.summary | dict(earlier_seconds=spent)
  assert _lines(tmp_path) == lines


# Evaluations 2 and 5 are new bests; a tie is none.
SCORES = [1.0, 3.0, 2.0, 3.0, 4.0, 0.0]


@pytest.mark.parametrize(("patience", "evaluations", "best"), [(1, 3, 2), (2, 4, 2), (3, 6, 5)])
def test_stops_when_patience_ends_with_the_best_parameters(tmp_path, patience, evaluations, best):
  fitted = _fit(tmp_path, SCORES, patience=patience)
  steps = min(evaluations * EVAL_STEPS, NUM_STEPS)
  assert _timeless(fitted.summary) == dict(
    steps=steps,
    epochs=steps / STEPS_PER_EPOCH,
    stopped_early=steps < NUM_STEPS,
    best_step=best * EVAL_STEPS,
    monitor="score",
    best_valid=SCORES[best - 1],
  )
  assert float(fitted.params["age"]) == best * EVAL_STEPS
  # It stays stopped.
  again = _fit(tmp_path, patience=patience, train_chunk=_refuse, eval_fn=_refuse)
  spent = fitted.summary["train_seconds"] + fitted.summary["eval_seconds"]
  assert again.summary == fitted.summary | dict(earlier_seconds=spent)


def test_patience_counts_on_over_an_interrupt(tmp_path):
  with pytest.raises(Stopped):
    _fit(tmp_path, SCORES, patience=2, train_chunk=_interrupting(3 * EVAL_STEPS + 1))
  summary = _fit(tmp_path, SCORES, patience=2).summary
  assert (summary["steps"], summary["best_step"]) == (4 * EVAL_STEPS, 2 * EVAL_STEPS)


def test_no_number_stops_at_once_and_is_not_saved(tmp_path, uninterrupted):
  bad_step = 2 * EVAL_STEPS  # Evaluated and saved, were it not for the check.
  poisoned = lambda step: _batch(step, jitter=math.nan if step == bad_step - 1 else 0.1)
  with pytest.raises(UserError, match=f"toy, step {bad_step}: grad_norm, half, loss is not finite"):
    _fit(tmp_path, epoch_fn=_epochs(poisoned))
  newest = _newest(tmp_path)
  assert newest.step == EVAL_STEPS
  chex.assert_tree_all_finite(newest.state)
  chex.assert_trees_all_equal(_fit(tmp_path).params, uninterrupted[0].params)


def test_no_number_is_found_before_an_interrupt_saves(tmp_path, monkeypatch):
  class Interrupting(loop.Progress):
    """Presses Ctrl-C behind step 7, which is neither reported nor evaluated."""

    def update(self, done, metrics=None):
      super().update(done, metrics)
      if done == 7:
        signal.raise_signal(signal.SIGINT)

  monkeypatch.setattr(loop, "Progress", Interrupting)
  poisoned = lambda step: _batch(step, jitter=math.nan if step == 6 else 0.1)
  with pytest.raises(UserError, match="toy, step 7: "):
    _fit(tmp_path, epoch_fn=_epochs(poisoned))
  assert _newest(tmp_path).step == EVAL_STEPS


@pytest.mark.parametrize("at", [8, NUM_STEPS])
def test_an_interrupt_during_an_evaluation_waits_for_it(tmp_path, uninterrupted, at):
  def eval_fn(params):
    if float(params["age"]) == at:
      signal.raise_signal(signal.SIGINT)
    return dict(score=-float(np.mean((INPUTS @ np.asarray(params["weight"]) - TARGETS) ** 2)))

  with pytest.raises(Stopped, match=f"saved at step {at} of"):
    _fit(tmp_path, eval_fn=eval_fn)
  fitted = _fit(tmp_path)
  assert _timeless(fitted.summary) == _timeless(uninterrupted[0].summary)
  assert _lines(tmp_path) == uninterrupted[2]


def test_an_interrupt_during_the_last_save_waits_for_it(tmp_path, uninterrupted, monkeypatch):
  wait = checkpoint.Checkpointer.wait

  def interrupted(self):
    monkeypatch.undo()
    signal.raise_signal(signal.SIGINT)
    wait(self)

  monkeypatch.setattr(checkpoint.Checkpointer, "wait", interrupted)
  with pytest.raises(Stopped, match=f"saved at step {NUM_STEPS} of"):
    _fit(tmp_path)
  assert _newest(tmp_path).step == NUM_STEPS
  assert _timeless(_fit(tmp_path).summary) == _timeless(uninterrupted[0].summary)


def test_metrics_are_means_since_the_line_before(uninterrupted):
  _, _, lines = uninterrupted
  evaluated = [4, 8, 12, 16, 20, NUM_STEPS]
  reported = [3, 4, 6, 8, 9, 12, 15, 16, 18, 20, 21, NUM_STEPS]
  assert [step for step, metrics in lines if "valid/score" in metrics] == evaluated
  trained = [(step, metrics) for step, metrics in lines if "valid/score" not in metrics]
  assert [step for step, _ in trained] == reported
  before = 0
  for step, metrics in trained:
    assert set(metrics) == {"loss", "half", "age", "grad_norm", "epoch"}
    assert metrics["age"] == np.mean(range(before, step))  # Step n starts at age n - 1.
    assert metrics["epoch"] == step / 5
    before = step


@pytest.mark.parametrize("chunk_steps", [2, 64])
def test_chunks_change_neither_parameters_nor_lines(tmp_path, uninterrupted, chunk_steps):
  chunks, train_chunk = [], _train_chunk(chunk_steps)

  def counted(state, epoch, first, count, *args):
    chunks.append(count)
    return train_chunk(state, epoch, first, count, *args)

  changes = dict(train_chunk=counted, chunk_steps=chunk_steps)
  fitted = _fit(tmp_path, **changes)
  expected, _, lines = uninterrupted
  chex.assert_trees_all_equal(fitted.params, expected.params)
  assert _timeless(fitted.summary) == _timeless(expected.summary)
  assert _lines(tmp_path) == lines
  assert sum(chunks) == NUM_STEPS and max(chunks) > 1


def test_an_interrupt_within_a_chunk_saves_behind_it(tmp_path, uninterrupted):
  train_chunk = _train_chunk(64)
  changes = dict(chunk_steps=64, log_steps=100, eval_steps=100, steps_per_epoch=NUM_STEPS)
  epoch_fn = lambda _: jax.tree.map(lambda *x: np.stack(x), *map(_batch, range(NUM_STEPS)))
  changes |= dict(epoch_fn=epoch_fn, train_chunk=train_chunk)
  whole = _fit(tmp_path / "whole", **changes)
  chex.assert_trees_all_equal(whole.params, uninterrupted[0].params)
  with pytest.raises(Stopped):
    _fit(tmp_path, **changes | dict(train_chunk=_interrupting(6, train_chunk=train_chunk)))
  assert 7 <= _newest(tmp_path).step < NUM_STEPS
  chex.assert_trees_all_equal(_fit(tmp_path, **changes).params, whole.params)


def test_no_number_is_found_within_a_chunk(tmp_path):
  poisoned = lambda step: _batch(step, jitter=math.nan if step == 6 else 0.1)
  changes = dict(train_chunk=_train_chunk(4), chunk_steps=4, epoch_fn=_epochs(poisoned))
  with pytest.raises(UserError, match="toy, step 7: grad_norm, half, loss is not finite"):
    _fit(tmp_path, **changes)


def test_the_pace_follows_the_speed():
  pace = loop._Pace(64)
  for _ in range(10):
    pace.update(pace.steps, 0.001)
  assert pace.steps == 64  # Never more.
  pace.update(pace.steps, 1.0)
  assert pace.steps == 64
  pace.update(pace.steps, 5.0)
  assert pace.steps == 32
  pace.update(7, 0.001)  # Cut short: says nothing.
  pace.update(0, 60.0)  # An epoch's data, or an evaluation.
  assert pace.steps == 32
  for _ in range(10):
    pace.update(pace.steps, 60.0)
  assert pace.steps == 1


def test_fit_and_resume_compile_the_step_once(tmp_path):
  traces = []

  def loss_fn(*args):
    traces.append(args)
    return _loss_fn(*args)

  train_chunk = _train_chunk(1, loss_fn)
  with pytest.raises(Stopped):
    _fit(tmp_path, train_chunk=_interrupting(5, train_chunk=train_chunk))
  first = len(traces)
  _fit(tmp_path, train_chunk=train_chunk)
  assert len(traces) == first


def test_speeds_are_reported_without_evaluations(tmp_path):
  def eval_fn(params):
    time.sleep(0.5)
    return dict(score=0.0)

  _fit(tmp_path, eval_fn=eval_fn, num_steps=9)
  lines = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
  lines = [line["metrics"] for line in lines if "loss" in line["metrics"]]
  for metrics in lines[1:]:  # The first step is also compiled.
    assert 0 < metrics["seconds_per_step"] < 0.1
    per_second = BATCH_SIZE / metrics["seconds_per_step"]
    assert math.isclose(metrics["examples_per_second"], per_second, rel_tol=1e-6)


def test_what_is_not_finite_can_be_reproduced(tmp_path):
  bad_step = 2 * EVAL_STEPS + 3  # From 1.
  poisoned = lambda step: _batch(step, jitter=math.inf if step == bad_step - 1 else 0.1)
  changes = dict(train_chunk=_train_chunk(64), chunk_steps=64, log_steps=100)
  expected = rf"step {bad_step}: .*are in .*toy_step_{bad_step}"
  for _ in range(2):  # The same command again comes to the same step.
    with pytest.raises(UserError, match=expected) as told:
      _fit(tmp_path, epoch_fn=_epochs(poisoned), **changes)
  folder = tmp_path / "not_finite" / f"toy_step_{bad_step}"
  assert str(folder) in str(told.value)
  params = dict(weight=jnp.zeros(WIDTH), age=jnp.zeros(()))
  with checkpoint.Checkpointer(folder) as checkpointer:
    kept = checkpointer.restore(train_state.create(params, TX, extra=jnp.zeros(())))
  assert kept.step == int(kept.state.step) == bad_step - 1
  epoch, step_of_epoch = divmod(bad_step - 1, STEPS_PER_EPOCH)
  assert kept.progress["epoch"] == epoch and kept.progress["step_of_epoch"] == step_of_epoch
  assert kept.progress["not_finite"] == ["grad_norm", "half", "loss"]
  with np.load(folder / "batch.npz") as batch:
    batch = dict(batch)
  assert batch["jitter"] == math.inf
  # The step goes wrong again, and only by its batch.
  step = train_state.make_train_step(_loss_fn, TX, after_update=_grow)
  for jitter, finite in ((batch["jitter"], False), (0.1, True)):
    given = batch | dict(jitter=np.float32(jitter))
    _, metrics = step(kept.state, given, jnp.asarray(INPUTS), jax.random.key(3))
    assert np.isfinite(metrics["loss"]) == finite
  assert float(kept.state.params["age"]) == bad_step - 1


def test_what_is_not_finite_at_once_is_told_without_a_state(tmp_path):
  poisoned = lambda step: _batch(step, jitter=math.nan)
  with pytest.raises(UserError, match=r"toy, step 1: .*None came before it"):
    _fit(tmp_path, epoch_fn=_epochs(poisoned))


@pytest.mark.parametrize("steps", [(2, 4), (20, 90)])  # The second one outlasts the training.
def test_a_profile_of_some_steps(tmp_path, steps, monkeypatch):
  calls = []
  monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: calls.append(folder))
  monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
  taken = []

  def train_chunk(state, epoch, first, count, *args):
    taken.append((int(state.step), count, len(calls) % 2 == 1))
    return whole(state, epoch, first, count, *args)

  whole = _train_chunk(64)
  _fit(tmp_path, train_chunk=train_chunk, chunk_steps=64, profile_steps=steps)
  assert calls == [tmp_path / "profile" / STAGE, "stop"]
  for step, count, traced in taken:
    assert traced == (steps[0] <= step < steps[1])
    assert not any(step < bound < step + count for bound in steps)

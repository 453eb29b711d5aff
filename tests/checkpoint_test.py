"""Checkpoints come back bit for bit, whatever was killed or damaged meanwhile."""

import gc
import logging
import pathlib
import shutil

import chex
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bbqrec_jax import checkpoint
from bbqrec_jax.errors import UserError


class State(flax.struct.PyTreeNode):
  step: jax.Array
  params: dict
  moments: tuple


def make_state(step: int, width: int = 5) -> State:
  kernel = jax.random.normal(jax.random.key(step), (3, width))
  params = {"kernel": kernel, "table": kernel.astype(jnp.bfloat16)}
  return State(jnp.int32(step), params, (kernel**2, {"count": jnp.int32(7 * step)}))


@pytest.fixture
def failed_reads():
  """Where a read fails, Orbax drops the reads under way; they complain when collected: here."""
  yield
  gc.collect()


def save_steps(directory, *steps: int, best: tuple[int, ...] = ()) -> None:
  with checkpoint.Checkpointer(directory) as checkpointer:
    for step in steps:
      checkpointer.save(step, make_state(step), {"epoch": step}, best=step in best)


def test_newest_comes_back_bit_for_bit_with_its_progress(tmp_path):
  save_steps(tmp_path / "a", 2, 3)
  template = jax.eval_shape(lambda: make_state(0))
  with checkpoint.Checkpointer(tmp_path / "a") as checkpointer:
    restored = checkpointer.restore(template)
  chex.assert_trees_all_equal(restored.state, make_state(3))
  chex.assert_trees_all_equal_dtypes(restored.state, make_state(3))
  assert isinstance(restored.state, State)
  assert (restored.progress, restored.step) == ({"epoch": 3}, 3)


def test_empty_directory_restores_none_and_has_no_best(tmp_path):
  with checkpoint.Checkpointer(tmp_path) as checkpointer:
    assert checkpointer.restore(make_state(0)) is None
    with pytest.raises(UserError, match="no best checkpoint"):
      checkpointer.restore_best(make_state(0))


def test_best_outlives_the_newest_ones_and_a_later_best_replaces_it(tmp_path):
  with checkpoint.Checkpointer(tmp_path) as checkpointer:
    for step in range(1, 8):
      checkpointer.save(step, make_state(step), {}, best=step in (2, 3))
  with checkpoint.Checkpointer(tmp_path) as checkpointer:
    best = checkpointer.restore_best(make_state(0))
    assert best.step == 3
    chex.assert_trees_all_equal(best.state, make_state(3))
    assert checkpointer.restore(make_state(0)).step == 7
  assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"3", "6", "7"}


def test_best_restores_only_the_fields_asked_for(tmp_path):
  save_steps(tmp_path, 2, best=(2,))
  with checkpoint.Checkpointer(tmp_path) as checkpointer:
    best = checkpointer.restore_best({"params": make_state(0).params})
  chex.assert_trees_all_equal(best.state, {"params": make_state(2).params})


def test_save_in_the_background_survives_donation_and_changed_progress(tmp_path):
  advance = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
  state, progress = {"x": jnp.zeros((512, 1031))}, {"losses": []}
  with checkpoint.Checkpointer(tmp_path) as checkpointer:
    for step in range(3):
      progress["losses"].append(step)
      checkpointer.save(step, state, progress, best=step == 1)
      progress["losses"].append(-1)
      for _ in range(2):
        state = advance(state)
    np.testing.assert_array_equal(checkpointer.restore_best(state).state["x"], 2.0)
    assert checkpointer.restore(state).progress == {"losses": [0, -1, 1, -1, 2]}


@pytest.mark.usefixtures("failed_reads")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("how", ["truncated", "removed"])
def test_damaged_newest_is_passed_over_whichever_file_it_is(tmp_path, caplog, how):
  save_steps(tmp_path / "whole", 2, 5, best=(2,))
  files = sorted(
    path.relative_to(tmp_path / "whole")
    for path in (tmp_path / "whole" / "5").rglob("*")
    if path.is_file()
  )
  fallbacks = 0
  for i, file in enumerate(files):
    directory = tmp_path / str(i)
    shutil.copytree(tmp_path / "whole", directory)
    if how == "truncated":
      (directory / file).write_bytes(b"")
    else:
      (directory / file).unlink()
    with checkpoint.Checkpointer(directory) as checkpointer:
      restored = checkpointer.restore(make_state(0))
      chex.assert_trees_all_equal(restored.state, make_state(restored.step))  # Never a mixture.
      assert restored.progress == {"epoch": restored.step}
      fallbacks += restored.step == 2
      if restored.step == 2:
        checkpointer.save(5, make_state(5), {"epoch": 5}, best=False)
        assert (directory / "5.damaged").is_dir()
      assert checkpointer.restore(make_state(0)).step == 5
  assert fallbacks >= 3  # At the least the array data, its index, and the progress.
  assert caplog.text.count("cannot be read") == fallbacks


def test_a_step_is_saved_once(tmp_path):
  with checkpoint.Checkpointer(tmp_path) as checkpointer:
    checkpointer.save(2, make_state(2), {}, best=False)
    with pytest.raises(ValueError, match="already exists"):
      checkpointer.save(2, make_state(3), {}, best=False)


def test_what_a_killed_save_leaves_is_no_checkpoint(tmp_path):
  save_steps(tmp_path, 2)
  shutil.copytree(tmp_path / "2", tmp_path / "3.orbax-checkpoint-tmp")
  with checkpoint.Checkpointer(tmp_path) as checkpointer:
    assert checkpointer.restore(make_state(0)).step == 2
    checkpointer.save(3, make_state(3), {}, best=False)
    assert checkpointer.restore(make_state(0)).step == 3


@pytest.mark.usefixtures("failed_reads")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
  "template",
  [make_state(0, width=7), make_state(0).replace(params={"other": jnp.zeros(3)})],
  ids=["shape", "structure"],
)
def test_template_of_another_model_is_an_error_and_renames_nothing(tmp_path, template):
  save_steps(tmp_path, 2, 3, best=(3,))
  with checkpoint.Checkpointer(tmp_path) as checkpointer:
    with pytest.raises(UserError, match="configuration that wrote them"):
      checkpointer.restore(template)
    with pytest.raises(UserError, match="configuration that wrote it"):
      checkpointer.restore_best(template)
    assert checkpointer.restore(make_state(0)).step == 3


def test_orbax_is_silent_and_others_are_not(tmp_path, caplog):
  with caplog.at_level(logging.DEBUG):
    save_steps(tmp_path, 2, 3)
    logging.getLogger("absl").info("kept")
  assert [record.message for record in caplog.records if record.name == "absl"] == ["kept"]


def test_a_relative_directory_is_fine(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  save_steps(pathlib.Path("runs/a"), 2)
  assert (tmp_path / "runs/a/2").is_dir()

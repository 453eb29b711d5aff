"""Checkpoints come back bit for bit, whatever was killed or damaged meanwhile."""

import gc
import logging
import pathlib
import shutil
import subprocess
import sys

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


def test_who_reads_changes_nothing_where_another_process_saves(tmp_path, caplog):
  folder = tmp_path / "checkpoints" / "stage"
  save_steps(folder, 2, 3, best=(2,))
  (folder / "9.orbax-checkpoint-tmp").mkdir()  # A save that is under way.
  (folder / "7").mkdir()
  (folder / "3" / "_CHECKPOINT_METADATA").write_text("{")
  caplog.clear()
  params = checkpoint.best_params(tmp_path, "stage", jax.eval_shape(lambda: make_state(0).params))
  chex.assert_trees_all_equal(params, make_state(2).params)
  assert {path.name for path in folder.iterdir()} == {"2", "3", "7", "9.orbax-checkpoint-tmp"}
  assert "read only" not in caplog.text
  with pytest.raises(UserError, match="no best checkpoint"):
    checkpoint.best_params(tmp_path, "other", {})
  assert not (tmp_path / "checkpoints" / "other").exists()


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


def damage(path: pathlib.Path, how: str, rng: np.random.Generator) -> None:
  content = bytearray(path.read_bytes())
  if how == "removed":
    path.unlink()
  elif how == "truncated":
    path.write_bytes(content[: rng.integers(len(content))])
  else:  # A bit in each of three bytes.
    for at in rng.integers(0, len(content), 3):
      content[at] ^= 1 << rng.integers(8)
    path.write_bytes(content)


@pytest.mark.usefixtures("failed_reads")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("how", ["truncated", "removed", "flipped"])
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
    damage(directory / file, how, np.random.default_rng(i))
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


def test_a_step_may_be_damaged_again(tmp_path):
  save_steps(tmp_path, 4)
  for _ in range(2):
    save_steps(tmp_path, 8)
    shutil.rmtree(tmp_path / "8" / "record")
    with checkpoint.Checkpointer(tmp_path) as checkpointer:
      assert checkpointer.restore(make_state(0)).step == 4
  assert (tmp_path / "8.damaged").is_dir() and not (tmp_path / "8").exists()


def test_a_state_that_reads_well_but_is_another_is_passed_over(tmp_path, monkeypatch, caplog):
  """As damage that no file format notices: here a digest that is not of what was written."""
  save_steps(tmp_path, 2)
  digests = checkpoint._digests
  for name in digests(make_state(0)):
    wrong = lambda tree, name=name: digests(tree) | {name: 7}
    directory = tmp_path.with_name(name.replace("/", "_"))
    shutil.copytree(tmp_path, directory)
    with monkeypatch.context() as patch:
      patch.setattr(checkpoint, "_digests", wrong)
      save_steps(directory, 3)
    with checkpoint.Checkpointer(directory) as checkpointer:
      assert checkpointer.restore(make_state(0)).step == 2
    assert f"Its {name} is not what was written" in caplog.text


def test_digests_change_with_every_bit_and_place_and_with_nothing_else():
  state = jax.device_get(make_state(3))
  expected = checkpoint._digests(state)
  assert list(expected) == [
    "step", "params/kernel", "params/table", "moments/0", "moments/1/count"
  ]  # fmt: skip
  assert checkpoint._digests(jax.tree.map(jnp.asarray, state)) == expected
  for name, leaf in zip(expected, jax.tree.leaves(state)):
    flat = np.array(leaf).reshape(-1)
    others = [flat[::-1].reshape(leaf.shape)] if flat.size > 1 else []
    for bit in range(8 * flat.itemsize):
      changed = flat.copy()
      changed.view(f"u{flat.itemsize}")[flat.size // 2] ^= np.array(1 << bit, f"u{flat.itemsize}")
      others.append(changed.reshape(leaf.shape))
    found = {checkpoint._digests({"x": other})["x"] for other in others}
    assert expected[name] not in found and len(found) == len(others)


def test_it_comes_back_on_other_devices(tmp_path):
  devices = jax.devices()
  auto = (jax.sharding.AxisType.Auto,) * 2
  mesh = jax.make_mesh((4, 2), ("data", "model"), auto, devices=devices)
  spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("model"))
  state = {"table": jnp.arange(24.0).reshape(8, 3), "bias": jnp.arange(3.0)}
  placed = state | {"table": jax.device_put(state["table"], spread)}
  digests = checkpoint._digests(placed)
  assert digests == checkpoint._digests(state)
  with checkpoint.Checkpointer(tmp_path) as checkpointer:
    checkpointer.save(1, placed, {}, best=True)
    for template, where in (
      (jax.eval_shape(lambda: state), {devices[0]}),
      (placed | {"bias": jax.device_put(state["bias"], devices[3])}, set(devices)),
    ):
      restored = checkpointer.restore(template).state
      chex.assert_trees_all_equal(restored, state)
      assert restored["table"].devices() == where


def test_another_schema_is_refused_by_its_number(tmp_path, monkeypatch):
  with monkeypatch.context() as patch:
    patch.setattr(checkpoint, "SCHEMA", 0)
    save_steps(tmp_path, 2)
  with checkpoint.Checkpointer(tmp_path) as checkpointer:
    with pytest.raises(UserError, match="It is of schema 0, this code reads 1"):
      checkpointer.restore(make_state(0))


FULL_DISK = """
import resource, signal, sys
import jax.numpy as jnp
from bbqrec_jax import checkpoint
from bbqrec_jax.errors import UserError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # Writing too much then fails as on a full disk.
with checkpoint.Checkpointer(sys.argv[1]) as checkpointer:
  checkpointer.save(1, {"x": jnp.arange(5)}, {}, best=False)
  checkpointer.wait()
  resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
  try:
    checkpointer.save(2, {"x": jnp.arange(1_000_000) ** 3}, {}, best=False)
    checkpointer.wait()
  except UserError as error:
    print(error)
"""


def test_a_full_disk_is_a_sentence_and_leaves_what_was_there(tmp_path):
  command = [sys.executable, "-c", FULL_DISK, str(tmp_path)]
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith(f"A checkpoint cannot be written to {tmp_path} (")
  with checkpoint.Checkpointer(tmp_path) as checkpointer:
    assert checkpointer.restore({"x": jnp.arange(5)}).step == 1


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

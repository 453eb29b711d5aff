"""Compiled programs are kept in a folder of the user's own, and found again."""

import collections
import pathlib
import stat

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from bbqrec_jax import compile_cache

SETTINGS = (
  "jax_compilation_cache_dir",
  "jax_persistent_cache_min_compile_time_secs",
  "jax_persistent_cache_min_entry_size_bytes",
)


@pytest.fixture(autouse=True)
def restored():
  """JAX reads the settings when it opens the cache, so it must open it anew."""
  before = {name: getattr(jax.config, name) for name in SETTINGS}
  jax.config.update("jax_compilation_cache_dir", None)
  compilation_cache.reset_cache()
  yield
  for name, value in before.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()


def test_what_was_compiled_once_is_read_again(tmp_path):
  folder = compile_cache.enable(tmp_path)
  counts = collections.Counter()
  listener = lambda event, **_: counts.update([event])
  jax.monitoring.register_event_listener(listener)
  try:
    run = lambda: jax.jit(lambda x: jnp.sin(x) @ x.T)(jnp.ones((3, 3))).block_until_ready()
    jax.clear_caches()
    run()
    entries = {path.name for path in folder.iterdir() if path.name.endswith("-cache")}
    assert entries and counts["/jax/compilation_cache/cache_hits"] == 0
    jax.clear_caches()  # As a new process would find it.
    run()
  finally:
    jax.monitoring.unregister_event_listener(listener)
  assert entries == {path.name for path in folder.iterdir() if path.name.endswith("-cache")}
  assert counts["/jax/compilation_cache/cache_hits"] >= 1


def test_the_folder_is_the_users_alone(tmp_path):
  folder = compile_cache.enable(tmp_path / "new")
  assert folder.parent == tmp_path / "new"
  assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_folder_that_others_may_write_to_is_not_trusted(tmp_path, capsys):
  folder = compile_cache.enable(tmp_path)
  jax.config.update("jax_compilation_cache_dir", None)
  folder.chmod(0o777)
  assert compile_cache.enable(tmp_path) is None
  assert jax.config.jax_compilation_cache_dir is None
  assert f"not kept in {folder}: others may write to it" in capsys.readouterr().err


def test_without_a_folder_the_work_goes_on(tmp_path, capsys):
  (tmp_path / "file").write_text("")
  assert compile_cache.enable(tmp_path / "file") is None
  assert "not kept in" in capsys.readouterr().err


def test_jaxs_own_setting_stays(tmp_path):
  jax.config.update("jax_compilation_cache_dir", str(tmp_path))
  assert compile_cache.enable() == pathlib.Path(tmp_path)
  assert list(tmp_path.iterdir()) == []


def test_the_users_cache_is_the_default(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  folder = compile_cache.enable()
  assert folder.is_relative_to(tmp_path / ".cache" / "bbqrec_jax")

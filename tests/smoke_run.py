"""One tiny run of both stages, shared by the tests that look at what a run leaves behind."""

import collections.abc
import contextlib
import fcntl
import functools
import io
import os
import pathlib
import pickle
import types
from typing import NamedTuple

from ml_collections import config_dict

from bbqrec_jax import main
from configs import quickstart


class Finished(NamedTuple):
  workdir: pathlib.Path  # Must be left as it is.
  config: config_dict.FrozenConfigDict
  results: dict  # What main.run returned.
  output: str  # What it printed.
  unread: set[str]  # Dotted names of the config's fields that nothing read.


def make_config(**changes) -> config_dict.FrozenConfigDict:
  """configs/quickstart.py:smoke with less of everything; changes are by dotted name."""
  config = quickstart.get_config("smoke")
  config.unlock()
  config.data.update(num_users=150, num_items=70, text_dim=13, image_dim=11)
  config.update(max_history=2, codebook_size=8)
  config.tokenizer.update(batch_size=16, length_groups=1, kmeans_iters=3)
  config.generator.update(batch_size=32)
  config.generator.model.update(num_buckets=10)
  config.parallel.num_devices = 1
  config.update_from_flattened_dict(changes)
  return config_dict.FrozenConfigDict(config)


def command(config, workdir: pathlib.Path, stage_cache: pathlib.Path | str = "") -> int:
  """The exit status of `python -m bbqrec_jax.main` with these flags."""
  flags = dict(config=config, workdir=str(workdir), stage_cache=str(stage_cache))
  flags |= dict(distributed=False, coordinator=None, num_processes=None, process_id=None)
  return main.main(["main"], types.SimpleNamespace(**flags))


@functools.cache
def finished() -> Finished:
  """The run of make_config(), made by the first process that asks for it."""
  folder, config = pathlib.Path(os.environ["BBQREC_JAX_TESTS"]), make_config()
  workdir, made = folder / "finished", folder / "finished.pickle"
  with open(folder / "finished.lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)  # Until the file is closed.
    if not made.exists():
      read, output = set(), io.StringIO()
      with contextlib.redirect_stdout(output):
        results = main.run(_Recorder(config, read), workdir)
      made.write_bytes(pickle.dumps((results, output.getvalue(), _leaves(config) - read)))
  return Finished(workdir, config, *pickle.loads(made.read_bytes()))


class _Recorder(collections.abc.Mapping):
  """Stands for a config, and notes the dotted names of the fields that are read through it."""

  def __init__(self, config, read: set[str], prefix: str = ""):
    self._config, self._read, self._prefix = config, read, prefix

  def __getitem__(self, key):
    name, value = self._prefix + key, self._config[key]
    if isinstance(value, config_dict.FrozenConfigDict):
      return _Recorder(value, self._read, f"{name}.")
    self._read.add(name)
    return value

  def __getattr__(self, key):
    return self[key]

  def __iter__(self):
    return iter(self._config)

  def __len__(self):
    return len(self._config)

  __hash__ = object.__hash__  # A comparison of mappings would read everything.
  __eq__ = object.__eq__

  def to_dict(self):
    """A section is taken apart to be read; the whole is only written down."""
    if self._prefix:
      self._read |= {self._prefix + name for name in _leaves(self._config)}
    return self._config.to_dict()


def _leaves(config) -> set[str]:
  names = set()
  for key, value in config.items():
    if isinstance(value, config_dict.FrozenConfigDict):
      names |= {f"{key}.{name}" for name in _leaves(value)}
    else:
      names.add(key)
  return names

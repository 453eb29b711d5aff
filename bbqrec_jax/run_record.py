"""What a workdir says about its run: the configuration, where it came from, and atomic JSON."""

import contextlib
import datetime
import hashlib
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import resource
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from bbqrec_jax import compile_cache, partition
from bbqrec_jax.errors import UserError
from bbqrec_jax.file_lock import FileLock

LOCK_FILE = ".lock"  # In a workdir, while a process works on it.
# What of provenance() bits depend on. XLA cuts products by CPUs, so that their number is among it.
CONDITIONS = (
  "sources",
  "versions",
  "processor",
  "device_kind",
  "num_devices",
  "num_cpus",
  "num_processes",
  "settings",
)
_PACKAGE = pathlib.Path(__file__).parent
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
# What changes the bits of the same program: of jax.config, and of the environment.
_OF_JAX = (
  "jax_default_matmul_precision",
  "jax_default_prng_impl",
  "jax_disable_jit",
  "jax_disable_most_optimizations",
  "jax_enable_x64",
  "jax_threefry_partitionable",
)
_OF_ENVIRONMENT = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE")
_MISSING = object()  # A key that only one of two configs has; None is a value.


def to_jsonable(obj: Any) -> Any:
  """A copy of `obj` out of what JSON knows: mappings become dicts, sequences and arrays lists.

  NaN and infinities become None: standard JSON has no word for them.

  Raises:
    TypeError: something in it has no place in JSON.
  """
  match obj:
    case None | bool() | int() | str():
      return obj
    case float():
      return obj if math.isfinite(obj) else None
    case Mapping():
      return {str(key): to_jsonable(value) for key, value in obj.items()}
    case list() | tuple():
      return [to_jsonable(value) for value in obj]
    case os.PathLike():
      return os.fspath(obj)
    case np.ndarray() | np.generic() | jax.Array():
      return to_jsonable(np.asarray(obj).tolist())
  raise TypeError(f"Cannot write a {type(obj).__name__} as JSON: {obj!r}.")


def write_json(path: str | os.PathLike, obj: Any) -> None:
  """Writes `obj`, as `to_jsonable` has it; a reader sees the old file or the new, never a part."""
  write_text(path, json.dumps(to_jsonable(obj), indent=2, allow_nan=False) + "\n")


def write_text(path: str | os.PathLike, text: str) -> None:
  """Writes a text, as UTF-8; a reader sees the old file or the new, never a part."""
  path = pathlib.Path(path)
  temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
  try:
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)  # It is still there only if something went wrong.


def write_output(path: str | os.PathLike, obj: Any) -> None:
  """`write_json` to where a user asked for it; raises UserError if that is not possible."""
  try:
    write_json(path, obj)
  except OSError as error:
    raise UserError(f"{path} cannot be written ({error.strerror or error}).") from error


def read_json(path: str | os.PathLike, keys: Sequence[str] = ()) -> dict[str, Any]:
  """What `write_json` wrote: an object with at least these keys.

  Raises:
    UserError: it cannot be read, or is no such object; says what to do.
  """
  again = "remove it, and the command that wrote it makes it again"
  try:
    record = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
  except (OSError, ValueError, RecursionError) as error:
    reason = getattr(error, "strerror", None) or error
    raise UserError(f"{path} cannot be read as JSON ({reason}); {again}.") from error
  if not isinstance(record, dict):
    raise UserError(f"{path} is damaged, it holds no JSON object; {again}.")
  for key in keys:
    if key not in record:
      raise UserError(f"{path} is damaged, it has no {key!r}; {again}.")
  return record


def provenance() -> dict[str, Any]:
  """What made a result: commit, command, sources, versions, devices, CPUs, settings, date (UTC).

  Names no machine and no user. `commit` is None outside a git checkout; `dirty` says whether the
  checkout had changes that are in no commit; `sources` is a hash of this package's modules, which
  also tells such changes apart. `settings` are those of JAX and XLA that results depend on.
  """
  versions = {"python": platform.python_version()}
  for package in _PACKAGES:
    versions[package] = importlib.metadata.version(package)
  devices = jax.devices()
  settings = {name: jax.config.values.get(name) for name in _OF_JAX}
  settings |= {name: os.environ.get(name) for name in _OF_ENVIRONMENT}
  return {
    **_git_state(),
    "command": _command(),
    "date": now(),
    "sources": _digest_of_sources(),
    "versions": versions,
    "platform": platform.platform(),
    "processor": compile_cache.processor(),
    "device_kind": devices[0].device_kind,
    "num_devices": len(devices),
    "num_cpus": num_cpus(),
    "num_processes": jax.process_count(),
    "settings": settings,
  }


def now() -> str:
  """The date and time, UTC."""
  return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def num_cpus() -> int:
  """How many CPUs this process may use."""
  if hasattr(os, "sched_getaffinity"):  # Linux; elsewhere a process may use all.
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def claim_workdir(workdir: str | os.PathLike, config: Mapping, data_fingerprint: str) -> None:
  """Makes `workdir` this run's, or checks that it already is.

  The first call writes config.json: {"config", "data": {"fingerprint"}, "provenance", "resumed":
  []}. Later calls leave it as it is.

  Raises:
    UserError: the workdir holds another configuration or other data (the sentence names the first
      key that differs), its config.json cannot be read, or it cannot be written to.
  """
  workdir = pathlib.Path(workdir)
  path = workdir / "config.json"
  ours = {"config": to_jsonable(config), "data": {"fingerprint": data_fingerprint}}
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    if not os.access(workdir, os.W_OK | os.X_OK):
      raise PermissionError("permission denied")
    if not path.exists():
      if partition.is_main():
        write_json(path, {**ours, "provenance": provenance(), "resumed": []})
      return
    stored = json.loads(path.read_text(encoding="utf-8"))
    theirs = {key: stored[key] for key in ours}
  except OSError as error:
    raise UserError(
      f"Cannot write to workdir {workdir} ({error.strerror or error}); give another --workdir."
    ) from error
  except (ValueError, KeyError, TypeError, RecursionError) as error:
    raise UserError(
      f"{path} is not the record of a run ({error}); give another --workdir, or remove this one."
    ) from error
  for key, there, here in _differences(theirs, ours):
    raise UserError(
      f"Workdir {workdir} holds another run: {key} is {there} there and {here} here. Give another "
      "--workdir, or the configuration and data of the run that is there."
    )


@contextlib.contextmanager
def held(workdir: str | os.PathLike) -> Iterator[None]:
  """Keeps other runs out of a workdir; where the file system knows no locks, nothing does.

  Raises UserError if another process is at work on it.
  """
  lock = FileLock(pathlib.Path(workdir) / LOCK_FILE)
  try:
    is_free = lock.acquire()
  except OSError:
    is_free = True
  if not is_free:
    raise UserError(
      f"Another process is at work on {workdir}; wait for its end, or give another --workdir."
    )
  try:
    yield
  finally:
    lock.release()


def resume(workdir: str | os.PathLike) -> None:
  """Tells, and keeps in config.json's "resumed", that a run goes on under other conditions.

  Its bits are then not those of a run from one piece. "resumed" holds the provenance of each
  process whose CONDITIONS were new to this workdir. Where they are not, nothing is done.

  Raises:
    UserError: config.json is damaged.
  """
  path = pathlib.Path(workdir) / "config.json"
  stored = read_json(path, ("config", "data", "provenance"))
  first, later, ours = stored["provenance"], stored.get("resumed", []), provenance()
  if not isinstance(first, dict) or not isinstance(later, list):
    raise UserError(f"{path} is damaged, what it says of its processes cannot be read; remove it.")
  changes = list(_differences(_conditions(first), _conditions(ours)))
  if changes:
    what = ", ".join(f"{key} is {there} there and {here} here" for key, there, here in changes)
    print(
      f"Workdir {workdir} was begun under other conditions: {what}. The run goes on, but its bits "
      "are not those of one that never stopped.",
      file=sys.stderr,
      flush=True,
    )
  if _conditions(ours) not in [_conditions(made_by) for made_by in (first, *later)]:
    write_json(path, stored | {"resumed": [*later, ours]})


def is_of_one_piece(workdir: str | os.PathLike) -> bool:
  """Whether all of a workdir was made under the conditions that it was begun under."""
  return not read_json(pathlib.Path(workdir) / "config.json").get("resumed")


def peak_memory_mb() -> float:
  """The most memory that this process has held so far, in MiB; device memory is not in it."""
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak / (2**20 if sys.platform == "darwin" else 2**10)  # Bytes there, KiB elsewhere.


def _differences(theirs: Any, ours: Any, key: str = "") -> Iterator[tuple[str, str, str]]:
  """Yields (dotted key, their value, our value) where two JSON trees differ, in `ours`'s order."""
  if isinstance(theirs, dict) and isinstance(ours, dict):
    for name in [*ours, *(name for name in theirs if name not in ours)]:
      inner = f"{key}.{name}" if key else name
      yield from _differences(theirs.get(name, _MISSING), ours.get(name, _MISSING), inner)
  elif theirs != ours:
    yield key, *("absent" if value is _MISSING else repr(value) for value in (theirs, ours))


def _conditions(made_by: Any) -> dict[str, Any]:
  """What is CONDITIONS of a provenance; None for what it does not tell, or if it is none."""
  return {name: made_by.get(name) if isinstance(made_by, dict) else None for name in CONDITIONS}


def _digest_of_sources() -> str:
  """Of every module of this package."""
  digest = hashlib.sha256()
  for path in sorted(_PACKAGE.rglob("*.py")):
    digest.update(f"{path.relative_to(_PACKAGE)}\0{path.read_text('utf-8')}\0".encode())
  return digest.hexdigest()


def _command() -> str:
  """The command line as one would type it: a module's file by its name, not by where it lies."""
  program, *arguments = sys.argv
  path, package = pathlib.Path(program), __package__
  if path.parent == pathlib.Path(__file__).parent:
    return shlex.join(["python", "-m", f"{package}.{path.stem}", *arguments])
  return shlex.join([path.name, *arguments])


def _git_state() -> dict[str, str | bool | None]:
  """The checkout's commit, and whether it has changes; both None where that cannot be told.

  results/ does not count: runs write their records there, which change no later run.
  """

  def git(*args: str) -> str:
    command = ["git", "-C", str(pathlib.Path(__file__).parent), *args]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

  try:
    # An installed copy can lie inside some other repository; only a tracked file is a checkout.
    git("ls-files", "--error-unmatch", pathlib.Path(__file__).name)
    changes = git("status", "--porcelain", "--", ":/", ":(top,exclude)results")
    return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changes)}
  except (OSError, subprocess.CalledProcessError):
    return {"commit": None, "dirty": None}

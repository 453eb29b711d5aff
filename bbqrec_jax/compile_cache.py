"""Compiled programs, kept on disk: a second start compiles nothing."""

import hashlib
import os
import pathlib
import platform
import stat
import sys

import jax

_FOLDER = "~/.cache/bbqrec_jax/compiled"


def enable(folder: str | os.PathLike | None = None) -> pathlib.Path | None:
  """Keeps what this process compiles, and reads what earlier ones kept.

  Entries are native code that will be run, so the folder must be the user's own and closed to
  others; it is made so. Processors of different kinds do not share entries.

  Args:
    folder: None for JAX's own setting (JAX_COMPILATION_CACHE_DIR), which then stays as it is, or
      for a folder in the user's cache.

  Returns:
    The folder in use; None, behind a warning on stderr, if it cannot be used.
  """
  if folder is None and jax.config.jax_compilation_cache_dir:
    return pathlib.Path(jax.config.jax_compilation_cache_dir)
  path = pathlib.Path(os.path.expanduser(folder or _FOLDER)) / processor()
  try:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = path.stat()
    if found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
      raise PermissionError("others may write to it")
    if not os.access(path, os.W_OK):
      raise PermissionError("it cannot be written to")
  except OSError as error:
    print(f"Compiled programs are not kept in {path}: {error}.", file=sys.stderr)
    return None
  jax.config.update("jax_compilation_cache_dir", str(path))
  # Also what compiles fast: hundreds of small programs take seconds together.
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
  return path


def processor() -> str:
  """Names what the processor can do, as far as the system tells."""
  about = [platform.machine(), platform.processor()]
  cpuinfo = pathlib.Path("/proc/cpuinfo")
  if cpuinfo.exists():
    keys = ("model name", "flags", "Features")
    about += [line for line in cpuinfo.read_text().splitlines() if line.startswith(keys)][:2]
  return f"{platform.machine()}_{hashlib.sha256(repr(about).encode()).hexdigest()[:8]}"

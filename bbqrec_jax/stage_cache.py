"""First stages of runs, kept on disk: a run that begins as an earlier one did goes on behind them.

Trials of a generator share their tokenizer, and so do ablations of the attention. A stage's entry
is a copy of the workdir as it was when the stage was done, in a folder that is named by a hash of
all that its bits depend on: the fields that stages so far may read, the data, and
run_record.CONDITIONS. What is found there is what the stage would have made, so that a run that
went on under other conditions than it was begun under leaves nothing.

Of runs at the same time one trains what they share, and the others wait for it: a run holds a lock
beside each entry that it is going to make, which ends with its process.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Mapping
from typing import Self

from bbqrec_jax import fields, run_record
from bbqrec_jax.errors import UserError
from bbqrec_jax.file_lock import FileLock

_OF_RUN = ("command", "commit", "dirty", "date")
_OWN = ("config.json", "results.json", run_record.LOCK_FILE)  # Every run has its own.
_FILES = "files.json"  # Of an entry: path -> size, in bytes, of each file.
_POLL_SECONDS = 1.0


class StageCache:
  """The entries in a folder that are of use to one run.

  A context manager: behind it nobody waits for this run any more.
  """

  def __init__(self, folder: str | os.PathLike, config: Mapping, data_fingerprint: str):
    """Makes nothing yet; the folder need not exist.

    Args:
      config: the whole one, as plain values, checked by validate.check_config().
      data_fingerprint: Dataset.fingerprint.
    """
    self._folder = pathlib.Path(os.path.expanduser(folder))
    self._stages = tuple(config["stages"])
    self._provenance = run_record.provenance()
    basis = dict(
      data=data_fingerprint,
      **{name: self._provenance[name] for name in run_record.CONDITIONS},
    )
    self._entries = [
      self._folder / _digest(basis | dict(config=fields.first_stages(config, count)))
      for count in range(1, len(self._stages) + 1)
    ]
    ends_alone = self._stages[-1] not in fields.WRITERS_OF_IDS  # Nothing can come behind it.
    self._kept = self._entries[:-1] if ends_alone else self._entries
    self._locks = {entry: FileLock(entry.with_suffix(".lock")) for entry in self._kept}

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *exc_info) -> None:
    for lock in self._locks.values():
      lock.release()

  def restore(self, workdir: pathlib.Path, waits: bool = True) -> None:
    """Gives a workdir that has trained nothing yet the most stages that there is an entry of.

    An entry that has lost files (to what cleans a folder of temporary files, for instance) is
    removed, with a line. Entries that are missing are then this run's to make.

    Args:
      workdir: claimed and resumed, by run_record.
      waits: whether to wait, with a line, where another run is making the next entry.
    """
    if (workdir / "checkpoints").exists() or any((workdir / "stages").glob("*.json")):
      if run_record.is_of_one_piece(workdir):
        for entry in self._kept:
          if not entry.is_dir():
            self._claim(entry)
      return  # It goes on with what it has begun.
    found = self._find(waits)
    if not found:
      return
    temporary = workdir / "restored.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(found[-1], temporary, ignore=shutil.ignore_patterns(_FILES))
    # Records of stages come last: without them, stages are taken up where their checkpoints are.
    for path in sorted(temporary.iterdir(), key=lambda path: path.name == "stages"):
      if (workdir / path.name).is_dir():
        shutil.rmtree(workdir / path.name)
      os.replace(path, workdir / path.name)
    temporary.rmdir()
    for stage in self._stages[: self._entries.index(found[-1]) + 1]:
      print(f"{stage}: taken from {found[-1]}.", flush=True)

  def keep(self, workdir: pathlib.Path, stage: str) -> None:
    """Keeps what the workdir holds now that this stage is done, if other runs can go on from it.

    Not where the run went on under other conditions than it was begun under. A folder that cannot
    be written to costs a line, not the run. No run waits for this one's stage any more.
    """
    entry = self._entries[self._stages.index(stage)]
    if entry not in self._kept:
      return
    if not entry.is_dir() and run_record.is_of_one_piece(workdir):
      try:
        self._copy(workdir, entry)
      except OSError as error:
        if not entry.is_dir():  # Otherwise another run was faster.
          reason = error.strerror or error
          print(f"{stage}: not kept in {self._folder} ({reason}).", file=sys.stderr, flush=True)
    self._locks[entry].release()

  def _find(self, waits: bool) -> list[pathlib.Path]:
    """The entries that are there, once no other run is making the next; claims those to come."""
    told = False
    while True:
      found = [entry for entry in self._entries if _is_whole(entry)]
      missing = self._kept[self._entries.index(found[-1]) + 1 if found else 0 :]
      is_mine = not missing or self._claim(missing[0])
      if is_mine and missing and _is_whole(missing[0]):  # Made after it had been looked for.
        self._locks[missing[0]].release()
        continue
      if is_mine or not waits:
        break
      if not told:
        stage = self._stages[self._entries.index(missing[0])]
        print(f"{stage}: another run is making it; this one waits for that.", flush=True)
        told = True
      time.sleep(_POLL_SECONDS)
    for entry in missing[1:]:
      self._claim(entry)
    return found

  def _claim(self, entry: pathlib.Path) -> bool:
    """Whether an entry is this run's to make: no other makes it, or locks are not to be had."""
    try:
      self._folder.mkdir(parents=True, exist_ok=True)
      return self._locks[entry].acquire()
    except OSError:  # keep() says what is wrong with the folder.
      return True

  def _copy(self, workdir: pathlib.Path, entry: pathlib.Path) -> None:
    temporary = entry.with_name(f"{entry.name}.{os.getpid()}.tmp")
    try:
      shutil.copytree(workdir, temporary, ignore=_ignore)
      for path in (temporary / "stages").glob("*.json"):
        made_by = {name: self._provenance[name] for name in _OF_RUN}
        run_record.write_json(path, dict(made_by=made_by) | run_record.read_json(path))
      run_record.write_json(temporary / _FILES, _sizes(temporary))
      os.rename(temporary, entry)
    finally:
      shutil.rmtree(temporary, ignore_errors=True)


def _is_whole(entry: pathlib.Path) -> bool:
  """Whether an entry is there with all its files; removes one that is not whole."""
  if not entry.is_dir():
    return False
  with contextlib.suppress(UserError):
    if run_record.read_json(entry / _FILES) == _sizes(entry):
      return True
  print(f"{entry} has lost files; it is removed and made again.", file=sys.stderr, flush=True)
  shutil.rmtree(entry, ignore_errors=True)
  return False


def _sizes(entry: pathlib.Path) -> dict[str, int]:
  """Path below the entry -> bytes, of its files but for _FILES."""
  return {
    str(path.relative_to(entry)): path.stat().st_size
    for path in sorted(entry.rglob("*"))
    if path.is_file() and path != entry / _FILES
  }


def _ignore(folder: str, names: list[str]) -> list[str]:
  del folder
  return [name for name in names if name in _OWN or name.endswith(".tmp")]


def _digest(obj: Mapping) -> str:
  text = json.dumps(run_record.to_jsonable(obj), sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()

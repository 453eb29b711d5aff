"""First stages of runs, kept on disk: a run that begins as an earlier one did goes on behind them.

Trials of a generator share their tokenizer, and so do ablations of the attention. A stage's entry
is a copy of the workdir as it was when the stage was done, in a folder that is named by a hash of
all that its bits depend on: the fields that stages so far may read, the data, and
run_record.CONDITIONS. What is found there is what the stage would have made, so that a run that
went on under other conditions than it was begun under leaves nothing.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
import sys
from collections.abc import Mapping

from bbqrec_jax import fields, run_record
from bbqrec_jax.errors import UserError

_OF_RUN = ("command", "commit", "dirty", "date")
_OWN = ("config.json", "results.json")  # Every run has its own.
_FILES = "files.json"  # Of an entry: path -> size, in bytes, of each file.


class StageCache:
  """The entries in a folder that are of use to one run."""

  def __init__(self, folder: str | os.PathLike, config: Mapping, data_fingerprint: str):
    """Makes nothing yet; the folder need not exist.

    Args:
      config: the whole one, as plain values, checked by validate.check_config().
      data_fingerprint: Dataset.fingerprint.
    """
    self._folder = pathlib.Path(folder).expanduser()
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

  def restore(self, workdir: pathlib.Path) -> None:
    """Gives a workdir that has trained nothing yet the most stages that there is an entry of.

    An entry that has lost files (to what cleans a folder of temporary files, for instance) is
    removed, with a line.
    """
    if (workdir / "checkpoints").exists() or any((workdir / "stages").glob("*.json")):
      return  # It goes on with what it has begun.
    found = [entry for entry in self._entries if _is_whole(entry)]
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
    be written to costs a line, not the run.
    """
    count = self._stages.index(stage) + 1
    entry = self._entries[count - 1]
    ends_here = count == len(self._stages) and stage not in fields.WRITERS_OF_IDS
    if ends_here or entry.is_dir() or not run_record.is_of_one_piece(workdir):
      return
    temporary = entry.with_name(f"{entry.name}.{os.getpid()}.tmp")
    try:
      shutil.copytree(workdir, temporary, ignore=_ignore)
      for path in (temporary / "stages").glob("*.json"):
        made_by = {name: self._provenance[name] for name in _OF_RUN}
        run_record.write_json(path, dict(made_by=made_by) | run_record.read_json(path))
      run_record.write_json(temporary / _FILES, _sizes(temporary))
      os.rename(temporary, entry)
    except OSError as error:
      if not entry.is_dir():  # Otherwise another run was faster.
        reason = error.strerror or error
        print(f"{stage}: not kept in {self._folder} ({reason}).", file=sys.stderr, flush=True)
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

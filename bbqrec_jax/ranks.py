"""The rank of every user's target, as a run left it: in its workdir, or packed in its record.

A record keeps what the metrics see of the test split, and a hash of the users in their order, so
that a paired test between two records needs no other file.
"""

import base64
import hashlib
import json
import os
import pathlib
import zlib
from typing import NamedTuple

import numpy as np

from bbqrec_jax import metrics, run_record
from bbqrec_jax.data import npz
from bbqrec_jax.errors import UserError

KS = (5, 10)  # Of recall@k and ndcg@k, where runs are compared.
RECORDED = ("test", "test_unseen")  # What a record has ranks of.
_DEPTH = max(KS)  # Ranks beyond it count for no metric.


class Run(NamedTuple):
  """What a run left of one split.

  Attributes:
    name: what to call it.
    ranks: [U] int32 ranks of the targets, from 1. Of a record, NOT_FOUND for those beyond 10.
    user_ids: [U] str, or None if the run did not record them; a record does not.
    users: a hash of the ids in their order, or None if the run did not record them.
    sequences: data.dataset.sequence_fingerprint(), or None if the run did not record it.
  """

  name: str
  ranks: np.ndarray
  user_ids: np.ndarray | None
  users: str | None
  sequences: str | None = None


class Seeds(NamedTuple):
  """The runs of one setting, a seed each; or a single run."""

  name: str
  runs: tuple[Run, ...]


def load_seeds(path: str | os.PathLike, split: str) -> Seeds:
  """Reads what one run left, or the runs of all seeds.

  Args:
    path: as for load(); or a folder with such workdirs or records, SEED or SEED.json.
    split: one of evaluators.ranking.SPLITS; records have RECORDED alone.

  Raises UserError as load() does.
  """
  path = pathlib.Path(path)
  found = []
  if os.path.isdir(path) and not os.path.isfile(path / "ranks.npz"):
    found = [
      child
      for child in path.iterdir()
      if child.stem.isdecimal() and (child.suffix == ".json" or child.is_dir())
    ]
  if not found:
    run = load(path, split)
    return Seeds(run.name, (run,))
  found.sort(key=lambda child: int(child.stem))
  name = f"{path.resolve().name}/{','.join(child.stem for child in found)}"
  return Seeds(name, tuple(load(child, split) for child in found))


def load(path: str | os.PathLike, split: str) -> Run:
  """Reads what a run left.

  Args:
    path: its workdir, which has a ranks.npz; or its record, a .json.
    split: one of evaluators.ranking.SPLITS; a record has RECORDED alone.

  Raises:
    UserError: the file or the split is missing, or unreadable.
  """
  path = pathlib.Path(path)
  if path.suffix == ".json" and os.path.isfile(path):  # False also for what can be no name.
    return _of_record(path, split)
  return _of_workdir(path, split)


def _of_record(path: pathlib.Path, split: str) -> Run:
  record = run_record.read_json(path)
  if "test_ranks" not in record:
    raise UserError(
      f"{path} has no test_ranks: it is no record of a run, or one of before they were kept; give "
      "the run's workdir."
    )
  if split not in RECORDED:
    raise UserError(f"{path} has ranks of the test split alone; give the workdir of the run.")
  key = f"{split}_ranks"
  if key not in record:
    raise UserError(f"{path} has no {key}: it is of before they were taken; make the run again.")
  try:
    packed, users = (record[key][name] for name in ("packed", "users"))
  except (KeyError, TypeError) as error:
    raise UserError(f"{key} of {path} are damaged ({error!r}); make it again.") from error
  ranks = unpack(packed)
  _check(ranks, path, split)
  data = record.get("data")
  sequences = data.get("sequences") if isinstance(data, dict) else None
  return Run(_name(path.with_suffix("")), ranks, None, users, sequences)


def _of_workdir(folder: pathlib.Path, split: str) -> Run:
  path = folder / "ranks.npz"
  if not os.path.isfile(path):
    raise UserError(
      f"{path} does not exist; give the workdir of a run that has been evaluated, its record, or a "
      "folder of several by seed."
    )
  arrays = npz.read(path, (), "evaluate the run again")
  ranks, user_ids = arrays.get(split), arrays.get("user_ids")
  if ranks is None:
    raise UserError(f"{path} has no ranks of the {split} split, only {sorted(arrays)}.")
  _check(ranks, path, split)
  if user_ids is not None and user_ids.shape != ranks.shape:
    raise UserError(f"{path} has {user_ids.size} user_ids for {len(ranks)} ranks of {split}.")
  if user_ids is not None and user_ids.dtype.kind not in "USiu":
    raise UserError(f"{path}: user_ids must be text or whole numbers, not {user_ids.dtype}.")
  users = None if user_ids is None else _digest(user_ids)
  sequences = str(arrays["sequences"]) if "sequences" in arrays else None
  return Run(_name(folder), ranks, user_ids, users, sequences)


def _check(ranks: np.ndarray, path: pathlib.Path, split: str) -> None:
  is_valid = ranks.ndim == 1 and np.issubdtype(ranks.dtype, np.integer) and len(ranks) > 1
  if not is_valid or ranks.min() < 1:
    raise UserError(f"{path}: {split} must be ranks from 1 of at least two users.")


def _name(path: pathlib.Path) -> str:
  """The last part; SYSTEM/SEED of what a table keeps by seed."""
  path = path.resolve()
  return f"{path.parent.name}/{path.name}" if path.name.isdecimal() else path.name


def _digest(user_ids: np.ndarray) -> str:
  text = json.dumps([str(user_id) for user_id in user_ids.tolist()])
  return hashlib.sha256(text.encode()).hexdigest()


def of_record(run: Run) -> dict[str, str]:
  """A record's `<split>_ranks`; the run is of a workdir that has its users' ids."""
  return dict(packed=pack(run.ranks), users=run.users)


def pack(ranks: np.ndarray) -> str:
  """Ranks [U], from 1, as text: base64 of zlib of uint8 [U], 0 for a rank beyond 10."""
  seen = np.where(ranks <= _DEPTH, ranks, 0).astype(np.uint8)
  return base64.b64encode(zlib.compress(seen.tobytes(), 9)).decode("ascii")


def unpack(text: str) -> np.ndarray:
  """[U] int32 of what pack() made; NOT_FOUND for a rank beyond 10.

  Raises UserError if it made no such text.
  """
  try:
    seen = np.frombuffer(zlib.decompress(base64.b64decode(text, validate=True)), np.uint8)
    seen = seen.astype(np.int32)  # NOT_FOUND is no uint8.
  except (ValueError, TypeError, zlib.error) as error:
    raise UserError(
      f"test_ranks of a record is damaged ({error}); make the record again."
    ) from None
  return np.where(seen > 0, seen, np.int32(metrics.NOT_FOUND))

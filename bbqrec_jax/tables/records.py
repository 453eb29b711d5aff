"""The record of a run, results/runs/DATASET/SYSTEM/SEED.json, and the figures that it holds.

A record is what bbqrec_jax.record makes (metrics, config, command, commit, data hash, versions,
device, seconds), with what a table needs beside it:

  run: dataset, system and seed; `overrides`, what the user of the table changed of the system's own
    settings; `tuned`, what results/tuning chose.
  test_ranks: the ranks of all users' test targets as far as the metrics see them (`packed`, see
    pack_ranks()), and a hash of the users' ids in their order (`users`): a paired test needs no
    file but the records.
  latency: seconds a user by beam width, where it was measured; bbqrec_jax/latency.py.
"""

import base64
import hashlib
import json
import pathlib
import zlib
from typing import Any

import numpy as np

from bbqrec_jax import compare, metrics, record, run_record
from bbqrec_jax.errors import UserError

FOLDER = "runs"
# Since then a target can tell which item of its history is the latest: models/generator.py.
CAUSAL_SEES_LATEST = "2026-11-26T10:26:22+00:00"
_DEPTH = max(compare.KS)  # Ranks beyond it count for no metric.


def path(out: pathlib.Path, dataset: str, system: str, seed: int) -> pathlib.Path:
  return out / FOLDER / dataset / system / f"{seed}.json"


def make(workdir: pathlib.Path, run: dict[str, Any], latency: dict | None, has_test: bool) -> dict:
  """The record of a finished run.

  Args:
    run: as the module's docstring says.
    latency: what bbqrec_jax/latency.py measured, or None.
    has_test: False for a run that only makes semantic IDs.

  Raises UserError if the run is not finished, or something of it is damaged.
  """
  made = dict(run=run) | record.make_record(workdir, needs_test=has_test)
  if has_test:
    test = compare.load(str(workdir), "test")
    users = hashlib.sha256(json.dumps(np.asarray(test.user_ids).tolist()).encode()).hexdigest()
    made["test_ranks"] = dict(packed=pack_ranks(test.ranks), users=users)
  if latency is not None:
    made["latency"] = latency
  return made


def read(path: pathlib.Path) -> dict:
  """A record that make() made; raises UserError if it is damaged."""
  return run_record.read_json(path, ("run", "data", "config", "provenance", "stages"))


def read_all(out: pathlib.Path, dataset: str, system: str) -> list[dict]:
  """The records of all seeds, in the order of the seeds; raises UserError as read() does."""
  folder = path(out, dataset, system, 0).parent
  return sorted(map(read, folder.glob("*.json")), key=lambda found: found["run"]["seed"])


def outdated(found: dict) -> str:
  """What of the code that made a record has changed since and moves its figures; "" if nothing."""
  is_causal = any(stage.get("encoder") == "causal" for stage in found["stages"].values())
  if is_causal and found["provenance"].get("date", "") < CAUSAL_SEES_LATEST:
    return "by an earlier causal model, whose targets cannot tell which item is the latest"
  return ""


def pack_ranks(ranks: np.ndarray) -> str:
  """Ranks [U], from 1, as text: base64 of zlib of uint8 [U], 0 for a rank beyond 10."""
  seen = np.where(ranks <= _DEPTH, ranks, 0).astype(np.uint8)
  return base64.b64encode(zlib.compress(seen.tobytes(), 9)).decode("ascii")


def unpack_ranks(text: str) -> np.ndarray:
  """[U] int32 of what pack_ranks() made; NOT_FOUND for a rank beyond 10.

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


def quantity(found: dict, name: str) -> float | None:
  """A figure of a record, or None where it has none.

  Args:
    name: a metric of the test split ("recall@5"); "collisions", items less distinct semantic IDs;
      "ms_per_user", milliseconds a user of the test split's evaluation; "latency 50", seconds a
      user at beam 50.
  """
  match name.split():
    case ["collisions"]:
      return found.get("codebook", {}).get("num_surplus_items")
    case ["ms_per_user"]:
      seconds = list(found["stages"].values())[-1].get("test_seconds")
      return None if seconds is None else 1_000 * seconds / found["data"]["table1"]["users"]
    case ["latency", beams]:
      return found.get("latency", {}).get("seconds_per_user", {}).get(beams)
    case _:
      return found.get("test", {}).get(name)

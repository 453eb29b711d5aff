"""The record of a run, results/runs/DATASET/SYSTEM/SEED.json, and the figures that it holds.

A record is what bbqrec_jax.record makes (metrics, the users' ranks, config, command, commit, data
hash, versions, device, seconds), with what a table needs beside it:

  run: dataset, system and seed; `overrides`, what the user of the table changed of the system's own
    settings; `tuned`, what results/tuning chose.
  latency: seconds a user by beam width, where it was measured; bbqrec_jax/latency.py.
"""

import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from bbqrec_jax import record, run_record
from bbqrec_jax.errors import UserError
from bbqrec_jax.tables import systems

FOLDER = "runs"
# Since then a target can tell which item of its history is the latest: models/generator.py.
CAUSAL_SEES_LATEST = "2026-11-26T10:26:22+00:00"
# Since then what these systems are scored by, or what is masked, is another.
FUSED_CHANGED, MASKED_CHANGED = "2026-11-29T12:44:18+00:00", "2026-11-29T17:50:00+00:00"
_EARLIER_RANKERS = dict(
  gru4rec_f=(FUSED_CHANGED, "GRU4Rec_F, scored by ids and features together"),
  sasrec_f=(FUSED_CHANGED, "SASRec_F, scored by ids and features together"),
  bert4rec=(MASKED_CHANGED, "BERT4Rec, half of whose sequences had one item masked"),
  nova_bert=(MASKED_CHANGED, "NOVA-BERT, half of whose sequences had one item masked"),
)


def folder(out: pathlib.Path, dataset: str) -> pathlib.Path:
  """Where the records of a dataset are."""
  return out / FOLDER / dataset


def path(out: pathlib.Path, dataset: str, system: str, seed: int) -> pathlib.Path:
  return folder(out, dataset) / system / f"{seed}.json"


def make(workdir: pathlib.Path, run: dict[str, Any], latency: dict | None, has_test: bool) -> dict:
  """The record of a finished run.

  Args:
    run: as the module's docstring says.
    latency: what bbqrec_jax/latency.py measured, or None.
    has_test: False for a run that only makes semantic IDs.

  Raises UserError if the run is not finished, or something of it is damaged.
  """
  made = dict(run=run) | record.make_record(workdir, needs_test=has_test)
  if latency is not None:
    made["latency"] = latency
  return made


def read(path: pathlib.Path) -> dict:
  """A record that make() made; raises UserError if it is damaged."""
  found = run_record.read_json(path, ("run", "data", "config", "provenance", "stages"))
  stages = found["stages"]
  are_known = isinstance(stages, dict) and all(isinstance(x, dict) for x in stages.values())
  if not are_known or not stages:
    raise UserError(
      f"{path} is damaged, it tells of no stage of its run; remove it, and the command that "
      "wrote it makes it again."
    )
  return found


def read_all(out: pathlib.Path, dataset: str, system: str) -> list[dict]:
  """The records of all seeds, in the order of the seeds.

  Raises UserError as read() does, and where a record is not what its path says.
  """
  found = []
  for file in path(out, dataset, system, 0).parent.glob("*.json"):
    found.append(read(file))
    run = found[-1]["run"]
    if file != path(out, run["dataset"], run["system"], run["seed"]):
      raise UserError(
        f"{file} is the record of {run['dataset']}, {run['system']}, seed {run['seed']}; put it "
        "where that belongs, or remove it."
      )
  return sorted(found, key=lambda found: found["run"]["seed"])


def overrides(out: pathlib.Path, dataset: str, system: systems.System) -> list[str] | None:
  """What the user changed of a system in all its records; None where there are none.

  A variant without records takes what was changed of the system itself, so that what differs is the
  variant alone.

  Raises UserError as read_all() does, and where the records do not agree.
  """
  for name in (system.name, system.config):
    found = [
      (record["run"]["seed"], record["run"]["overrides"]) for record in read_all(out, dataset, name)
    ]
    for seed, changes in found:
      if changes != found[0][1]:
        raise UserError(
          f"{path(out, dataset, name, seed)} is a run with the --overrides {changes}, "
          f"{path(out, dataset, name, found[0][0])} one with {found[0][1]}; remove one of them, or "
          "give another --out and --workdir."
        )
    if found:
      return found[0][1]
  return None


def check_same_data(out: pathlib.Path, found: Iterable[dict]) -> None:
  """Raises UserError if two records, which would stand in one table, are of other sequences.

  So it does for two seeds of one system that read other features. Records of before 29 November
  2026 do not tell of their sequences.
  """
  first = {}  # Sequences -> the first path of a record that has them.
  first_of = {}  # System -> features -> the same.
  for of_run in found:
    sequences, run = of_run["data"].get("sequences"), of_run["run"]
    place = path(out, run["dataset"], run["system"], run["seed"])
    if sequences:
      first.setdefault(sequences, place)
    first_of.setdefault(run["system"], {}).setdefault(features(of_run), place)
  for what, places in (
    ("the users' sequences or the items", first),
    *(("the items' features", of_system) for of_system in first_of.values()),
  ):
    if len(places) > 1:
      raise UserError(
        f"{' and '.join(map(str, list(places.values())[:2]))} are of different data: {what} are "
        "not the same. Remove what is of other data, or give another --out and --workdir."
      )


def features(found: dict) -> str:
  """What a record's run reads beside the ids, in words."""
  counts, files = found["data"]["table1"], found["config"]["data"].get("features") or {}
  read_features = []
  for modality, key in (("text", "texts"), ("image", "images")):
    if counts[key]:
      name = f" ({pathlib.PurePath(files[modality]).name})" if files.get(modality) else ""
      read_features.append(f"{modality} of {counts[key]:,} items{name}")
  return " and ".join(read_features) or "ids alone"


def has_tuned(found: dict, tuned: Sequence[str]) -> bool:
  """Whether a record's run had what was chosen, and nothing else that was tuned.

  A choice that is what the config had anyway fits the records from before it was made.

  Args:
    tuned: "field=value", as tuning.choice() gives it.
  """
  if not set(found["run"]["tuned"]) <= set(tuned):
    return False
  for setting in tuned:
    field = setting.partition("=")[0]
    value = found["config"]
    for part in field.split("."):
      value = value.get(part) if isinstance(value, dict) else None
    if systems.as_text({field: value}) != [setting]:
      return False
  return True


def outdated(found: dict) -> str:
  """What of the code that made a record has changed since and moves its figures; "" if nothing."""
  is_causal = any(stage.get("encoder") == "causal" for stage in found["stages"].values())
  if is_causal and found["provenance"].get("date", "") < CAUSAL_SEES_LATEST:
    return "by an earlier causal model, whose targets cannot tell which item is the latest"
  rqvae = found["config"].get("rqvae") or {}
  if rqvae.get("alignment_weight") and "quantization_reduction" not in rqvae:
    return "by an earlier LETTER, whose quantizer's losses outweighed those that are its own"
  if rqvae.get("alignment_weight") and "sinkhorn_temperature" not in rqvae:
    return "by an earlier LETTER, whose last level was not balanced and no collision repaired"
  model_name = (found["config"].get("ranker") or {}).get("model_name")
  changed, earlier = _EARLIER_RANKERS.get(model_name, ("", ""))
  return f"by an earlier {earlier}" if found["provenance"].get("date", "") < changed else ""


def quantity(found: dict, name: str) -> float | None:
  """A figure of a record, or None where it has none.

  Args:
    name: a metric of the test split ("recall@5"), or "unseen recall@5", where the items of each
      user's history are no candidates; "collisions", items less distinct semantic IDs,
      behind a repair where there is one; "ms_per_user", milliseconds a user of the test split's
      evaluation; "latency 50", seconds a user at beam 50.
  """
  match name.split():
    case ["collisions"]:
      codebook = found.get("codebook", {})
      return codebook.get("num_surplus_repaired", codebook.get("num_surplus_items"))
    case ["ms_per_user"]:
      seconds = list(found["stages"].values())[-1].get("test_seconds")
      return None if seconds is None else 1_000 * seconds / found["data"]["table1"]["users"]
    case ["latency", beams]:
      return found.get("latency", {}).get("seconds_per_user", {}).get(beams)
    case ["unseen", metric]:
      return found.get("test_unseen", {}).get(metric)
    case _:
      return found.get("test", {}).get(name)

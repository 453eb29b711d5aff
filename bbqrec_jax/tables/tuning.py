"""What launch/sweep.py has chosen for a system: OUT/tuning/DATASET/SYSTEM.json."""

import pathlib

from bbqrec_jax import run_record
from bbqrec_jax.errors import UserError
from bbqrec_jax.tables import systems

FOLDER = "tuning"


def path(out: pathlib.Path, dataset: str, config: str) -> pathlib.Path:
  return out / FOLDER / dataset / f"{config}.json"


def choice(out: pathlib.Path, dataset: str, system: systems.System) -> tuple[str, ...]:
  """The chosen "field=value" of the system's config; () where it has not been tuned.

  A variant of a system takes what was chosen for the system itself, so that what differs is the
  variant alone.

  Raises UserError if the file is damaged.
  """
  tuned = path(out, dataset, system.config)
  if not tuned.exists():
    return ()
  chosen = run_record.read_json(tuned, ("choice",))["choice"]
  if chosen is None:  # Some of its trials are still to be made.
    return ()
  if not isinstance(chosen, dict):
    raise UserError(f"{tuned} is damaged, its choice is no object; make it again.")
  return tuple(systems.as_text(chosen))

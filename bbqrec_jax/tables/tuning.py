"""What launch/sweep.py tries and has chosen for a system: OUT/tuning/DATASET/SYSTEM.json."""

import pathlib
from collections.abc import Sequence

from bbqrec_jax import run_record
from bbqrec_jax.errors import UserError
from bbqrec_jax.tables import systems

FOLDER = "tuning"


def path(out: pathlib.Path, dataset: str, config: str) -> pathlib.Path:
  return out / FOLDER / dataset / f"{config}.json"


def trials_of(system: systems.System) -> list[dict]:
  """The overrides of each trial; raises UserError where the config says nothing of them."""
  module = systems.load_module(system.config)
  if not hasattr(module, "sweep"):
    raise UserError(f"configs/{system.config}.py has no sweep().")
  trials = []
  module.sweep(lambda **overrides: trials.append(overrides))
  return trials


def num_made(out: pathlib.Path, dataset: str, system: systems.System) -> int:
  """How many of a system's trials have been made; raises UserError if the file is damaged."""
  tuned = path(out, dataset, system.config)
  if not tuned.exists():
    return 0
  trials = run_record.read_json(tuned, ("trials",))["trials"]
  try:
    return sum(trial["valid"] is not None for trial in trials)
  except (KeyError, TypeError) as error:
    raise UserError(f"{tuned} is damaged, its trials cannot be read; make it again.") from error


def choice(
  out: pathlib.Path, dataset: str, system: systems.System, changes: Sequence[str] = ()
) -> tuple[str, ...]:
  """The chosen "field=value" of the system's config; () where it has not been tuned.

  A variant of a system takes what was chosen for the system itself, so that what differs is the
  variant alone; but for what was chosen for a stage that it does not run.

  Args:
    changes: switches and "field=value" that come before what was chosen of the same fields.

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
  changed = {change.partition("=")[0] for change in changes}
  left_out = systems.stages_left_out(system)
  kept = {
    field: value
    for field, value in chosen.items()
    if field not in changed and field.partition(".")[0] not in left_out
  }
  return tuple(systems.as_text(kept))

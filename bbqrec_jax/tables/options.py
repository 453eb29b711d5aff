"""Options of the commands that start many runs: bbqrec_jax/table.py and launch/sweep.py."""

import argparse
import os
import pathlib

from bbqrec_jax.errors import UserError
from bbqrec_jax.paths import folder

STAGES = "stage_cache"  # In their --workdir: what runs share.


def add(parser: argparse.ArgumentParser) -> None:
  """--out, --root, --overrides and --jobs."""
  parser.add_argument(
    "--out", type=folder, default=pathlib.Path("results"), help="where the records go"
  )
  parser.add_argument(
    "--root",
    type=folder,
    help="folder with NAME/NAME.inter, NAME/NAME.item, NAME/text*.npy, NAME/image*.npy (default: "
    "the configs' own data of this name)",
  )
  parser.add_argument(
    "--overrides",
    nargs="*",
    metavar="CHANGE",
    help="FIELD=VALUE of a config, or a switch, for every system whose config knows it, in place "
    "of what was tuned; with SYSTEM: in front for that system alone; the records tell of them "
    "(default: those of the records that are there, so that what is added agrees with them)",
  )
  parser.add_argument(
    "--jobs", type=at_least_one, help="runs at the same time (default: one for each GPU, or one)"
  )


def make_folders(*folders: pathlib.Path) -> None:
  """Makes them, so that no run is made in vain; raises UserError if one cannot be written to."""
  for path in folders:
    try:
      path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
      raise UserError(f"{path} cannot be made ({error.strerror or error}).") from error
    if not os.access(path, os.W_OK):
      raise UserError(f"{path} cannot be written to; give another folder.")


def at_least_one(text: str) -> int:
  """A whole number from 1."""
  try:
    number = int(text)
  except ValueError:
    number = 0
  if number < 1:
    raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1")
  return number


def names(text: str) -> tuple[str, ...]:
  """What stands between commas, each once."""
  return tuple(dict.fromkeys(filter(None, (name.strip() for name in text.split(",")))))

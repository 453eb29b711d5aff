#!/usr/bin/env python
"""Tunes systems within one budget: the same number of trials each, chosen by validation alone.

python launch/sweep.py --dataset=beauty --systems=sasrec,gru4rec --workdir=runs/tuning
python launch/sweep.py --dataset=beauty --root=DIR --workdir=runs/tuning --overrides cpu

The trials of a system are what its config's sweep(add) adds: overrides, each tried with seed 0. A
trial is `python -m bbqrec_jax.main` in WORKDIR/DATASET/SYSTEM/TRIAL, and trials that begin alike
share their first stages (WORKDIR/stage_cache). Of its results only the validation split's are
read. OUT/tuning/DATASET/SYSTEM.json holds the budget, every trial and the choice, which
bbqrec_jax.table then uses. The same command goes on where it was stopped, and without --overrides
with those of the trials that are there.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from bbqrec_jax import run_record
from bbqrec_jax.errors import UserError
from bbqrec_jax.tables import options, runs, systems, tuning
from bbqrec_jax.tables.systems import System

MONITOR = "ndcg@10"
_SYSTEMS = (*systems.BASELINES, systems.BBQREC)


def main(argv: Sequence[str] | None = None) -> int:
  """The command; returns its exit status: 1 also where a trial has failed."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--dataset", required=True)
  parser.add_argument("--systems", default="all", help="names with commas between them")
  parser.add_argument("--workdir", type=options.folder, required=True, help="where trials are kept")
  options.add(parser)
  args = parser.parse_args(argv)
  return runs.exit_status(lambda: _sweep(args))


def _sweep(args: argparse.Namespace) -> list[runs.Outcome]:
  """Runs the trials that are missing; returns those that failed."""
  known = [system.name for system in _SYSTEMS]
  names = known if args.systems == "all" else options.names(args.systems)
  if not names or not set(names) <= set(known):
    raise UserError(f"--systems={args.systems}: they are {', '.join(known)}, or all.")
  chosen = [system for system in _SYSTEMS if system.name in names]
  data = runs.data_of(args.dataset, args.root)
  runs.check_changes(args.overrides or (), data[0], chosen)
  trials = {system.name: tuning.trials_of(system) for system in chosen}
  check_budget(trials)
  for system in chosen:
    check_apart(trials[system.name], runs.applicable(system, data[0], args.overrides or ()))
  states, jobs, places, done = {}, [], {}, 0
  for system in chosen:
    state = states[system.name] = _state(args, system, data, trials[system.name])
    for n, trial in enumerate(trials[system.name]):
      workdir = args.workdir / args.dataset / system.name / str(n)
      if state["trials"][n]["valid"] is not None:
        done += 1
        continue
      name = f"{args.dataset} {system.name} trial {n}: {' '.join(systems.as_text(trial))}"
      changes = state["budget"]["overrides"]
      command = runs.main_command(
        system, data, systems.as_text(trial), changes, 0, workdir, args.workdir / options.STAGES
      )
      jobs.append(runs.Job(name, (command,), workdir.with_name(f"{n}.log")))
      places[name] = (system, n, workdir)
  total = done + len(jobs)
  if done:
    print(f"{done} of {total} trials were made before.", flush=True)

  def tell(outcome: runs.Outcome) -> str:
    system, n, workdir = places[outcome.job.name]
    state = states[system.name]
    path = tuning.path(args.out, args.dataset, system.config)
    state["trials"][n] |= check_same_data(validation_of(workdir), state, path)
    choose(state)
    path.parent.mkdir(parents=True, exist_ok=True)
    run_record.write_output(path, state)
    return f"valid {MONITOR} {state['trials'][n]['valid'][MONITOR]:.4f}"

  if jobs:
    options.make_folders(args.workdir, args.out)
  failed = runs.show(runs.execute(jobs, args.jobs), total, done + 1, tell)
  for name, state in states.items():
    if state["choice"] is not None:
      print(f"{name}: {' '.join(systems.as_text(state['choice'])) or 'nothing to choose'}")
  return failed


def check_budget(trials: dict[str, list[dict]]) -> None:
  """Raises UserError if systems get different numbers of trials; none is for what has no choice."""
  counts = {name: len(of_system) for name, of_system in trials.items() if of_system}
  if len(set(counts.values())) > 1:
    said = ", ".join(f"{name} {count}" for name, count in counts.items())
    raise UserError(f"Each system must have the same number of trials; they have {said}.")


def check_apart(trials: list[dict], changes: Sequence[str]) -> None:
  """Raises UserError if a change would take the place of what trials try."""
  for change in changes:
    field = change.partition("=")[0]
    if any(field in trial for trial in trials):
      raise UserError(f"--overrides: {change!r} sets what the trials try; leave it out.")


def _state(args, system: System, data: Sequence[str], trials: list[dict]) -> dict:
  """The content of the tuning's file as far as it is made.

  Raises UserError if the file is of another budget.
  """
  budget = dict(
    num_trials=len(trials),
    seed=0,
    monitor=f"valid {MONITOR}",
    overrides=runs.applicable(system, data[0], args.overrides or ()),
  )
  path = tuning.path(args.out, args.dataset, system.config)
  blank = [dict(overrides=trial, valid=None) for trial in trials]
  if not path.exists():
    return dict(dataset=args.dataset, system=system.name, budget=budget, choice=None, trials=blank)
  state = run_record.read_json(path, ("budget", "choice", "trials"))
  if args.overrides is None:  # The trials go on as they began.
    budget["overrides"] = state["budget"]["overrides"]
  there = state["budget"] | dict(trials=[trial["overrides"] for trial in state["trials"]])
  for key, ours in run_record.to_jsonable(budget | dict(trials=trials)).items():
    if there.get(key) != ours:
      raise UserError(
        f"{path} is of another budget: {key} is {there.get(key)} there and {ours} here. Give "
        "another --out and --workdir, or remove it to tune again."
      )
  return state


def validation_of(workdir: pathlib.Path) -> dict:
  """What a trial reached on validation, and what it cost. The test split's results stay unread."""
  keys = ("valid", "stages", "provenance", "data")
  results = run_record.read_json(workdir / "results.json", keys)
  return dict(
    valid=results["valid"],
    sequences=results["data"].get("sequences"),
    epochs={stage: record["epochs"] for stage, record in results["stages"].items()},
    seconds={stage: record["seconds"] for stage, record in results["stages"].items()},
    provenance=results["provenance"],
  )


def check_same_data(trial: dict, state: dict, path: pathlib.Path) -> dict:
  """The trial; raises UserError if one of the state's trials is of other sequences."""
  for other in state["trials"]:
    theirs = other.get("sequences")
    if None not in (theirs, trial["sequences"]) and theirs != trial["sequences"]:
      raise UserError(
        f"{path} holds trials on other data; give another --out and --workdir, or remove it to "
        "tune again."
      )
  return trial


def choose(state: dict) -> None:
  """Sets the choice once every trial is made: the best by validation, the earlier of equals."""
  values = [trial["valid"] and trial["valid"][MONITOR] for trial in state["trials"]]
  if None not in values:
    state["choice"] = state["trials"][values.index(max(values))]["overrides"]


if __name__ == "__main__":
  sys.exit(main())

"""Runs what a table of the paper lacks, and writes the table: Tables 2 to 6, Figures 3 and 4.

python -m bbqrec_jax.table --datasets=beauty,sports --systems=all --seeds=3 --workdir=runs/table
python -m bbqrec_jax.table --experiment=table3 --datasets=beauty --workdir=runs/table
python -m bbqrec_jax.table --experiment=table2_unseen --datasets=beauty --workdir=runs/table
python -m bbqrec_jax.table --datasets=beauty --root=DIR --workdir=runs/table --overrides cpu
python -m bbqrec_jax.table --render_only --datasets=beauty,sports
python -m bbqrec_jax.table --list

A run is `python -m bbqrec_jax.main` in WORKDIR/DATASET/SYSTEM/SEED; its record, which holds all
that the tables need, is OUT/runs/DATASET/SYSTEM/SEED.json. A run with a record is not run again;
one that was stopped goes on; one that fails is named, and the rest goes on. Runs that begin alike
share their first stages (WORKDIR/stage_cache). What launch/sweep.py has chosen for a system
(OUT/tuning/DATASET/SYSTEM.json) is used; without --overrides a system goes on with those of its
records. The table is OUT/EXPERIMENT.md, .csv and .tex, and .png with the extra [report], with what
is there; it names what is missing. In table2_unseen what a user has had is no candidate: records of
before that was evaluated are made again, and kept as SEED.json.before.
"""

import argparse
import os
import pathlib
import shutil
import sys
from collections.abc import Sequence

from bbqrec_jax import run_record
from bbqrec_jax.errors import UserError
from bbqrec_jax.tables import figures, grids, options, records, render, runs, systems, tuning
from bbqrec_jax.tables.experiments import EXPERIMENTS, LATENCY_BEAMS, Experiment
from bbqrec_jax.tables.systems import SYSTEMS, System


def main(argv: Sequence[str] | None = None) -> int:
  """The command; returns its exit status: 1 also where a run has failed."""
  args = _parse(argv)
  return runs.exit_status(lambda: _run(args))


def _run(args: argparse.Namespace) -> list[runs.Outcome]:
  """Does what the arguments ask for; returns what failed."""
  if args.list:
    print(systems.listing())
    return []
  experiment = EXPERIMENTS[args.experiment]
  datasets = experiment.datasets if args.datasets is None else options.names(args.datasets)
  if not datasets:
    raise UserError(f"--datasets={args.datasets} names none; give names with commas.")
  chosen = _chosen(args.systems, experiment)
  failed = []
  if not args.render_only:
    if args.workdir is None:
      raise UserError("--workdir is missing; give a folder for the runs.")
    failed = _run_missing(args, experiment, datasets, chosen)
  else:
    _check_recorded(args, datasets)
  _write(experiment, datasets, chosen, args.seeds, args.out)
  return failed


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    prog="python -m bbqrec_jax.table",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--list", action="store_true", help="every system: config and model files")
  parser.add_argument("--experiment", choices=EXPERIMENTS, default="table2")
  parser.add_argument("--datasets", help="names with commas (default: the paper's)")
  parser.add_argument(
    "--systems",
    default="all",
    help="names with commas, of --list; the table, too, is of these alone",
  )
  parser.add_argument(
    "--seeds", type=options.at_least_one, default=3, help="0, 1, ... (default: 3 of them)"
  )
  parser.add_argument("--workdir", type=options.folder, help="where the runs are kept")
  options.add(parser)
  parser.add_argument("--render_only", action="store_true", help="from the records that are there")
  return parser.parse_args(argv)


def _chosen(text: str, experiment: Experiment) -> tuple[str, ...]:
  """The experiment's systems that --systems names, in the experiment's order."""
  names = experiment.systems if text == "all" else options.names(text)
  unknown = [name for name in names if name not in experiment.systems]
  if unknown or not names:
    raise UserError(
      f"--systems={text}: {experiment.name} is of {', '.join(experiment.systems)}, or all."
    )
  return tuple(name for name in experiment.systems if name in names)


def _check_recorded(args: argparse.Namespace, datasets: Sequence[str]) -> None:
  """Raises UserError where there is nothing to render: a table that is there would be lost."""
  absent = [name for name in datasets if not records.folder(args.out, name).is_dir()]
  if absent and (args.datasets is not None or len(absent) == len(datasets)):
    raise UserError(
      f"{records.folder(args.out, absent[0])} does not exist: there are no records to render. Give "
      "--datasets of which there are some, or the --out that they are in."
    )


def _run_missing(
  args: argparse.Namespace,
  experiment: Experiment,
  datasets: Sequence[str],
  chosen: Sequence[str],
) -> list[runs.Outcome]:
  """Runs what has no record yet; returns what failed."""
  wanted = [
    (dataset, SYSTEMS[name], seed)
    for dataset in datasets
    for seed in range(args.seeds)  # First one of each system, so that a table is soon there.
    for name in chosen
  ]
  of_data = {dataset: runs.data_of(dataset, args.root) for dataset in datasets}
  for dataset in datasets:
    systems_of = [SYSTEMS[name] for name in chosen]
    runs.check_changes(args.overrides or (), of_data[dataset][0], systems_of)
  changes = {
    (dataset, name): _changes(args, dataset, of_data[dataset][0], SYSTEMS[name])
    for dataset in datasets
    for name in chosen
  }
  jobs, facts, done = [], {}, 0
  for dataset, system, seed in wanted:
    of_system = changes[dataset, system.name]
    job, run = _job(args, experiment, dataset, of_data[dataset], system, of_system, seed)
    path = records.path(args.out, dataset, system.name, seed)
    if _is_recorded(path, run, experiment):
      done += 1
      print(f"[{done}/{len(wanted)}] {job.name}: recorded before", flush=True)
    else:
      jobs.append(job)
      facts[job.name] = (system, run, path)

  def tell(outcome: runs.Outcome) -> str:
    system, run, path = facts[outcome.job.name]
    workdir = _workdir(args, run["dataset"], system, run["seed"])
    latency = workdir / "latency.json"
    record = records.make(
      workdir, run, run_record.read_json(latency) if latency.exists() else None, system.has_test
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():  # It lacked what the table needs, and may have what another one does.
      shutil.copy2(path, path.with_name(f"{path.name}.before"))
    run_record.write_output(path, record)
    return _summary(record)

  if jobs:
    options.make_folders(args.workdir, args.out)
  return runs.show(runs.execute(jobs, args.jobs), len(wanted), done + 1, tell)


def _workdir(args: argparse.Namespace, dataset: str, system: System, seed: int) -> pathlib.Path:
  return args.workdir / dataset / system.name / str(seed)


def _changes(args: argparse.Namespace, dataset: str, data: str, system: System) -> list[str]:
  """The switches and "field=value" that the user gives a system, or that its records have."""
  if args.overrides is None:
    recorded = records.overrides(args.out, dataset, system)
    if recorded:
      runs.check_changes(recorded, data, [system])  # A variant's own settings are not to be lost.
      print(f"{dataset} {system.name}: --overrides {' '.join(recorded)}, as recorded", flush=True)
    return recorded or []
  try:
    return runs.applicable(system, data, args.overrides)
  except UserError:  # There is no such config; the run will say so.
    return []


def _job(
  args: argparse.Namespace,
  experiment: Experiment,
  dataset: str,
  data: Sequence[str],
  system: System,
  changes: Sequence[str],
  seed: int,
) -> tuple[runs.Job, dict]:
  """The run, and what its record says under `run`."""
  tuned = list(tuning.choice(args.out, dataset, system, changes))
  workdir = _workdir(args, dataset, system, seed)
  stage_cache = args.workdir / options.STAGES
  commands = [runs.main_command(system, data, tuned, changes, seed, workdir, stage_cache)]
  if experiment.needs == "latency":
    beams = map(str, LATENCY_BEAMS)
    out = f"--out={workdir / 'latency.json'}"
    commands.append((*runs.PYTHON, "bbqrec_jax.latency", str(workdir), "--num_beams", *beams, out))
  name = f"{dataset} {system.name} seed {seed}"
  log = workdir.with_name(f"{seed}.log")
  run = dict(dataset=dataset, system=system.name, seed=seed, overrides=changes, tuned=tuned)
  return runs.Job(name, tuple(commands), log), run


def _is_recorded(path: pathlib.Path, run: dict, experiment: Experiment) -> bool:
  """Whether the run has its record; raises UserError if that is of other settings."""
  if not path.exists():
    return False
  record = records.read(path)
  for key, what, fits in (
    ("overrides", "--overrides", record["run"]["overrides"] == run["overrides"]),
    ("tuned", "tuned settings", records.has_tuned(record, run["tuned"])),
  ):
    if not fits:
      raise UserError(
        f"{path} is a run with the {what} {record['run'][key]}, not {run[key]}; remove it, or give "
        "another --out and --workdir."
      )
  return not experiment.needs or experiment.needs in record


def _summary(record: dict) -> str:
  if "test" in record:
    names = ("recall@10", "ndcg@10")
    return "test " + ", ".join(f"{name} {record['test'][name]:.4f}" for name in names)
  return f"{records.quantity(record, 'collisions')} collisions"


def _write(
  experiment: Experiment,
  datasets: Sequence[str],
  chosen: Sequence[str],
  num_seeds: int,
  out: pathlib.Path,
) -> None:
  """Writes and prints the table; draws the figure."""
  made = [grids.make(experiment, dataset, chosen, num_seeds, out) for dataset in datasets]
  texts = dict(
    md=render.markdown(experiment, made),
    csv=render.csv_text(made),
    tex=render.latex(experiment, made),
  )
  written = []
  try:
    out.mkdir(parents=True, exist_ok=True)
    for kind, text in texts.items():
      written.append(out / f"{experiment.name}.{kind}")
      run_record.write_text(written[-1], text)
  except OSError as error:
    raise UserError(f"{out} cannot be written to ({error.strerror or error}).") from error
  print(f"\n{texts['md']}")
  written.append(figures.draw(experiment, made, out))
  print("Written: " + ", ".join(os.fspath(path) for path in written if path))


if __name__ == "__main__":
  sys.exit(main())

"""Tables as data: records in, cells out, and what is missing."""

import itertools
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from bbqrec_jax.tables import records, statistics, systems, tuning
from bbqrec_jax.tables.experiments import NEEDS, Column, Experiment
from bbqrec_jax.tables.statistics import Test, Value

NOT_RUN = "not run"


class Cell(NamedTuple):
  value: Value | None  # None: no record has it.
  absence: str  # What stands there if none has: a word, or "" for what a system cannot have.
  paper: float | None
  place: int  # 1 and 2: the best and the second best of its column; 0: neither, or not ranked.


class Row(NamedTuple):
  label: str
  cells: tuple[Cell, ...]
  tests: dict[int, Test]  # By the number of the column.
  remarks: tuple[str, ...]  # What was changed or tuned of its settings; what is of earlier code.


class Grid(NamedTuple):
  """One experiment on one dataset."""

  dataset: str
  columns: tuple[Column, ...]
  rows: tuple[Row, ...]
  data: tuple[str, ...]  # What the runs learnt from, in words.
  tuning: tuple[str, ...]  # How many trials the systems have had, in words.
  missing: tuple[str, ...]  # Runs that have no record, in words.


def make(
  experiment: Experiment,
  dataset: str,
  chosen: Sequence[str],
  num_seeds: int,
  out: pathlib.Path,
) -> Grid:
  """Reads the records of an experiment on one dataset.

  Args:
    chosen: names of the systems; rows of others are left out.
    num_seeds: how many there should be: what is missing of the first so many is named, and what is
      there beyond them counts too.
    out: the folder that holds `runs` and `tuning`.

  Raises UserError if a file of them is damaged, or they are not all of the same data.
  """
  recorded = {name: records.read_all(out, dataset, name) for name in experiment.systems}
  records.check_same_data(out, itertools.chain.from_iterable(recorded.values()))
  found = {
    name: [record for record in of_seeds if not experiment.needs or experiment.needs in record]
    for name, of_seeds in recorded.items()
  }
  columns = range(len(experiment.columns))
  labels = [
    label
    for label in experiment.rows
    if any(experiment.system_of(label, n) in chosen for n in columns)
  ]
  values = {
    label: [_value(experiment, found, label, n) for n in columns] for label in labels
  }  # label -> a Value or None for each column.
  places = [_places(values, n, experiment.columns[n].lower_is_better) for n in columns]
  rows = [
    Row(
      label,
      tuple(
        Cell(
          values[label][n],
          _absence(experiment, recorded, found, label, n),
          experiment.paper(dataset, label, n),
          places[n].get(label, 0),
        )
        for n in columns
      ),
      _tests(experiment, found, values) if label == experiment.tested else {},
      _remarks([found[experiment.system_of(label, n)] for n in columns], out),
    )
    for label in labels
  ]
  names = [name for name in experiment.systems if name in chosen]
  of_labels = {
    label: [record for n in columns for record in found[experiment.system_of(label, n)]]
    for label in labels
  }
  return Grid(
    dataset,
    experiment.columns,
    tuple(rows),
    tuple(_data(of_labels)),
    tuple(_tuning(experiment, names, dataset, out)),
    tuple(_missing(names, recorded, found, num_seeds, experiment.needs)),
  )


def _value(experiment: Experiment, found, label: str, column: int) -> Value | None:
  quantity = experiment.columns[column].quantity
  of_seeds = found[experiment.system_of(label, column)]
  return statistics.over_seeds([records.quantity(record, quantity) for record in of_seeds])


def _absence(experiment: Experiment, recorded, found, label: str, column: int) -> str:
  system = experiment.system_of(label, column)
  if found[system]:
    return ""  # Such as SASRec's collisions.
  return "missing" if recorded[system] else NOT_RUN


def _places(values, column: int, lower_is_better: bool | None) -> dict[str, int]:
  """label -> 1 or 2. Labels of equal means share a place."""
  there = {label: row[column].mean for label, row in values.items() if row[column] is not None}
  if lower_is_better is None or len(there) < 2:
    return {}
  means = sorted(set(there.values()), reverse=not lower_is_better)[:2]
  return {label: means.index(mean) + 1 for label, mean in there.items() if mean in means}


def _tests(experiment: Experiment, found, values) -> dict[int, Test]:
  """The tested row against the best of the others, for each metric of the test split."""
  tests = {}
  for n, column in enumerate(experiment.columns):
    others = {
      label: row[n].mean
      for label, row in values.items()
      if label != experiment.tested and row[n] is not None
    }
    if "@" not in column.quantity or not others or values[experiment.tested][n] is None:
      continue
    best = max(others, key=others.get)
    ours, theirs = (found[experiment.system_of(label, n)] for label in (experiment.tested, best))
    tests[n] = statistics.test(ours, theirs, column.quantity, best)
  return tests


def _remarks(of_columns: Sequence[Sequence[dict]], out: pathlib.Path) -> tuple[str, ...]:
  """What the user of the table changed, what tuning chose or did not, what is of earlier code.

  What is not said of all runs of the row names the seeds that it is said of.
  """
  runs_of = {}  # Remark -> the (system, seed) that it is said of.
  everything = set()
  for record in itertools.chain.from_iterable(of_columns):
    run = record["run"]
    overrides, tuned = (" ".join(run[key]) for key in ("overrides", "tuned"))
    everything.add((run["system"], run["seed"]))
    for remark in (
      f"`{overrides}`" if overrides else "",
      f"`tuned: {tuned}`" if tuned else "",
      _not_chosen(record, out),
      records.outdated(record),
    ):
      if remark:
        runs_of.setdefault(remark, set()).add((run["system"], run["seed"]))
  return tuple(
    remark if said_of == everything else f"seed {_seeds(said_of)}: {remark}"
    for remark, said_of in runs_of.items()
  )


def _not_chosen(record: dict, out: pathlib.Path) -> str:
  """What tuning chose, where the record's run went without it; else ""."""
  run = record["run"]
  chosen = tuning.choice(out, run["dataset"], systems.SYSTEMS[run["system"]], run["overrides"])
  if not chosen or records.has_tuned(record, chosen):
    return ""
  return f"without what tuning chose, `{' '.join(chosen)}`"


def _seeds(said_of: set[tuple[str, int]]) -> str:
  return ", ".join(map(str, sorted({seed for _, seed in said_of})))


def _data(of_labels: dict[str, list[dict]]) -> Iterator[str]:
  """The data in words, once; and their features, with the rows that read them."""
  lines = {}  # What is said -> the labels that it is said of.
  for label, of_label in of_labels.items():
    for record in of_label:
      counts = record["data"]["table1"]
      size = (
        f"{counts['users']:,} users, {counts['items']:,} items, "
        f"{counts['interactions']:,} interactions"
      )
      for line in (size, records.features(record)):
        lines.setdefault(line, {})[label] = None
  there = sum(bool(of_label) for of_label in of_labels.values())
  for line, labels in lines.items():
    yield line if len(labels) == there else f"{line}: {', '.join(labels)}"


def _tuning(experiment: Experiment, names: Sequence[str], dataset: str, out) -> Iterator[str]:
  """The trials of each system that has something to choose, where the table is of metrics."""
  if not any("@" in column.quantity for column in experiment.columns):
    return
  labels = {}  # (trials made, trials in all) -> systems; a variant has those of its system.
  for config in dict.fromkeys(systems.SYSTEMS[name].config for name in names):
    system = systems.SYSTEMS[config]
    count = (tuning.num_made(out, dataset, system), len(tuning.trials_of(system)))
    labels.setdefault(count, []).append(system.label)
  for (made, budget), of_count in sorted(labels.items(), reverse=True):
    if budget:
      yield f"{made} of {budget} trials: {', '.join(of_count)}"


def _missing(names: Sequence[str], recorded, found, num_seeds: int, needs: str) -> list[str]:
  """What the first seeds lack: a run, or what `needs` asks of it, without which it is not found."""
  lines = []
  for name in names:
    seeds, complete = ({record["run"]["seed"] for record in of[name]} for of in (recorded, found))
    absent = [seed for seed in range(num_seeds) if seed not in seeds]
    partial = [seed for seed in range(num_seeds) if seed in seeds - complete]
    lacks = []
    if absent:
      lacks.append(f"no run of seed {', '.join(map(str, absent))}" if seeds else "no run")
    if partial:
      lacks.append(NEEDS[needs].format(", ".join(map(str, partial))))
    if lacks:
      lines.append(f"{systems.SYSTEMS[name].label} (`{name}`): {'; '.join(lacks)}")
  return lines

"""Experiments as plots, drawn from records; needs the extra [report]."""

import math
import pathlib
from collections.abc import Iterable, Sequence

from bbqrec_jax.errors import UserError
from bbqrec_jax.tables import records, statistics, systems
from bbqrec_jax.tables.experiments import Column, Experiment
from bbqrec_jax.tables.grids import Grid
from bbqrec_jax.tables.statistics import Value

_METRICS = ("recall@10", "ndcg@10")


def draw(experiment: Experiment, grids: Sequence[Grid], out: pathlib.Path) -> pathlib.Path | None:
  """Writes out/<experiment>.png, for experiments that have one; None if nothing of it has run.

  Without matplotlib a table has none either, and a figure raises UserError.
  """
  if experiment.name == "figure3":
    draw_fn = _draw_hyperparameters
  elif set(_METRICS) <= {_metric(column) for column in experiment.columns}:
    draw_fn = _draw_systems
  else:
    return None
  if not any(cell.value for grid in grids for row in grid.rows for cell in row.cells):
    return None
  try:
    import matplotlib  # An extra, for plots alone.
  except ModuleNotFoundError as error:
    if not experiment.name.startswith("figure"):
      return None
    raise UserError("figures need matplotlib; install the extra [report].") from error
  matplotlib.use("agg")
  import matplotlib.pyplot as plt

  fig = draw_fn(plt, grids, out)
  path = out / f"{experiment.name}.png"
  fig.savefig(path, dpi=130)
  plt.close(fig)
  return path


def _draw_hyperparameters(plt, grids: Sequence[Grid], out: pathlib.Path):
  """Figure 3: a row for each dataset, a panel for each of L, N, D and K."""
  letters = systems.HYPERPARAMETERS
  fig, axes = plt.subplots(
    len(grids), len(letters), figsize=(3.2 * len(letters), 2.8 * len(grids)), squeeze=False,
    layout="constrained",
  )  # fmt: skip
  for panels, grid in zip(axes, grids):
    for axis, (letter, (_, choices)) in zip(panels, letters.items()):
      for metric in _METRICS:
        points = []  # (place on the axis, Value)
        for place, choice in enumerate(choices):
          found = records.read_all(out, grid.dataset, systems.variant_name(letter, choice))
          value = statistics.over_seeds([records.quantity(record, metric) for record in found])
          points += [] if value is None else [(place, value)]
        axis.errorbar(
          [place for place, _ in points],
          [value.mean for _, value in points],
          yerr=_deviations(value for _, value in points),
          marker="o", capsize=3, label=metric,
        )  # fmt: skip
      axis.set_xticks(range(len(choices)), choices)
      axis.set_xlabel(letter)
      axis.grid(alpha=0.3)
    panels[0].set_ylabel(grid.dataset)
    panels[0].legend()
  return fig


def _draw_systems(plt, grids: Sequence[Grid], out: pathlib.Path):
  """A panel for each dataset and metric: a bar for each system, a mark for the paper's number."""
  del out
  num_rows = max(len(grid.rows) for grid in grids)
  fig, axes = plt.subplots(
    len(grids), len(_METRICS), figsize=(4.6 * len(_METRICS), (1.2 + 0.24 * num_rows) * len(grids)),
    squeeze=False, layout="constrained",
  )  # fmt: skip
  for panels, grid in zip(axes, grids):
    labels = [row.label + (" *" if row.remarks else "") for row in grid.rows]
    for axis, metric in zip(panels, _METRICS):
      column = [_metric(column) for column in grid.columns].index(metric)
      cells = [row.cells[column] for row in grid.rows]
      bars = [(place, cell.value) for place, cell in enumerate(cells) if cell.value is not None]
      marks = [(place, cell.paper) for place, cell in enumerate(cells) if cell.paper is not None]
      axis.barh(
        [place for place, _ in bars],
        [value.mean for _, value in bars],
        xerr=_deviations(value for _, value in bars),
        capsize=3, color="tab:blue", label="here",
      )  # fmt: skip
      if marks:
        axis.plot(
          [number for _, number in marks], [place for place, _ in marks],
          "D", color="black", markersize=4, label="the paper's",
        )  # fmt: skip
      axis.set_yticks(range(len(labels)), labels)
      axis.set_ylim(len(labels) - 0.4, -0.6)  # The first row is on top, as in the table.
      axis.set_title(f"{grid.dataset}: {metric}")
      axis.grid(axis="x", alpha=0.3)
      axis.set_axisbelow(True)
    panels[0].legend(fontsize="small")
  return fig


def _metric(column: Column) -> str:
  """The metric of a column, whatever the candidates are."""
  return column.quantity.removeprefix("unseen ")


def _deviations(values: Iterable[Value]) -> list[float]:
  """Standard deviations; NaN, which is not drawn, where there is one seed."""
  return [math.nan if value.std is None else value.std for value in values]

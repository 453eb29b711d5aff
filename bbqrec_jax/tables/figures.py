"""Figures 3 and 4, drawn from records; needs the extra [report]."""

import pathlib
from collections.abc import Sequence

from bbqrec_jax.errors import UserError
from bbqrec_jax.tables import records, statistics, systems
from bbqrec_jax.tables.experiments import Experiment
from bbqrec_jax.tables.grids import Grid

_METRICS = ("recall@10", "ndcg@10")


def draw(experiment: Experiment, grids: Sequence[Grid], out: pathlib.Path) -> pathlib.Path | None:
  """Writes out/<experiment>.png; None if the experiment is no figure, or nothing of it has run.

  Raises UserError without matplotlib.
  """
  draw_fn = {"figure3": _draw_hyperparameters, "figure4": _draw_signals}.get(experiment.name)
  if draw_fn is None or not any(
    cell.value for grid in grids for row in grid.rows for cell in row.cells
  ):
    return None
  try:
    import matplotlib  # An extra, for figures alone.
  except ModuleNotFoundError as error:
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
          yerr=[value.std or 0.0 for _, value in points],
          marker="o", capsize=3, label=metric,
        )  # fmt: skip
      axis.set_xticks(range(len(choices)), choices)
      axis.set_xlabel(letter)
      axis.grid(alpha=0.3)
    panels[0].set_ylabel(grid.dataset)
    panels[0].legend()
  return fig


def _draw_signals(plt, grids: Sequence[Grid], out: pathlib.Path):
  """Figure 4: a panel for each dataset and metric, a bar for each system."""
  del out
  fig, axes = plt.subplots(
    len(_METRICS), len(grids), figsize=(3.6 * len(grids), 2.8 * len(_METRICS)), squeeze=False,
    layout="constrained",
  )  # fmt: skip
  for panels, metric in zip(axes, _METRICS):
    for axis, grid in zip(panels, grids):
      column = [c.quantity for c in grid.columns].index(metric)
      values = [(row.label, row.cells[column].value) for row in grid.rows]
      there = [(label, value) for label, value in values if value is not None]
      axis.bar(
        [label for label, _ in there],
        [value.mean for _, value in there],
        yerr=[value.std or 0.0 for _, value in there],
        capsize=3,
      )
      axis.set_title(f"{grid.dataset}: {metric}")
      axis.tick_params(axis="x", labelrotation=20)
  return fig

"""Grids as Markdown, CSV and LaTeX."""

import csv
import io
from collections.abc import Sequence

from bbqrec_jax import compare
from bbqrec_jax.tables.experiments import Column, Experiment
from bbqrec_jax.tables.grids import Cell, Grid, Row
from bbqrec_jax.tables.statistics import Test

_MARKDOWN = {0: "{}", 1: "**{}**", 2: "<ins>{}</ins>"}
_LATEX = {0: "{}", 1: r"\textbf{{{}}}", 2: r"\underline{{{}}}"}
_LATEX_SPECIAL = str.maketrans({"_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#"})


def markdown(experiment: Experiment, grids: Sequence[Grid]) -> str:
  """A section with a table for each dataset; below it, what was tested and what is missing."""
  lines = [f"# {experiment.title}", ""]
  if any("@" in column.quantity for column in experiment.columns):
    less = ""
    if experiment.needs == "test_unseen":
      less = " less what the user has had, which validation leaves in"
    lines += [
      f"Test split, all users, the whole catalogue{less}; the model is selected by validation. "
      "Mean ± standard deviation over seeds, best in bold, second underlined; beside it, the "
      "paper's.",
      "",
    ]
  for grid in grids:
    remarks = [*(f"Data: {line}." for line in grid.data)]
    remarks += [*(f"Tuning: {line}." for line in grid.tuning), *_remarks(grid)]
    lines += [f"## {grid.dataset}", "", *_table(grid), ""]
    lines += [*(f"* {remark}" for remark in remarks), ""] if remarks else []
  return "\n".join(lines)


def _table(grid: Grid) -> list[str]:
  heads, shows_paper = ["", "seeds"], _shows_paper(grid)
  for n, column in enumerate(grid.columns):
    heads += [column.label, "paper"] if shows_paper[n] else [column.label]
  lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
  for row in grid.rows:
    cells = [row.label + ("" if not row.remarks else " \\*"), _seeds(row)]
    for n, (column, cell) in enumerate(zip(grid.columns, row.cells)):
      cells.append(_MARKDOWN[cell.place].format(_text(cell, column)))
      if shows_paper[n]:
        cells.append("" if cell.paper is None else format(cell.paper, column.form))
    lines.append("| " + " | ".join(cells) + " |")
  for row in grid.rows:
    if row.tests:
      cells = [f"{row.label}, against the best other", ""]
      for n in range(len(grid.columns)):
        cells.append(_test(row, n))
        cells += [""] if shows_paper[n] else []
      lines.append("| " + " | ".join(cells) + " |")
  return lines


def _shows_paper(grid: Grid) -> list[bool]:
  """Which columns have a number of the paper."""
  return [
    any(row.cells[n].paper is not None for row in grid.rows) for n in range(len(grid.columns))
  ]


def _seeds(row: Row) -> str:
  counts = sorted({cell.value.count for cell in row.cells if cell.value is not None})
  return "-".join(map(str, counts)) or "0"


def _text(cell: Cell, column: Column, plus_minus: str = "±") -> str:
  if cell.value is None:
    return cell.absence
  if cell.value.std is None:
    return format(cell.value.mean, column.form)
  form = column.form.replace(".0f", ".1f")  # A mean of counts is none: of 0 and 1 it is not 0.
  return f"{cell.value.mean:{form}} {plus_minus} {cell.value.std:{form}}"


def _test(row: Row, column: int) -> str:
  if column not in row.tests:
    return ""
  test = row.tests[column]
  p = "users differ" if test.p is None else f"p = {test.p:.2g}"
  if test.p_seeds is not None:
    p += f" (seeds: {test.p_seeds:.2g})"
  return f"{test.gain:+.1%} of {test.against}, {p}"


_MEANINGS = dict(
  collisions="collisions: items less distinct semantic IDs, without the running number of TIGER, "
  "behind the repair of LETTER.",
  ms_per_user="ms a user: of the test split's evaluation, in batches, on the run's own devices.",
)


def _remarks(grid: Grid) -> list[str]:
  lines = [_MEANINGS[c.quantity] for c in grid.columns if c.quantity in _MEANINGS]
  lines = list(dict.fromkeys(lines))
  tested = [row for row in grid.rows if row.tests]
  if tested:
    lines.append(
      "p: two-sided t-test paired by user, of each user's mean over seeds; below "
      f"{compare.SIGNIFICANCE} counts as significant. It does not know what other seeds change; "
      "behind `seeds:` stands, where both have several, the p of Welch's t-test over their means."
    )
  for row in grid.rows:
    lines += [f"\\* {row.label}: {remark}" for remark in row.remarks]
  lines += [f"Missing: {line}." for line in grid.missing]
  return lines


def csv_text(grids: Sequence[Grid]) -> str:
  """A line for each cell: its value, the paper's, and the test where the row has one."""
  text = io.StringIO()
  writer = csv.writer(text, lineterminator="\n")
  writer.writerow("dataset system metric mean std seeds paper best_other gain p p_seeds".split())
  for grid in grids:
    for row in grid.rows:
      for n, (column, cell) in enumerate(zip(grid.columns, row.cells)):
        value = cell.value or (None, None, 0)
        test = row.tests.get(n, (None,) * len(Test._fields))
        writer.writerow([grid.dataset, row.label, column.label, *value, cell.paper, *test])
  return text.getvalue()


def latex(experiment: Experiment, grids: Sequence[Grid]) -> str:
  """A table with \\toprule and the like (package booktabs); the paper's numbers in parentheses."""
  columns = grids[0].columns
  lines = [
    f"% {experiment.title}. Needs \\usepackage{{booktabs}}.",
    r"\begin{tabular}{ll" + "r" * len(columns) + "}",
    r"\toprule",
    " & ".join(["Dataset", "System", *(_escaped(column.label) for column in columns)]) + r" \\",
  ]
  for grid in grids:
    lines.append(r"\midrule")
    for row in grid.rows:
      cells = [
        _LATEX[cell.place].format(_escaped(_text(cell, column, r"$\pm$")))
        + ("" if cell.paper is None else f" ({format(cell.paper, column.form)})")
        for column, cell in zip(columns, row.cells)
      ]
      lines.append(" & ".join([_escaped(grid.dataset), _escaped(row.label), *cells]) + r" \\")
    for row in grid.rows:
      if row.tests:
        cells = [_escaped(_test(row, n)) for n in range(len(columns))]
        label = f"{_escaped(row.label)}, against the best other"
        lines.append(" & ".join([_escaped(grid.dataset), label, *cells]) + r" \\")
  missing = [f"% Missing: {grid.dataset}, {line}." for grid in grids for line in grid.missing]
  return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", *missing, ""])


def _escaped(text: str) -> str:
  return text.translate(_LATEX_SPECIAL)

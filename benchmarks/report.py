"""The table and the plot of all records, as they stand in the README.

python benchmarks/report.py results/benchmarks --readme=README.md \\
  --plot=results/benchmarks/ratios.png

The table goes between the two marks `<!-- benchmarks -->` and `<!-- /benchmarks -->`. The plot
needs the extra [report].
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

from bbqrec_jax.errors import UserError, exit_status

_BEGIN, _END = "<!-- benchmarks -->", "<!-- /benchmarks -->"


class Bar(NamedTuple):
  """What a figure has to reach."""

  meaning: str
  must: float
  aim: float
  lower_is_better: bool = False


BARS = {
  "train_vs_hf_b16": Bar("train step, T5 / ours, batch 16", 2.2, 2.8),
  "train_vs_hf_b64": Bar("train step, T5 / ours, batch 64", 1.4, 1.8),
  "train_vs_hf_b256": Bar("train step, T5 / ours, batch 256", 1.2, 1.5),
  "train_sim_vs_hf_b256": Bar("train step, plain T5 / ours with sim-attention, 256", 0.9, 1.2),
  "epoch_bucketed_vs_padded": Bar("epoch on Beauty, all padded / grouped by length", 2.0, 3.0),
  "sim_train_vs_plain": Bar("train step, sim-attention / plain", 1.5, 1.15, True),
  "sim_decode_vs_plain": Bar("decode, sim-attention / plain", 1.1, 1.05, True),
  "sim_temporaries_vs_naive": Bar("sim-attention's memory, naive / ours", 8, 15),
  "decode_vs_hf3_b1": Bar("decode beam 50, T5 with 3 tokens / ours, 1 user", 5, 8),
  "decode_vs_hf3_b32": Bar("decode beam 50, T5 with 3 tokens / ours, 32 users", 6, 10),
  "decode_vs_hf9_b1": Bar("decode beam 50, T5 with 9 tokens / ours, 1 user", 12, 20),
  "decode_vs_hf9_b32": Bar("decode beam 50, T5 with 9 tokens / ours, 32 users", 16, 28),
  "decode_growth_1m": Bar("decode, 1 M items / 12 k", 1.35, 1.15, True),
  "decode_growth_10m": Bar("decode, 10 M items / 12 k", 1.6, 1.3, True),
  "index_bytes_per_item": Bar("index, bytes an item", 32, 12, True),
  "index_us_per_item": Bar("index, microseconds an item to build", 2, 0.5, True),
  "assign_vs_naive": Bar("nearest code, naive / matmul form", 1.8, 2.4),
  "first_vs_second_start": Bar("start, without / with compiled programs on disk", 3, 6),
}


class Figure(NamedTuple):
  name: str
  value: float
  record: str  # The file it stands in.


def read(folder: pathlib.Path) -> list[Figure]:
  """The figures of a folder's records that BARS has, in its order.

  Raises:
    UserError: there is no record, or one is of a --quick run.
  """
  figures = {}
  for path in sorted(folder.glob("*.json")):
    record = json.loads(path.read_text(encoding="utf-8"))
    if record["quick"]:
      raise UserError(f"{path} is of a --quick run, whose figures mean nothing; run it in full.")
    figures |= {name: Figure(name, value, path.name) for name, value in record["ratios"].items()}
  if not figures:
    raise UserError(f"{folder} holds no record (*.json).")
  return [figures[name] for name in BARS if name in figures]


def verdict(figure: Figure) -> str:
  """Whether a figure reaches its bar: "aim", "yes" or "no"."""
  bar = BARS[figure.name]
  reaches = lambda level: figure.value <= level if bar.lower_is_better else figure.value >= level
  return "aim" if reaches(bar.aim) else "yes" if reaches(bar.must) else "no"


def table(figures: Sequence[Figure], folder: str) -> str:
  """A Markdown table; `folder` is where its links point."""
  lines = ["| figure | measured | must | aim | reached |", "|---|---|---|---|---|"]
  for figure in figures:
    bar = BARS[figure.name]
    sign = "at most" if bar.lower_is_better else "at least"
    lines.append(
      f"| [{bar.meaning}]({folder}/{figure.record}) | {figure.value:.3g} | {sign} {bar.must:g} "
      f"| {bar.aim:g} | {verdict(figure)} |"
    )
  return "\n".join(lines)


def write_table(readme: pathlib.Path, text: str) -> None:
  """Puts a table between the README's two marks.

  Raises:
    UserError: the marks are missing.
  """
  before, begin, rest = readme.read_text(encoding="utf-8").partition(_BEGIN)
  _, end, after = rest.partition(_END)
  if not begin or not end:
    raise UserError(f"{readme} lacks the marks {_BEGIN} and {_END}.")
  readme.write_text(f"{before}{_BEGIN}\n{text}\n{_END}{after}", encoding="utf-8")


def plot(figures: Sequence[Figure], path: pathlib.Path) -> None:
  """How many times better than its bar each figure is; what misses it lies left of 1."""
  try:
    import matplotlib
  except ModuleNotFoundError as error:
    raise UserError("--plot needs matplotlib; install the extra [report].") from error
  matplotlib.use("Agg")
  from matplotlib import pyplot

  figures = figures[::-1]
  better = lambda value, level, lower: level / value if lower else value / level
  _, axes = pyplot.subplots(figsize=(9, 0.36 * len(figures) + 1.2), layout="constrained")
  for row, figure in enumerate(figures):
    bar = BARS[figure.name]
    reached = better(figure.value, bar.must, bar.lower_is_better)
    axes.barh(row, reached - 1, left=1, color="tab:blue" if reached >= 1 else "tab:red")
    axes.plot(better(bar.aim, bar.must, bar.lower_is_better), row, "|", color="black", ms=11)
    axes.annotate(f" {figure.value:.3g}", (max(reached, 1), row), va="center", fontsize=8)
  axes.axvline(1, color="gray", lw=1)
  axes.set_yticks(
    range(len(figures)), [BARS[figure.name].meaning for figure in figures], fontsize=8
  )
  axes.set_xscale("log", base=2)
  axes.set_xlabel("times better than the least it must reach (mark: the aim); the number: measured")
  pyplot.savefig(path, dpi=130)


def main(argv: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("folder", type=pathlib.Path, help="where the records lie")
  parser.add_argument("--readme", type=pathlib.Path, help="the file to put the table into")
  parser.add_argument("--plot", type=pathlib.Path, help="the picture to draw (.png)")
  args = parser.parse_args(argv)
  return exit_status(lambda: _run(args))


def _run(args: argparse.Namespace) -> None:
  figures = read(args.folder)
  print(table(figures, args.folder.as_posix()))
  if args.readme:
    write_table(args.readme, table(figures, args.folder.as_posix()))
  if args.plot:
    plot(figures, args.plot)


if __name__ == "__main__":
  sys.exit(main())

"""The statistics of a dataset that the paper's Table 1 gives, beside the paper's own."""

from typing import NamedTuple

from bbqrec_jax.data.dataset import Dataset


class Table1(NamedTuple):
  """One row of BBQRec Table 1."""

  users: int
  items: int
  interactions: int
  images: int  # Items that have an image.
  texts: int  # Items that have a text.
  mean_length: float  # Interactions per user.


# BBQRec (arXiv:2504.06636), Table 1, as printed.
PAPER = {
  "beauty": Table1(22_363, 12_101, 198_502, 12_009, 12_094, 8.88),
  "sports": Table1(35_598, 18_357, 296_337, 18_177, 18_317, 8.32),
  "clothing": Table1(39_387, 23_033, 278_677, 22_879, 23_032, 7.08),
  "toys": Table1(19_412, 11_924, 169_597, 11_838, 11_890, 8.63),
}

# (dataset, statistic) -> the value that every public release of the data has instead.
MISPRINTS = {("toys", "interactions"): 167_597}


def statistics(dataset: Dataset) -> Table1:
  """Counts what Table 1 counts."""

  def count(modality: str) -> int:
    feature = dataset.features.get(modality)
    return int(feature.present.sum()) if feature else 0

  return Table1(
    users=dataset.num_users,
    items=dataset.num_items,
    interactions=len(dataset.items),
    images=count("image"),
    texts=count("text"),
    mean_length=len(dataset.items) / dataset.num_users,
  )


def paper_table1(name: str) -> Table1 | None:
  """The paper's row for a dataset; None if the paper does not have it."""
  return PAPER.get(name)


def table1(dataset: Dataset) -> str:
  """The statistics as text, a line each, with the paper's and where they differ."""
  paper = paper_table1(dataset.name)
  lines = [f"{dataset.name}:"]
  for field, value in statistics(dataset)._asdict().items():
    line = f"  {field.replace('_', ' '):<13}{_format(value):>10}"
    if paper is not None:
      line += f"  ({_compare(dataset.name, field, value, getattr(paper, field))})"
    lines.append(line)
  return "\n".join(lines)


def _compare(name: str, field: str, value: float, printed: float) -> str:
  text = f"paper: {_format(printed)}"
  if _format(value) == _format(printed):
    return text
  actual = MISPRINTS.get((name, field))
  if value == actual:
    return f"{text}, a misprint of {_format(actual)}"
  return f"{text}, differs"


def _format(value: float) -> str:
  return f"{value:,}" if isinstance(value, int) else f"{value:.2f}"

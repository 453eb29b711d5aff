"""Which runs each table and figure of the paper needs, and which of their figures stand where."""

from typing import NamedTuple

from bbqrec_jax.tables import paper, systems
from bbqrec_jax.tables.systems import BASELINES, BBQREC, IDS_LEVELS

LATENCY_BEAMS = (50, 100)  # Table 6.
# A key of records -> what is said of runs that lack it.
NEEDS = dict(
  latency="the decoding of seed {} is not timed",
  test_unseen="seed {} was ranked among all items alone",
)


class Column(NamedTuple):
  """A figure of a record.

  Attributes:
    label: the column's head.
    quantity: as records.quantity() knows it.
    form: how a value is printed, a format specification.
    lower_is_better: None: neither, so that none is marked.
  """

  label: str
  quantity: str
  form: str = ".4f"
  lower_is_better: bool | None = False


class Experiment(NamedTuple):
  """A table.

  Attributes:
    name: of its files, and of the paper's numbers in paper.OF.
    title: its headline.
    datasets: the paper's.
    columns: of figures.
    rows: label -> the system that each column is taken from: a name, or one name for each column.
    tested: the label that is compared with the best of the others by a paired t-test, or "".
    needs: what a record must have beside its run's metrics; a key of NEEDS, or "".
    same_as: the experiment whose figures of the paper stand beside it, or "" for its own.
  """

  name: str
  title: str
  datasets: tuple[str, ...]
  columns: tuple[Column, ...]
  rows: dict[str, str | tuple[str, ...]]
  tested: str = ""
  needs: str = ""
  same_as: str = ""

  def system_of(self, label: str, column: int) -> str:
    row = self.rows[label]
    return row if isinstance(row, str) else row[column]

  @property
  def systems(self) -> tuple[str, ...]:
    """The names of all systems, each once."""
    pairs = [(label, column) for label in self.rows for column in range(len(self.columns))]
    return tuple(dict.fromkeys(self.system_of(*pair) for pair in pairs))

  def paper(self, dataset: str, label: str, column: int) -> float | None:
    """The paper's figure, or None."""
    row = paper.OF.get(self.same_as or self.name, {}).get(dataset, {}).get(label, ())
    return row[column] if column < len(row) else None


_RANKING = tuple(
  Column(f"{name}@{k}", f"{name.lower()}@{k}") for name in ("Recall", "NDCG") for k in (5, 10)
)
_UNSEEN = tuple(column._replace(quantity=f"unseen {column.quantity}") for column in _RANKING)
_ALL = ("beauty", "sports", "clothing", "toys")


def _rows(*chosen: systems.System) -> dict[str, str]:
  return {system.label: system.name for system in chosen}


def _ablations(*names: str) -> dict[str, str]:
  return _rows(*(systems.SYSTEMS[f"bbqrec_{name}"] for name in names), BBQREC)


def _of_levels(label: str, config: str) -> dict[str, tuple[str, ...]]:
  return {label: tuple(f"{config}_ids_l{num_levels}" for num_levels in IDS_LEVELS)}


EXPERIMENTS = {
  experiment.name: experiment
  for experiment in (
    Experiment(
      "table2",
      "BBQRec and its baselines",
      _ALL,
      (
        *_RANKING,
        Column("collisions", "collisions", ".0f", None),
        Column("ms a user", "ms_per_user", ".3f", None),
      ),
      _rows(*BASELINES, BBQREC),
      tested=BBQREC.label,
    ),
    Experiment(
      "table2_unseen",
      "BBQRec and its baselines, where what a user has had is no candidate",
      _ALL,
      _UNSEEN,
      _rows(*BASELINES, BBQREC),
      tested=BBQREC.label,
      needs="test_unseen",
      same_as="table2",
    ),
    Experiment(
      "table3",
      "Without parts of the behaviour-aligned quantization",
      _ALL,
      _RANKING,
      _ablations("no_mim", "no_rec", "unshared"),
      tested=BBQREC.label,
    ),
    Experiment(
      "table4",
      "Other uses of the quantized vectors than similarity-enhanced attention",
      _ALL,
      _RANKING,
      _ablations("no_similarity", "inherited"),
      tested=BBQREC.label,
    ),
    Experiment(
      "figure3",
      "Semantic-ID length L, codebook size N, latent dimension D, similarity buckets K",
      ("beauty",),
      _RANKING,
      _rows(*systems.VARIANTS) | {"L = 3, N = 256, D = 128, K = 100": BBQREC.name},
    ),
    Experiment(
      "figure4",
      "Without one of the signals",
      _ALL,
      _RANKING,
      _ablations("no_id", "no_text", "no_image"),
      tested=BBQREC.label,
    ),
    Experiment(
      "table5",
      "Collisions: items less distinct semantic IDs",
      ("toys", "clothing"),
      tuple(Column(f"L = {n}", "collisions", ".0f", True) for n in IDS_LEVELS),
      _of_levels("RQ-VAE", "tiger")
      | _of_levels("LETTER", "letter")
      | _of_levels("BBQRec", "bbqrec"),
    ),
    Experiment(
      "table6",
      "Seconds a user for the ten best items, one user at a time",
      ("beauty",),
      tuple(Column(f"beam {n}", f"latency {n}", ".4f", True) for n in LATENCY_BEAMS),
      _rows(systems.SYSTEMS["tiger"], BBQREC),
      needs="latency",
    ),
  )
}

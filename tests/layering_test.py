"""Every file imports only from its own row of the layering, or from a row below."""

import ast
import pathlib
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = "bbqrec_jax"
ROWS = (  # From the top down; a folder stands for all its files.
  (
    "main",
    "table",
    "tables",
    "validate",
    "fields",
    "stage_cache",
    "recommend",
    "new_items",
    "inputs",
    "latency",
    "compare",
    "record",
    "report",
  ),
  ("trainers",),
  ("loop",),
  ("evaluators",),
  (
    "train_state",
    "optim",
    "checkpoint",
    "compile_cache",
    "diagnostics",
    "partition",
    "metric_writer",
    "run_record",
    "ranks",
    "progress",
    "signals",
    "file_lock",
  ),
  ("models", "decoding"),
  ("losses", "metrics"),
  ("data",),
  ("plugins", "rules", "paths"),
  ("errors",),
)
ROW_OF = {name: row for row, names in enumerate(ROWS) for name in names}
NOT_IN_DATA = {"jax", "flax", "optax", "orbax", "chex"}  # Data are NumPy's, and load in a moment.

FILES = sorted(path for path in (ROOT / PACKAGE).rglob("*.py") if path.name != "__init__.py")


def imports(source: str) -> Iterator[tuple[str, ...]]:
  """Each import anywhere in the source as the parts of its dotted name, `from` names included."""
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      yield from (tuple(alias.name.split(".")) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      module = (node.module or "").split(".") if not node.level else ["<relative>"]
      yield from ((*module, alias.name) for alias in node.names)


def violations(path: pathlib.PurePath, source: str) -> list[str]:
  """What the file at `path`, relative to the package, may not import."""
  unit = path.parts[0].removesuffix(".py")
  found = []
  for parts in imports(source):
    name = ".".join(parts)
    if parts[0] in ("configs", "tests", "benchmarks", "<relative>"):
      found.append(f"{path} imports {name}")
    elif parts[0] == PACKAGE and (len(parts) == 1 or ROW_OF[parts[1]] < ROW_OF[unit]):
      found.append(f"{path} imports {name}, which stands above it")
    elif unit == "data" and parts[0] in NOT_IN_DATA:
      found.append(f"{path} imports {name}; data are NumPy only")
  return found


def test_every_module_has_a_row_and_every_row_may_be_filled():
  units = {path.relative_to(ROOT / PACKAGE).parts[0].removesuffix(".py") for path in FILES}
  assert units <= set(ROW_OF), "Give the new module a row in ROWS."


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT / PACKAGE)))
def test_imports_point_sideways_or_down(path):
  assert violations(path.relative_to(ROOT / PACKAGE), path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
  ("path", "source"),
  [
    ("losses.py", "from bbqrec_jax import loop"),
    ("losses.py", "from bbqrec_jax.models import layers"),
    ("models/mlp.py", "import bbqrec_jax.trainers.tokenizer as t"),
    ("models/mlp.py", "from . import layers"),
    ("trainers/generator.py", "def f():\n  from configs import common"),
    ("data/table.py", "import jax.numpy as jnp"),
    ("loop.py", "import bbqrec_jax"),
  ],
)
def test_the_rule_catches(path, source):
  assert violations(pathlib.PurePosixPath(path), source)


@pytest.mark.parametrize(
  ("path", "source"),
  [
    ("loop.py", "from bbqrec_jax import checkpoint, train_state"),
    ("models/mlp.py", "from bbqrec_jax.models import layers"),
    ("data/table.py", "import numpy as np\nfrom bbqrec_jax.errors import UserError"),
  ],
)
def test_the_rule_lets_pass(path, source):
  assert violations(pathlib.PurePosixPath(path), source) == []

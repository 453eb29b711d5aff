"""What two finished runs of one config must have in common, bit for bit; and where they differ."""

import json
import pathlib
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from bbqrec_jax import checkpoint, main
from bbqrec_jax.data import semantic_ids
from bbqrec_jax.evaluators import ranking

_ARRAYS = (semantic_ids.FILE_NAME, ranking.RANKS_FILE)
_OF_THE_PROCESS = ("seconds", "peak_memory_mb", "provenance")  # What no two runs share.


def differences(one: pathlib.Path, other: pathlib.Path) -> list[str]:
  """Where two workdirs of finished runs differ, a sentence each; [] where they are the same.

  Compared are the arrays of semantic_ids.npz and ranks.npz; of each stage the best and the newest
  checkpoint, whole (parameters, optimizer, step); results.json but for seconds, memory and
  provenance; the validation lines of metrics.jsonl. A checkpoint that was set aside as damaged and
  a line that stands twice in metrics.jsonl are told too.
  """
  found = []
  for name in _ARRAYS:
    found += _compare(_load_arrays(one / name), _load_arrays(other / name), name)
  stages = sorted(path.name for path in (one / "checkpoints").iterdir())
  for stage in stages:
    states = [read_checkpoints(workdir / "checkpoints" / stage) for workdir in (one, other)]
    found += _compare(*states, f"checkpoints/{stage}")
  found += _compare(*(read_results(workdir) for workdir in (one, other)), main.RESULTS_FILE)
  found += _compare(*(read_validation(workdir) for workdir in (one, other)), "metrics.jsonl")
  for workdir in (one, other):
    damaged = sorted((workdir / "checkpoints").glob("*/*.damaged"))
    found += [f"{path} was written, and cannot be read" for path in damaged]
    found += [f"{workdir / 'metrics.jsonl'}: {line} stands twice" for line in _repeated(workdir)]
  return found


def read_checkpoints(folder: pathlib.Path) -> dict[str, Any]:
  """{"best/..." and "newest/...": each leaf of a stage's state} as arrays, with the steps' numbers.

  They are read by Orbax alone, without a template; which one is the best is the Checkpointer's to
  say.
  """
  with checkpoint.Checkpointer(folder) as checkpointer:
    best = checkpointer.restore_best(dict(step=jax.ShapeDtypeStruct((), jnp.int32))).step
  newest = max(int(path.name) for path in folder.iterdir() if path.name.isdecimal())
  leaves = {}
  for name, step in dict(best=best, newest=newest).items():
    with warnings.catch_warnings():  # That other devices could not read it so.
      warnings.simplefilter("ignore", UserWarning)
      state = ocp.PyTreeCheckpointer().restore(folder.resolve() / str(step) / "state")
    leaves[f"{name} step"] = step
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
      leaves[f"{name}/{jax.tree_util.keystr(path, simple=True, separator='/')}"] = np.asarray(leaf)
  return leaves


def read_results(workdir: pathlib.Path) -> dict[str, Any]:
  """Dotted name -> value of results.json, without what is of the process and not of the run."""
  results = json.loads((workdir / main.RESULTS_FILE).read_text(encoding="utf-8"))
  return dict(_leaves(results))


def read_validation(workdir: pathlib.Path) -> dict[str, Any]:
  """Every validation line of metrics.jsonl, in order."""
  lines = [
    (line["stage"], line["step"], line["metrics"])
    for line in read_lines(workdir)
    if _is_validation(line)
  ]
  return {f"validation {n}": line for n, line in enumerate(lines, start=1)}


def read_lines(workdir: pathlib.Path) -> list[dict[str, Any]]:
  """The whole lines of metrics.jsonl; a last one that a kill cut short is left out."""
  path = workdir / "metrics.jsonl"
  if not path.exists():
    return []
  whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
  return [json.loads(line) for line in whole.splitlines()]


def _is_validation(line: Mapping[str, Any]) -> bool:
  return any(name.startswith("valid/") for name in line["metrics"])


def _repeated(workdir: pathlib.Path) -> list[tuple[str, int, str]]:
  kinds = ("training", "validation")
  names = [(x["stage"], x["step"], kinds[_is_validation(x)]) for x in read_lines(workdir)]
  return sorted({name for name in names if names.count(name) > 1})


def _load_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
  if not path.exists():  # Of a run of the tokenizer alone.
    return {}
  with np.load(path, allow_pickle=False) as file:
    return dict(file)


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
  for key, value in tree.items():
    if key in _OF_THE_PROCESS or key.endswith("_seconds"):
      continue
    if isinstance(value, Mapping):
      yield from _leaves(value, f"{prefix}{key}.")
    else:
      yield f"{prefix}{key}", value


def _compare(one: Mapping[str, Any], other: Mapping[str, Any], where: str) -> list[str]:
  found = [f"{where}: {name} is only in one of the two" for name in sorted(one.keys() ^ other)]
  for name in sorted(one.keys() & other):
    a, b = one[name], other[name]
    if isinstance(a, np.ndarray):
      if (a.dtype, a.shape) != (b.dtype, b.shape):
        found.append(f"{where}: {name} is {a.dtype}{a.shape} in one and {b.dtype}{b.shape}")
      elif a.tobytes() != b.tobytes():  # Of bits: -0.0 is not 0.0, and NaN is NaN.
        found.append(f"{where}: {name} differs in {np.sum(a != b)} of {a.size} places")
    elif a != b:
      found.append(f"{where}: {name} is {a} in one and {b} in the other")
  return found

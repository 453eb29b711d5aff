"""Runs and records made by hand, for the tests of tables: no training, numbers that are known."""

import json
import pathlib
import textwrap

import numpy as np

from bbqrec_jax import metrics
from bbqrec_jax.ranks import pack
from bbqrec_jax.tables import records, systems

USERS = 211

# Stands in for `python -m`: gives a run the files of make_fake(). Beside it, SYSTEM.json says
# what else the runs of a system do: {"status": exit status, "said": last line, "valid": [field,
# {its value: all validation metrics}]}.
FAKE_PYTHON = textwrap.dedent(
  """
  import json, pathlib, re, shutil, sys

  module, *flags = sys.argv[1:]
  here = pathlib.Path(__file__).parent
  with open(here / "started.txt", "a") as file:
    file.write(" ".join([module, *flags]) + "\\n")
  if module == "bbqrec_jax.latency":
    out = pathlib.Path(flags[-1].removeprefix("--out="))
    out.write_text(json.dumps({"seconds_per_user": {"50": 0.25, "100": 0.5}}))
    sys.exit()
  flags = dict(flag.removeprefix("--").split("=", 1) for flag in flags)
  workdir = pathlib.Path(flags["workdir"])
  path = here / (re.fullmatch(r".*/(.*)[.]py:.*", flags["config"])[1] + ".json")
  orders = json.loads(path.read_text()) if path.exists() else {}
  print("beginning", file=sys.stderr)
  if orders.get("status"):
    print(orders["said"], file=sys.stderr)
    sys.exit(orders["status"])
  shutil.copytree(here / flags["config.seed"], workdir, dirs_exist_ok=True)
  if "valid" in orders:
    field, values = orders["valid"]
    results = json.loads((workdir / "results.json").read_text())
    results["valid"] = dict.fromkeys(results["test"], values[flags[f"config.{field}"]])
    (workdir / "results.json").write_text(json.dumps(results))
  """
)
SEEDS = (0, 1)


def make_fake(folder: pathlib.Path) -> pathlib.Path:
  """Makes the folder with FAKE_PYTHON, python.py, and the files that it needs; returns it."""
  folder.mkdir()
  (folder / "python.py").write_text(FAKE_PYTHON)
  for seed in SEEDS:
    write_run(folder / str(seed), some_ranks(seed), seed)
  return folder


def some_ranks(seed: int) -> np.ndarray:
  """[USERS] int32 ranks from 1 to 29, some of them within the first 10."""
  return np.random.default_rng(seed).integers(1, 30, USERS).astype(np.int32)


def write_run(workdir: pathlib.Path, ranks: np.ndarray, seed: int) -> None:
  """What bbqrec_jax.main leaves in a workdir."""
  workdir.mkdir()
  np.savez(workdir / "ranks.npz", test=ranks, user_ids=np.arange(len(ranks)).astype(str))
  test = metrics.summary(ranks, (5, 10))
  stage = dict(epochs=3.0, seconds=7.0, peak_memory_mb=11.0, test_seconds=USERS * 0.002)
  provenance = dict(commit="c0ffee", command="python -m bbqrec_jax.main", date="2000-01-01")
  config = dict(seed=seed, stages=["ranker"], data=dict(source="synthetic"))
  results = dict(
    valid=test,
    test=test,
    popularity={},
    codebook=dict(num_surplus_items=13),
    stages=dict(ranker=stage),
    data=dict(name="x", fingerprint="f", table1=table1()),
    provenance=provenance,
  )
  (workdir / "config.json").write_text(json.dumps(dict(config=config, provenance=provenance)))
  (workdir / "results.json").write_text(json.dumps(results))


def table1() -> dict:
  return dict(users=USERS, items=97, interactions=1_009, texts=89, images=0, mean_length=4.8)


def write_record(
  out: pathlib.Path,
  dataset: str,
  system: str,
  seed: int,
  ranks: np.ndarray,
  users: str = "u",
  **changes,
) -> dict:
  """A record of these test ranks; returns it."""
  test = metrics.summary(ranks, (5, 10))
  record = dict(
    run=dict(dataset=dataset, system=system, seed=seed, overrides=[], tuned=[]),
    valid=test,
    test=test,
    data=dict(name=dataset, fingerprint="f", table1=table1()),
    stages=dict(ranker=dict(test_seconds=USERS * 0.002)),
    config=dict(data=dict(features=dict(text="DIR/text_a.npy", image=None))),
    provenance={},
    test_ranks=dict(packed=pack(ranks), users=users),
  )
  record |= changes
  path = records.path(out, dataset, system, seed)
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(record))
  assert system in systems.SYSTEMS
  return record

"""The record of a finished run, and its curves: what stands behind a published number.

python -m bbqrec_jax.record runs/beauty --out=results/beauty.json --plot=results/beauty.png
"""

import argparse
import json
import os
import pathlib
import sys
from collections.abc import Sequence

from bbqrec_jax import paths, ranks, run_record
from bbqrec_jax.errors import UserError, exit_status
from bbqrec_jax.evaluators import ranking
from bbqrec_jax.tables import paper


def make_record(workdir: pathlib.Path, needs_test: bool = True) -> dict:
  """Everything that a number of this run has to carry, JSON-able.

  Args:
    needs_test: False lets a run pass that recommends nothing: one that only makes semantic IDs.

  Raises UserError if the run is not finished, or something of it is damaged.
  """
  files = [workdir / name for name in ("config.json", "results.json")]
  for path in files:
    if not os.path.exists(path):  # Unlike pathlib's, False also for what can be no name.
      raise UserError(f"{path} does not exist; finish the run first.")
  config = run_record.read_json(files[0], ("config", "provenance"))
  results = run_record.read_json(files[1])
  if needs_test and "test" not in results:
    raise UserError(f"{workdir} ran no stage that recommends; only a run with one has a record.")
  try:
    splits = [split for split in ranking.SPLITS if split in results]
    record = {name: results[name] for name in (*splits, "popularity", "data")}
    if "codebook" in results or "generator" in results["stages"]:  # Systems that score have none.
      record["codebook"] = results["codebook"]
    if set(config["config"]["stages"]) == {"tokenizer", "generator"}:
      reported = paper.TABLE2.get(results["data"]["name"], {}).get("BBQRec")
      if reported is not None:
        names = ("recall@5", "recall@10", "ndcg@5", "ndcg@10")
        record["paper_test"] = dict(zip(names, reported))
    if "test" in results:
      for split in (split for split in ranks.RECORDED if split in results):
        record[f"{split}_ranks"] = ranks.of_record(ranks.load(workdir, split))
    # The command and commit that the run was started with, not those of a later resumption.
    record["provenance"] = config["provenance"]
    record["resumed"] = config.get("resumed", [])
    record["finished"] = results["provenance"]["date"]
    return record | dict(stages=results["stages"], config=config["config"])
  except (KeyError, TypeError) as error:
    raise UserError(
      f"{files[1]} is damaged ({error!r}); remove it, and run the training's command again."
    ) from error


def plot_curves(workdir: pathlib.Path, path: pathlib.Path) -> None:
  """Loss and validation metrics over epochs, a row for each stage.

  Raises UserError if metrics.jsonl is missing or damaged, or the figure cannot be written.
  """
  import matplotlib  # An extra, for figures alone.

  matplotlib.use("agg")
  import matplotlib.pyplot as plt

  records = _read_metrics(workdir / "metrics.jsonl")
  stages = list(dict.fromkeys(record["stage"] for record in records))
  fig, axes = plt.subplots(len(stages), 2, figsize=(10, 3.2 * len(stages)), squeeze=False)
  for row, stage in zip(axes, stages, strict=True):
    of_stage = [record for record in records if record["stage"] == stage]
    _plot(row[0], [r for r in of_stage if "loss" in r["metrics"]], ["loss"])
    row[0].set_title(f"{stage}: training loss")
    _plot(
      row[1],
      [r for r in of_stage if "valid/recall@10" in r["metrics"]],
      ["valid/recall@10", "valid/ndcg@10"],
    )
    row[1].set_title(f"{stage}: validation")
  for axis in axes.flat:
    axis.set_xlabel("step")
    axis.grid(alpha=0.3)
  fig.tight_layout()
  try:
    fig.savefig(path, dpi=110)
  except (OSError, ValueError) as error:  # A ValueError tells of an unknown kind of figure.
    raise UserError(f"{path} cannot be written ({error}).") from error
  finally:
    plt.close(fig)


def _read_metrics(path: pathlib.Path) -> list[dict]:
  """The lines of metrics.jsonl; raises UserError for the first one that is damaged."""
  try:
    lines = path.read_bytes().splitlines()
  except OSError as error:
    raise UserError(f"{path} cannot be read ({error.strerror or error}).") from error
  records = []
  for number, line in enumerate(lines, start=1):
    try:
      record = json.loads(line)
      record["stage"], record["step"], record["metrics"].keys()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
      raise UserError(f"{path}:{number} is no line of metrics; remove it.") from error
    records.append(record)
  if not records:
    raise UserError(f"{path} holds no metrics; finish the run first.")
  return records


def _plot(axis, records: list[dict], names: Sequence[str]) -> None:
  steps = [record["step"] for record in records]
  for name in names:
    axis.plot(steps, [record["metrics"][name] for record in records], label=name)
  axis.legend()


def main(argv: Sequence[str] | None = None) -> int:
  """The command; returns its exit status."""
  parser = argparse.ArgumentParser(
    prog="python -m bbqrec_jax.record",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("workdir", type=paths.folder, help="of a finished run")
  parser.add_argument("--out", type=paths.file, required=True, help="the record, .json")
  parser.add_argument("--plot", type=paths.file, help="curves, .png (extra [report])")
  args = parser.parse_args(argv)
  return exit_status(lambda: _run(args))


def _run(args: argparse.Namespace) -> None:
  paths.check_writable(args.out)
  if args.plot:
    paths.check_writable(args.plot)
    paths.check_apart("--out", args.out, "--plot", args.plot)
  record = make_record(args.workdir)
  if args.plot:
    try:
      plot_curves(args.workdir, args.plot)
    except ImportError as error:
      raise UserError("--plot needs matplotlib; install the extra [report].") from error
  run_record.write_output(args.out, record)


if __name__ == "__main__":
  sys.exit(main())

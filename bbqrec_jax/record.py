"""The record of a finished run, and its curves: what stands behind a published number.

python -m bbqrec_jax.record runs/beauty --out=results/beauty.json --plot=results/beauty.png
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence

from bbqrec_jax import run_record
from bbqrec_jax.errors import UserError

# BBQRec, Table 2 (arXiv:2504.06636).
PAPER = {
  "beauty": {"recall@5": 0.0815, "recall@10": 0.1147, "ndcg@5": 0.0576, "ndcg@10": 0.0683},
  "sports": {"recall@5": 0.0501, "recall@10": 0.0721, "ndcg@5": 0.0344, "ndcg@10": 0.0415},
  "clothing": {"recall@5": 0.0402, "recall@10": 0.0589, "ndcg@5": 0.0272, "ndcg@10": 0.0336},
  "toys": {"recall@5": 0.0968, "recall@10": 0.1299, "ndcg@5": 0.0693, "ndcg@10": 0.0800},
}


def make_record(workdir: pathlib.Path) -> dict:
  """Everything that a number of this run has to carry, JSON-able.

  Raises UserError if the run is not finished.
  """
  files = [workdir / name for name in ("config.json", "results.json")]
  for path in files:
    if not path.exists():
      raise UserError(f"{path} does not exist; finish the run first.")
  config, results = (json.loads(path.read_text(encoding="utf-8")) for path in files)
  if "test" not in results:
    raise UserError(f"{workdir} ran the tokenizer alone; only a run with a generator has a record.")
  record = {name: results[name] for name in ("valid", "test", "popularity", "codebook", "data")}
  if results["data"]["name"] in PAPER:
    record["paper_test"] = PAPER[results["data"]["name"]]
  # The command and commit that the run was started with, not those of a later resumption.
  record["provenance"] = config["provenance"]
  record["finished"] = results["provenance"]["date"]
  return record | dict(stages=results["stages"], config=config["config"])


def plot_curves(workdir: pathlib.Path, path: pathlib.Path) -> None:
  """Loss and validation metrics over epochs, a row for each stage."""
  import matplotlib  # An extra, for figures alone.

  matplotlib.use("agg")
  import matplotlib.pyplot as plt

  lines = (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
  records = [json.loads(line) for line in lines]
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
  fig.savefig(path, dpi=110)
  plt.close(fig)


def _plot(axis, records: list[dict], names: Sequence[str]) -> None:
  steps = [record["step"] for record in records]
  for name in names:
    axis.plot(steps, [record["metrics"][name] for record in records], label=name)
  axis.legend()


def main(argv: Sequence[str] | None = None) -> int:
  """The command; returns its exit status."""
  parser = argparse.ArgumentParser(prog="python -m bbqrec_jax.record")
  parser.add_argument("workdir", type=pathlib.Path, help="of a finished run")
  parser.add_argument("--out", type=pathlib.Path, required=True, help="the record, .json")
  parser.add_argument("--plot", type=pathlib.Path, help="curves, .png (extra [report])")
  args = parser.parse_args(argv)
  try:
    run_record.write_json(args.out, make_record(args.workdir))
    if args.plot:
      plot_curves(args.workdir, args.plot)
  except UserError as error:
    print(f"Error: {error}", file=sys.stderr)
    return 1
  except ImportError:
    print("Error: --plot needs matplotlib; install the extra [report].", file=sys.stderr)
    return 1
  return 0


if __name__ == "__main__":
  sys.exit(main())

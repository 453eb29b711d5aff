"""Compares two runs on the same users: recall, ndcg, and a paired t-test over users.

python -m bbqrec_jax.compare RUN_A RUN_B [--split=test] [--out=FILE.json]

--split=test_unseen leaves the items of each user's history out of the candidates.

A run is its workdir, or its record: a .json of bbqrec_jax.record or of a table. In place of one, a
folder has the workdirs or records of several seeds: RUN/SYSTEM, results/runs/DATASET/SYSTEM.

The test over users, of each user's mean over seeds, does not know how seeds differ: two seeds of
one setting may well differ by it. Where both have several seeds, Welch's t-test over the seeds'
means stands beside it.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bbqrec_jax import metrics, paths, run_record
from bbqrec_jax.errors import UserError, exit_status
from bbqrec_jax.evaluators import ranking
from bbqrec_jax.ranks import KS, Run, Seeds, load_seeds

SIGNIFICANCE = 0.05  # As in the paper.


def align(a: Run, b: Run) -> np.ndarray:
  """The ranks of `b`, [U], in the order of the users of `a`.

  Users are matched by id; where one run is a record, which has a hash of the ids alone, both must
  have them in the same order. Runs without ids are taken to hold their users in the same order.

  Raises:
    UserError: the runs do not hold the same users, or their sequences are not the same.
  """
  if len(a.ranks) != len(b.ranks):
    raise UserError(
      f"{a.name} ranks {len(a.ranks)} users and {b.name} {len(b.ranks)}; "
      "a paired test needs the same users: compare runs on the same data."
    )
  if None not in (a.sequences, b.sequences) and a.sequences != b.sequences:
    raise UserError(
      f"{a.name} and {b.name} are of different data: their users' sequences or their items are not "
      "the same; compare runs on the same data."
    )
  if (a.users is None) != (b.users is None):
    name = (a if a.users is None else b).name
    raise UserError(f"{name} has no user_ids in ranks.npz, the other run has; evaluate it again.")
  if a.users == b.users:
    return b.ranks
  others = f"{a.name} and {b.name} do not hold the same users, each once"
  if a.user_ids is None or b.user_ids is None:
    raise UserError(f"{others} and in the same order; compare runs on the same data.")
  order_a, order_b = np.argsort(a.user_ids), np.argsort(b.user_ids)
  ids = a.user_ids[order_a]
  if len(np.unique(ids)) < len(ids) or not np.array_equal(ids, b.user_ids[order_b]):
    raise UserError(f"{others}; compare runs on the same data.")
  aligned = np.empty_like(b.ranks)
  aligned[order_a] = b.ranks[order_b]
  return aligned


class Comparison(NamedTuple):
  """One metric of two runs, or of two settings with several seeds."""

  a: float  # The means over users and seeds.
  b: float
  difference: float  # b - a.
  p: float  # Of a paired t-test over users, two-sided.
  p_seeds: float | None  # Of Welch's t-test over seeds; None where one has a single seed.


def compare(a: Seeds, b: Seeds) -> dict[str, Comparison]:
  """Metric ("recall@5" and so on) -> Comparison; raises UserError as `align` does."""
  ranks_a, ranks_b = ([align(a.runs[0], run) for run in runs] for runs in (a.runs, b.runs))
  names = [f"{metric}@{k}" for metric in ("recall", "ndcg") for k in KS]
  return {name: compare_ranks(ranks_a, ranks_b, name) for name in names}


def compare_ranks(a: Sequence[np.ndarray], b: Sequence[np.ndarray], metric: str) -> Comparison:
  """One metric ("recall@5").

  Args:
    a, b: the ranks [U] of each seed, of the same users in the same order.
  """
  name, k = metric.split("@")
  per_user = dict(recall=metrics.recall_per_user, ndcg=metrics.ndcg_per_user)[name]
  values_a, values_b = (np.stack([per_user(x, int(k)) for x in ranks]) for ranks in (a, b))
  test = metrics.paired_t_test(values_a.mean(axis=0), values_b.mean(axis=0))
  return Comparison(
    float(values_a.mean()),
    float(values_b.mean()),
    test.mean_difference,
    test.p,
    metrics.welch_p(values_a.mean(axis=1), values_b.mean(axis=1)),
  )


def table(a: Seeds, b: Seeds) -> str:
  """The comparison as text; raises UserError as `align` does."""
  compared = compare(a, b)
  with_seeds = min(len(a.runs), len(b.runs)) > 1
  lines = [
    f"A = {a.name}, B = {b.name}; {len(a.runs[0].ranks)} users",
    f"{'metric':10}{'A':>10}{'B':>10}{'B - A':>10}{'p':>11}" + "    p, seeds" * with_seeds,
  ]
  for name, row in compared.items():
    line = f"{name:10}{row.a:10.4f}{row.b:10.4f}{row.difference:+10.4f}{row.p:11.2g}"
    line += " *" if row.p < SIGNIFICANCE else "  "
    lines.append((line + (f"{row.p_seeds:10.2g}" if with_seeds else "")).rstrip())
  lines.append(f"* p < {SIGNIFICANCE}, paired t-test over users, two-sided")
  if with_seeds:
    lines.append("p, seeds: Welch's t-test over the seeds' means, two-sided")
  return "\n".join(lines)


def record(a: Seeds, b: Seeds, split: str) -> dict:
  """The comparison and what made it, JSON-able; raises UserError as `align` does."""
  return dict(
    a=a.name,
    b=b.name,
    split=split,
    num_users=len(a.runs[0].ranks),
    metrics={name: row._asdict() for name, row in compare(a, b).items()},
    provenance=run_record.provenance(),
  )


def main(argv: list[str] | None = None) -> int:
  """The command; returns its exit status."""
  parser = argparse.ArgumentParser(
    prog="python -m bbqrec_jax.compare",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument(
    "run_a", metavar="RUN_A", help="workdir of a run, its record, or a folder of seeds"
  )
  parser.add_argument("run_b", metavar="RUN_B", help="the run to compare with it")
  parser.add_argument("--split", choices=ranking.SPLITS, default="test")
  parser.add_argument("--out", type=paths.file, help="a JSON file to write it to as well")
  args = parser.parse_args(argv)
  return exit_status(lambda: _run(args))


def _run(args: argparse.Namespace) -> None:
  if args.out:
    paths.check_writable(args.out)
    for name, run in (("RUN_A", args.run_a), ("RUN_B", args.run_b)):
      paths.check_apart(name, run, "--out", args.out)
  a, b = load_seeds(args.run_a, args.split), load_seeds(args.run_b, args.split)
  print(table(a, b))
  if args.out:
    run_record.write_output(args.out, record(a, b, args.split))


if __name__ == "__main__":
  sys.exit(main())

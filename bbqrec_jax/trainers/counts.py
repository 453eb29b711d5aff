"""Systems that only count: popularity, item_knn. One pass, no gradient.

A model, models/<counts.model_name>.py: `Model(**counts.model)` with fit(dataset) -> table, NumPy's
arrays, and scores(table, history [B, T]) -> [B, I], in JAX.
"""

import functools
import pathlib
import time

from bbqrec_jax import partition as partition_lib
from bbqrec_jax import plugins, run_record
from bbqrec_jax.data.dataset import Dataset
from bbqrec_jax.evaluators import ranking
from bbqrec_jax.metric_writer import MetricWriter

STAGE = "counts"


def train(config, dataset: Dataset, workdir: pathlib.Path, writer: MetricWriter) -> dict:
  """Runs the stage; returns its record, JSON-able."""
  started = time.perf_counter()
  section = config.counts
  model = plugins.load("models", section.model_name, "counts.model_name").Model(**section.model)
  partition = partition_lib.Partition(**config.parallel)
  table = partition.replicate(model.fit(dataset))

  def ranks(table, history, seen, targets):
    return ranking.by_scores(model.scores(table, history), seen, targets)

  results, found = ranking.evaluate_splits(
    functools.partial(
      ranking.Evaluator,
      dataset,
      max_history=config.max_history,
      batch_size=section.eval_batch_size,
      row_multiple=partition.row_multiple,
    ),
    functools.partial(ranking.make_rank_fn(ranks, partition), table),
  )
  writer.truncate(STAGE, -1)  # What a run wrote that was killed before its record.
  writer.write(0, STAGE, {f"valid/{name}": value for name, value in results["valid"].items()})
  if partition_lib.is_main():
    ranking.save_ranks(workdir, dataset, found)
  return results | dict(
    epochs=1.0,
    seconds=time.perf_counter() - started,
    peak_memory_mb=run_record.peak_memory_mb(),
  )

"""What a run's results look like to a person."""

from bbqrec_jax.data.dataset import Dataset, histories
from bbqrec_jax.evaluators import codebook, ranking
from bbqrec_jax.recommend import Recommender

_EXAMPLES = 3
_SHOWN_HISTORY = 5


def format_results(results: dict) -> str:
  """The table of metrics beside the popularity baseline, and the codebook's health."""
  lines = []
  if "test" in results:
    names = list(results["test"])
    lines.append("".join(f"{name:>12}" for name in ["", *names]))
    for split in ranking.SPLITS:
      if split not in results:  # Of a stage that an earlier version evaluated.
        continue
      for label, row in ((split, results[split]), ("popularity", results["popularity"][split])):
        lines.append(f"{label:>12}" + "".join(f"{row[name]:12.4f}" for name in names))
  if "codebook" in results:
    lines += ["", codebook.format_report(results["codebook"])]
  for stage, record in results["stages"].items():
    lines.append(
      f"{stage}: {record['epochs']:.3g} epochs, {record['seconds']:.0f} s, "
      f"peak memory {record['peak_memory_mb']:.0f} MiB"
    )
  return "\n".join(lines)


def format_examples(recommender: Recommender, dataset: Dataset, max_history: int) -> str:
  """Three users: the end of their history, what they chose next, and what is recommended."""
  history, targets = histories(dataset, "test", max_history)
  name = lambda item: dataset.titles[item] or dataset.item_ids[item]
  lines = []
  step = max(dataset.num_users // _EXAMPLES, 1)
  for user in range(0, dataset.num_users, step)[:_EXAMPLES]:
    items = history[user][history[user] >= 0]
    result = recommender.recommend([dataset.item_ids[items].tolist()], k=5)[0]
    lines += ["", f"User {dataset.user_ids[user]}"]
    lines += [f"  had          {name(item)[:80]}" for item in items[-_SHOWN_HISTORY:]]
    lines.append(f"  chose next   {name(targets[user])[:80]}")
    lines += [
      f"  recommended  {(title or item)[:80]}  ({score:.2f})"
      for item, title, score in zip(result.item_ids, result.titles, result.scores)
    ]
  return "\n".join(lines)

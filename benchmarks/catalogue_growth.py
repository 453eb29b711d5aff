"""How decoding grows with the catalogue: 12,000 to 10 million items, beam 50, the best 10 items.

Random semantic IDs, and skewed ones, whose first tokens are 4,096 by Zipf's law so that a few of
them have most items. The generator is the whole one, with random parameters and histories of up to
20 items. Histories are of the first 12,000 items in every catalogue: the vectors of 10 million
would not fit a small machine, and reading 20 of them takes no time.

`decode_growth_1m` and `decode_growth_10m` are the seconds of a whole decoding over those at 12,000
items: the worse of random and skewed, and of 1 and 32 users a call. `index_bytes_per_item` and
`index_us_per_item` are those of the search's index, the worst from 100,000 items on.

python benchmarks/catalogue_growth.py --out=results/benchmarks/catalogue_growth.json
"""

import argparse
import statistics
import sys
import time

import jax
import numpy as np
from lib import harness, workload

from bbqrec_jax.decoding import generate, trie

NUM_BEAMS, NUM_RESULTS = 50, 10
CALLS = {1: 8, 32: 1}  # Users a call -> calls of a round.
LABELS = {"12k": 12_000, "100k": 100_000, "1m": 1_000_000, "10m": 10_000_000}
QUICK_LABELS = {"211": 211, "997": 997}
NUM_ROOTS, ZIPF = 4096, 1.0  # First tokens of skewed catalogues.
DEEPER_ZIPF = 0.7  # Of their codes below.


def add_options(parser: argparse.ArgumentParser) -> None:
  harness.add_rounds(parser, default=9)
  parser.add_argument(
    "--max_items", type=int, default=max(LABELS.values()), help="no larger catalogue (default: all)"
  )


def run(args: argparse.Namespace) -> dict:
  shape = workload.QUICK if args.quick else workload.FULL
  labels = QUICK_LABELS if args.quick else LABELS
  labels = {label: n for label, n in labels.items() if n <= args.max_items}
  smallest, *larger = labels
  model = workload.make_model(shape, similarity=True, dropout_rate=0.0)
  catalogue = workload.make_catalogue(shape)
  params = workload.init_params(model, catalogue, shape.max_history)
  search = generate.make_generate(model, num_beams=NUM_BEAMS, num_results=NUM_RESULTS)

  indices, index_details = {}, {}
  for kind, make_codes in KINDS.items():
    for label, num_items in labels.items():
      codes = make_codes(shape, num_items)
      num_builds = 1 if num_items > 1_000_000 else 5
      index, index_details[f"{kind}_{label}"] = build(codes, shape.codebook_size, num_builds)
      indices[kind, label] = index

  ratios, seconds = {}, {}
  growth = {label: [] for label in larger}
  for batch_size, num_calls in ({1: 2, 3: 1} if args.quick else CALLS).items():
    histories = workload.make_histories(shape, num_calls * batch_size)
    calls = [jax.device_put(h) for h in np.split(histories, num_calls)]
    candidates = {
      f"{kind}_{label}": harness.over_calls(
        lambda h, i=index: search(params, catalogue, i, h), calls
      )
      for (kind, label), index in indices.items()
    }
    taken = harness.rounds(candidates, args.rounds)
    for kind in KINDS:
      for label in larger:
        growth[label].append(harness.ratio(taken[f"{kind}_{label}"], taken[f"{kind}_{smallest}"]))
    seconds[f"b{batch_size}"] = harness.summary(
      {name: np.divide(s, len(histories)) for name, s in taken.items()}
    )
  ratios = {f"decode_growth_{label}": max(worst) for label, worst in growth.items()}
  from_100k = [
    index_details[f"{kind}_{label}"]
    for kind in KINDS
    for label, n in labels.items()
    if n >= (QUICK_LABELS["211"] if args.quick else LABELS["100k"])
  ]
  if from_100k:
    ratios["index_bytes_per_item"] = max(index["bytes_per_item"] for index in from_100k)
    ratios["index_us_per_item"] = max(index["us_per_item"] for index in from_100k)
  return dict(
    ratios=ratios,
    details=dict(
      shape=shape._asdict(),
      num_beams=NUM_BEAMS,
      num_results=NUM_RESULTS,
      seconds_per_user=seconds,
      growth=growth,
      indices=index_details,
    ),
  )


def random_codes(shape: workload.Shape, num_items: int) -> np.ndarray:
  """[I, L, M] uint16, each uniform in [0, N)."""
  size = (num_items, shape.num_levels, shape.num_signals)
  return np.random.default_rng(0).integers(0, shape.codebook_size, size, np.uint16)


def skewed_codes(shape: workload.Shape, num_items: int) -> np.ndarray:
  """[I, L, M] uint16: few first tokens with most of the items, and codes of unlike frequency."""
  rng = np.random.default_rng(0)
  roots = rng.integers(0, shape.codebook_size, (NUM_ROOTS, shape.num_signals), np.uint16)
  size = (num_items, shape.num_levels, shape.num_signals)
  codes = rng.choice(shape.codebook_size, size, p=zipf(shape.codebook_size, DEEPER_ZIPF))
  codes = codes.astype(np.uint16)
  codes[:, 0] = roots[rng.choice(NUM_ROOTS, num_items, p=zipf(NUM_ROOTS, ZIPF))]
  return codes


KINDS = {"random": random_codes, "skewed": skewed_codes}


def zipf(size: int, exponent: float) -> np.ndarray:
  """[size] float64 probabilities that fall as a power of the rank."""
  weights = np.arange(1, size + 1) ** -exponent
  return weights / weights.sum()


def build(codes: np.ndarray, codebook_size: int, num_builds: int) -> tuple[trie.Trie, dict]:
  """The index of a catalogue, and what it and its building take: the median of so many times."""
  popularity = np.random.default_rng(1).integers(0, 50, len(codes))
  seconds = []
  for _ in range(num_builds):
    started = time.perf_counter()
    index = jax.block_until_ready(trie.build(codes, codebook_size, popularity))
    seconds.append(time.perf_counter() - started)
  return index, dict(
    bytes_per_item=index.num_bytes / len(codes),
    us_per_item=1e6 * statistics.median(seconds) / len(codes),
    num_builds=num_builds,
    num_nodes=index.num_nodes,
    max_children=index.max_children,
    ranks_first_tokens=index.roots is not None,
  )


if __name__ == "__main__":
  sys.exit(harness.main(run, __doc__, add_options))

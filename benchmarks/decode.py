"""Decoding with beam 50, ours beside Hugging Face's `generate` with `prefix_allowed_tokens_fn`.

12,000 items with random semantic IDs, histories of up to 20 items, the best 10 items of each user;
1 and 32 users a call. Ours is the whole system: similarity-enhanced attention, three codes a level.
T5, of the same shape, spells an item in 3 tokens (`decode_vs_hf3_*`, a third of what ours predicts)
or in 9 (`decode_vs_hf9_*`, the whole semantic ID). The details say for how many users beam 50
misses one of the true ten best; `exact_search` says it of a trained run. Needs the extra [bench].

python benchmarks/decode.py --out=results/benchmarks/decode.json
"""

import argparse
import sys

import exact_search
import jax
import numpy as np
from lib import harness, workload

from bbqrec_jax.decoding import beam, generate, trie

NUM_BEAMS, NUM_RESULTS = 50, 10
CALLS = {1: 8, 32: 1}  # Users a call -> calls of a round.


def add_options(parser: argparse.ArgumentParser) -> None:
  harness.add_rounds(parser, default=9)


def run(args: argparse.Namespace) -> dict:
  from lib import hf_t5  # Needs the extra.

  shape = workload.QUICK if args.quick else workload.FULL
  num_beams, num_results = (7, 5) if args.quick else (NUM_BEAMS, NUM_RESULTS)
  threads = hf_t5.use_all_cpus()
  catalogue = workload.make_catalogue(shape)
  codes = np.asarray(catalogue.codes)
  model = workload.make_model(shape, similarity=True, dropout_rate=0.0)
  params = workload.init_params(model, catalogue, shape.max_history)
  index = trie.build(codes, shape.codebook_size, np.ones(shape.num_items, np.int64))
  generate_fn = generate.make_generate(model, num_beams=num_beams, num_results=num_results)
  ours = lambda histories: generate_fn(params, catalogue, index, histories)
  tokens, hf = {}, {}  # By the number of tokens of an item.
  for num_signals in (1, shape.num_signals):
    n = shape.num_levels * num_signals
    tokens[n] = hf_t5.item_tokens(shape, codes, num_signals)
    t5 = hf_t5.make_model(shape, num_signals=num_signals, dropout_rate=0.0)
    hf[n] = hf_t5.make_generate(t5, tokens[n], num_beams=num_beams, num_results=num_results)

  ratios, seconds, invalid = {}, {}, {}
  for batch_size, num_calls in ({1: 2, 3: 1} if args.quick else CALLS).items():
    histories = workload.make_histories(shape, num_calls * batch_size)
    calls = np.split(histories, num_calls)
    candidates = {"ours": harness.over_calls(ours, [jax.device_put(h) for h in calls])}
    inputs = [hf_t5.encoder_inputs(shape, codes, h) for h in calls]
    for n, hf_generate in hf.items():
      candidates[f"hf{n}"] = harness.over_calls(hf_generate, inputs)
    taken = harness.rounds(candidates, args.rounds)
    for n in hf:
      ratios[f"decode_vs_hf{n}_b{batch_size}"] = harness.ratio(taken[f"hf{n}"], taken["ours"])
    seconds[f"b{batch_size}"] = harness.summary(
      {name: np.divide(s, len(histories)) for name, s in taken.items()}
    )
    invalid[f"b{batch_size}"] = dict(
      ours=sum(num_invalid_items(found, shape.num_items) for found in candidates["ours"]()),
      **{f"hf{n}": num_invalid_tokens(candidates[f"hf{n}"](), tokens[n]) for n in hf},
    )
  return dict(
    ratios=ratios,
    details=dict(
      shape=shape._asdict(),
      num_beams=num_beams,
      num_results=num_results,
      torch_threads=threads,
      seconds_per_user=seconds,
      invalid_or_repeated=invalid,
      beam_vs_exact=exact_search.compare(
        model, params, catalogue, index, histories, num_beams, num_results
      ),
    ),
  )


def num_invalid_items(found: beam.Beams, num_items: int) -> int:
  """How many of a call's results are no item, or an item that the user has been given already."""
  items = np.asarray(found.items)
  distinct = sum(len(np.unique(row[(row >= 0) & (row < num_items)])) for row in items)
  return items.size - distinct


def num_invalid_tokens(found: list[np.ndarray], tokens: np.ndarray) -> int:
  """The same of token sequences [B, k, n]; an item is a sequence of the catalogue [I, n]."""
  known = set(map(tuple, tokens.tolist()))
  users = [set(map(tuple, user)) for call in found for user in call.tolist()]
  return sum(call.shape[0] * call.shape[1] for call in found) - sum(len(u & known) for u in users)


if __name__ == "__main__":
  sys.exit(harness.main(run, __doc__, add_options))

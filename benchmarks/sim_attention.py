"""What similarity-enhanced attention costs beside plain attention: training, decoding, memory.

Whole training steps (dropout 0.1, AdamW, histories padded to 20 items) and whole decodings (beam
50) of the same model with and without it. `sim_train_vs_plain` is the time with over the time
without at batch 64, `sim_decode_vs_plain` the same at 32 users a call; more sizes in the details.
`sim_temporaries_vs_naive` is how many times more temporary memory the equation as printed, an
embedding for every pair of tokens, takes for one layer forward and backward at batch 256.

python benchmarks/sim_attention.py --out=results/benchmarks/sim_attention.json
"""

import argparse
import functools
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from lib import harness, workload

from bbqrec_jax.decoding import generate, trie
from bbqrec_jax.models import attention

DROPOUT_RATE = 0.1
NUM_BEAMS, NUM_RESULTS = 50, 10
# (batch, items of a history) -> steps of a round, so that rounds last alike; the first is the
# figure's. Shorter histories are those of the groups that batches are made of.
STEPS = {(64, 20): 2, (16, 20): 8, (256, 20): 1, (256, 12): 1, (256, 8): 2, (256, 4): 4}
CALLS = {32: 1, 1: 16}  # Users a call -> calls of a round.
MEMORY_BATCH_SIZE = 256
SIMILARITY = dict(sim=True, plain=False)


def add_options(parser: argparse.ArgumentParser) -> None:
  harness.add_rounds(parser, default=9)


def run(args: argparse.Namespace) -> dict:
  shape = workload.QUICK if args.quick else workload.FULL
  steps = {(5, shape.max_history): 2, (3, 2): 1} if args.quick else STEPS
  calls = {3: 1} if args.quick else CALLS
  train, train_seconds = compared(
    {
      f"b{batch_size}_t{num_items}": functools.partial(
        train_steps, shape._replace(max_history=num_items), batch_size, num_steps
      )
      for (batch_size, num_items), num_steps in steps.items()
    },
    args.rounds,
  )
  decode, decode_seconds = compared(
    {f"b{size}": functools.partial(decodings, shape, size, n) for size, n in calls.items()},
    args.rounds,
  )
  batch_size = 5 if args.quick else MEMORY_BATCH_SIZE
  temporaries = {name: temporary_bytes(shape, batch_size, name) for name in ("reference", "xla")}
  first = lambda ratios: next(iter(ratios.values()))
  return dict(
    ratios=dict(
      sim_train_vs_plain=first(train),
      sim_decode_vs_plain=first(decode),
      sim_temporaries_vs_naive=temporaries["reference"] / temporaries["xla"],
    ),
    details=dict(
      shape=shape._asdict(),
      dropout_rate=DROPOUT_RATE,
      micro_batch_size=workload.MICRO_BATCH_SIZE,
      num_beams=NUM_BEAMS,
      train_vs_plain=train,
      decode_vs_plain=decode,
      seconds_of_a_round=dict(train=train_seconds, decode=decode_seconds),
      temporary_bytes=temporaries,
    ),
  )


def compared(cases: dict[str, Callable], num_rounds: int) -> tuple[dict, dict]:
  """(case -> time with similarity over time without, case -> summary of both).

  A case is a function of `similarity` that builds the work to time.
  """
  ratios, seconds = {}, {}
  for case, make in cases.items():
    taken = harness.rounds(
      {name: make(similarity=similarity) for name, similarity in SIMILARITY.items()}, num_rounds
    )
    ratios[case] = harness.ratio(taken["sim"], taken["plain"])
    seconds[case] = harness.summary(taken)
  return ratios, seconds


def train_steps(
  shape: workload.Shape, batch_size: int, num_steps: int, *, similarity: bool
) -> Callable[[], Any]:
  model = workload.make_model(shape, similarity=similarity, dropout_rate=DROPOUT_RATE)
  catalogue = workload.make_catalogue(shape)
  params = workload.init_params(model, catalogue, shape.max_history)
  histories = workload.make_histories(shape, batch_size * num_steps)
  groups = workload.make_batches(histories, num_targets=1, batch_size=batch_size).epoch(0)
  return workload.generator_steps(model, params, catalogue, groups, num_steps)


def decodings(
  shape: workload.Shape, batch_size: int, num_calls: int, *, similarity: bool
) -> Callable[[], Any]:
  model = workload.make_model(shape, similarity=similarity, dropout_rate=0.0)
  catalogue = workload.make_catalogue(shape)
  params = workload.init_params(model, catalogue, shape.max_history)
  codes = np.asarray(catalogue.codes)
  index = trie.build(codes, shape.codebook_size, np.ones(shape.num_items, np.int64))
  generate_fn = generate.make_generate(model, num_beams=NUM_BEAMS, num_results=NUM_RESULTS)
  histories = workload.make_histories(shape, num_calls * batch_size)
  calls = [jax.device_put(x) for x in np.split(histories, num_calls)]
  return lambda: [jax.block_until_ready(generate_fn(params, catalogue, index, x)) for x in calls]


def temporary_bytes(shape: workload.Shape, batch_size: int, backend: str) -> int:
  """What XLA sets aside for one layer's attention, forward and backward; inputs and results not."""
  num_items, num_heads, head_dim = shape.max_history, shape.num_heads, shape.head_dim
  num_tokens = shape.num_levels * num_items

  def layer(scores, values, table, buckets, grad):
    attend = lambda *args: attention.make_sim_attention(args[2], buckets, backend)(*args[:2])
    return jax.vjp(attend, scores, values, table)[1](grad)

  array = lambda *size, dtype=jnp.float32: jax.ShapeDtypeStruct(size, dtype)
  values = array(batch_size, num_tokens, num_heads, head_dim)
  compiled = (
    jax.jit(layer)
    .lower(
      array(batch_size, num_heads, num_tokens, num_tokens),
      values,
      array(101, num_heads, head_dim),
      array(batch_size, num_items, num_items, dtype=jnp.int32),
      values,
    )
    .compile()
  )
  return compiled.memory_analysis().temp_size_in_bytes


if __name__ == "__main__":
  sys.exit(harness.main(run, __doc__, add_options))

"""Peak memory of every stage, against the size of the catalogue and of the batch.

Each case has a process of its own, so that no other case's peak is in it; and a second one, which
compiles nothing. In MiB, of the second: `data_mb`, the process's peak before the stage starts, when
its inputs lie on the device; `peak_mb`, its peak in the end; `device_peak_mb`, the accelerator's
(None where it keeps no count). `compiling_peak_mb` is the first one's.

python benchmarks/memory.py --out=results/benchmarks/memory.json
"""

import argparse
import itertools
import os
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from lib import harness, workload

from bbqrec_jax import compile_cache, run_record
from bbqrec_jax.decoding import generate, trie

# The processes of the cases share the device with this one.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

NUM_BEAMS, NUM_RESULTS = 50, 10
FEATURE_DIMS = dict(text=768, image=768)  # Of the paper's encoders.
# Stage -> (catalogues, batches); every one with every other.
CASES = {
  "tokenizer_step": ((12_000, 100_000), (64, 256, 1024)),
  "generator_step": ((12_000, 100_000), (64, 256, 1024)),
  "decode": ((12_000, 100_000, 1_000_000), (1, 32, 256)),
  "index_build": ((12_000, 100_000, 1_000_000, 10_000_000), (0,)),
}
QUICK_CASES = {"generator_step": ((97,), (3,)), "index_build": ((97,), (0,))}


def run(args: argparse.Namespace) -> dict:
  table = []
  with tempfile.TemporaryDirectory() as cache:
    for stage, (catalogues, batch_sizes) in (QUICK_CASES if args.quick else CASES).items():
      for num_items, batch_size in itertools.product(catalogues, batch_sizes):
        case = dict(stage=stage, num_items=num_items, batch_size=batch_size)
        first, second = (
          workload.in_own_process(measure, **case, cache=cache, quick=args.quick) for _ in range(2)
        )
        table.append(case | second | dict(compiling_peak_mb=first["peak_mb"]))
        print(table[-1], flush=True)
  return dict(ratios={}, details=dict(feature_dims=FEATURE_DIMS, table=table))


def measure(
  stage: str, num_items: int, batch_size: int, cache: str, quick: bool
) -> dict[str, float | None]:
  """Runs a stage once in this process; the figures in MiB, as the file's docstring has them.

  Compiled programs are kept in the folder `cache`, for this whole process.
  """
  compile_cache.enable(cache)
  shape = (workload.QUICK if quick else workload.FULL)._replace(num_items=num_items)
  work = STAGES[stage](shape, batch_size)
  data_mb = run_record.peak_memory_mb()
  jax.block_until_ready(work())
  stats = jax.devices()[0].memory_stats()  # None on a CPU.
  return dict(
    data_mb=data_mb,
    peak_mb=run_record.peak_memory_mb(),
    device_peak_mb=stats["peak_bytes_in_use"] / 2**20 if stats else None,
  )


def tokenizer_step(shape: workload.Shape, batch_size: int) -> Callable[[], Any]:
  rng = np.random.default_rng(0)
  inputs = dict(
    features={
      name: rng.standard_normal((shape.num_items, dim), np.float32)
      for name, dim in FEATURE_DIMS.items()
    },
    present={name: np.ones(shape.num_items, bool) for name in FEATURE_DIMS},
  )
  history = rng.integers(0, shape.num_items, (batch_size, shape.max_history), np.int32)
  data = workload.make_batches(history, shape.max_history, batch_size, micro_batch_size=0)
  return workload.tokenizer_steps(
    workload.load_config("beauty").tokenizer,
    shape.num_items,
    inputs,
    data.epoch_with_distinct_items(0, shape.num_items),
    num_steps=1,
  )


def generator_step(shape: workload.Shape, batch_size: int) -> Callable[[], Any]:
  model = workload.make_model(shape, similarity=True, dropout_rate=0.1)
  catalogue = workload.make_catalogue(shape)
  histories = workload.make_histories(shape, batch_size)
  groups = workload.make_batches(histories, num_targets=1, batch_size=batch_size).epoch(0)
  params = workload.init_params(model, catalogue, shape.max_history)
  return workload.generator_steps(model, params, catalogue, groups, num_steps=1)


def decode(shape: workload.Shape, batch_size: int) -> Callable[[], Any]:
  model = workload.make_model(shape, similarity=True, dropout_rate=0.0)
  catalogue = workload.make_catalogue(shape)
  params = workload.init_params(model, catalogue, shape.max_history)
  index = build_index(shape, np.asarray(catalogue.codes))
  generate_fn = generate.make_generate(model, num_beams=NUM_BEAMS, num_results=NUM_RESULTS)
  histories = jax.device_put(workload.make_histories(shape, batch_size))
  return lambda: generate_fn(params, catalogue, index, histories)


def index_build(shape: workload.Shape, batch_size: int) -> Callable[[], Any]:
  del batch_size
  size = (shape.num_items, shape.num_levels, shape.num_signals)
  codes = np.random.default_rng(0).integers(0, shape.codebook_size, size, np.int32)
  return lambda: build_index(shape, codes)


def build_index(shape: workload.Shape, codes: np.ndarray) -> trie.Trie:
  return trie.build(codes, shape.codebook_size, np.ones(shape.num_items, np.int64))


STAGES = dict(
  tokenizer_step=tokenizer_step,
  generator_step=generator_step,
  decode=decode,
  index_build=index_build,
)

if __name__ == "__main__":
  sys.exit(harness.main(run, __doc__))

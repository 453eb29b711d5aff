"""Bytes a device holds, and operations a step takes, for catalogues too large to be made here.

Both stages' training steps, of configs/beauty.py's sizes, are compiled for abstract arrays on eight
fake CPU devices: XLA says what every device is given, holds and computes, and nothing is run.
`ratios` hold, by stage and catalogue, the bytes an item that a device is given for its tables.

python benchmarks/scale.py --out=results/benchmarks/scale.json
"""

import argparse
import functools
import math
import re
import sys
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from lib import harness, workload

from bbqrec_jax import loop, optim, partition, train_state
from bbqrec_jax.decoding import generate
from bbqrec_jax.trainers import generator as generator_trainer
from bbqrec_jax.trainers import item_codes
from bbqrec_jax.trainers import tokenizer as tokenizer_trainer

NUM_DEVICES = 8
FEATURE_DIMS = dict(text=768, image=4096)  # Sentence-T5, and the release's image features.
STEPS_PER_EPOCH = 100
CATALOGUES = (10**6, 10**7, 10**8)
MODELS = (1, 8)  # Devices that share a table.


def run(args: argparse.Namespace) -> dict:
  catalogues = CATALOGUES[:1] if args.quick else CATALOGUES
  ratios, details = {}, {}
  for stage in STAGES:
    for num_items in catalogues:
      for model in MODELS:
        found = measure(stage, num_items, model)
        name = f"{stage}_{num_items:.0e}_items_model_{model}".replace("+0", "")
        details[name] = found
        ratios[f"{name}_bytes_per_item"] = found["table_bytes"] / num_items
  return dict(ratios=ratios, details=details)


def measure(stage: str, num_items: int, model: int) -> dict[str, float]:
  """Figures of one device; bytes, and floating-point operations of a step."""
  compiled, table_bytes, num_micro = STAGES[stage](num_items, model)
  memory = compiled.memory_analysis()
  return dict(
    table_bytes=table_bytes,
    argument_bytes=memory.argument_size_in_bytes,
    temporary_bytes=memory.temp_size_in_bytes,
    # XLA counts the body of a loop once. (Micro-batches apart, a step is the optimizer's update.)
    step_flops=num_micro * compiled.cost_analysis()["flops"],
    largest_array_elements=largest_array(compiled),
  )


def largest_array(compiled) -> int:
  """Elements of the largest array in a compiled program: what any one device holds."""
  shapes = re.findall(r"\[([0-9]+(?:,[0-9]+)*)\]", compiled.as_text())
  return max(math.prod(map(int, shape.split(","))) for shape in shapes)


def tokenizer_step(num_items: int, model: int):
  """(compiled chunk of steps, bytes of a device's share of the tables, micro-batches of a step)."""
  part = partition.Partition(model=model, num_devices=NUM_DEVICES)
  config = workload.load_config("beauty")
  section = config.tokenizer
  module = tokenizer_trainer.make_model(section, num_items=num_items, feature_dims=FEATURE_DIMS)
  tx, train_step = tokenizer_trainer.make_step(section, module, num_steps=1_000_000)
  state = jax.eval_shape(
    lambda key: item_codes.init_state(tx, item_codes.init_params(module, key)),
    jax.random.key(0),
  )
  num_rows = state.params["id_embedding"].shape[0]
  constants = dict(
    features={m: _spread(part, (num_rows, f), jnp.float32) for m, f in FEATURE_DIMS.items()},
    present={m: _spread(part, (num_rows,), bool) for m in FEATURE_DIMS},
  )
  rows = functools.partial(_rows, part)
  window = (section.batch_size, config.max_history)
  epoch = dict(
    items=rows(section.batch_size * config.max_history),
    log_q=rows(section.batch_size * config.max_history, dtype=jnp.float32),
    groups=(dict(history=rows(*window), targets=rows(*window)),),
  )
  return *_compile(part, train_step, state, epoch, constants), 1


def generator_step(num_items: int, model: int):
  """The same of stage two, with the bidirectional encoder."""
  part = partition.Partition(model=model, num_devices=NUM_DEVICES)
  config = workload.load_config("beauty")
  section = config.generator
  shape = workload.FULL
  module = workload.make_model(shape, similarity=True, dropout_rate=section.model.dropout_rate)
  tx = optim.make_optimizer(num_steps=1_000_000, **section.optimizer)
  train_step = train_state.make_train_step(
    functools.partial(generator_trainer.loss_fn, module),
    tx,
    split_fn=generator_trainer.with_weights,
  )
  size = (num_items, shape.num_levels, shape.num_signals)
  constants = generate.Catalogue(
    _spread(part, size, jnp.int32),
    _spread(part, (num_items, shape.num_signals * shape.code_dim), jnp.float32),
  )
  state = jax.eval_shape(
    lambda key, catalogue: train_state.create(
      generator_trainer.init_params(module, key, catalogue, shape.max_history), tx
    ),
    jax.random.key(0),
    constants,
  )
  num_micro = section.batch_size // section.micro_batch_size
  rows = functools.partial(_rows, part, num_micro=num_micro)
  groups = (
    dict(
      history=rows(section.micro_batch_size, shape.max_history),
      targets=rows(section.micro_batch_size, 1),
    ),
  )
  return *_compile(part, train_step, state, groups, constants), num_micro


STAGES = dict(tokenizer=tokenizer_step, generator=generator_step)


def _compile(part: partition.Partition, train_step, state, epoch, constants):
  shape = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
  state = jax.tree.map(shape, state, part.shardings(state))
  chunk = train_state.make_train_chunk(train_step, loop.MAX_CHUNK_STEPS)
  count = jax.ShapeDtypeStruct((), jnp.int32)
  key = jax.eval_shape(lambda: jax.random.key(0, impl="rbg"))
  compiled = part.compile_chunk(chunk, state).lower(state, epoch, count, count, constants, key)
  tables = [
    leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path((state, constants))
    if any(getattr(key, "key", None) in partition.TABLES for key in path) or path[0].idx == 1
  ]
  return compiled.compile(), sum(map(_bytes_of_a_device, tables))


def _bytes_of_a_device(x: jax.ShapeDtypeStruct) -> int:
  return math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize


def _spread(part: partition.Partition, shape: tuple[int, ...], dtype: Any):
  """A table, shared over the axis `model` of the mesh."""
  spec = PartitionSpec(partition.MODEL)
  return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(part.replicated.mesh, spec))


def _rows(part: partition.Partition, *shape: int, num_micro: int = 1, dtype: Any = jnp.int32):
  """An epoch's rows, shared over the axis `data` of the mesh."""
  sharding = NamedSharding(part.replicated.mesh, PartitionSpec(None, None, partition.DATA))
  shape = (STEPS_PER_EPOCH, num_micro, *shape)
  return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


if __name__ == "__main__":
  jax.config.update("jax_num_cpu_devices", NUM_DEVICES)
  sys.exit(harness.main(run, __doc__))

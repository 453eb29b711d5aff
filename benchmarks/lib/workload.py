"""What several benchmarks measure: the generator of their shape, random data for it, its steps.

Speed does not depend on what a model has learnt, so codes, vectors, histories and parameters are
random. Steps are those of the trainers: their losses, optimizer, micro-batches and jitted loop.
"""

import concurrent.futures
import functools
import importlib
import multiprocessing
import pathlib
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import config_dict

from bbqrec_jax import loop, optim, partition, train_state
from bbqrec_jax.data import batches
from bbqrec_jax.data.dataset import Dataset
from bbqrec_jax.decoding import generate
from bbqrec_jax.models import generator
from bbqrec_jax.trainers import generator as generator_trainer
from bbqrec_jax.trainers import item_codes
from bbqrec_jax.trainers import ranker as ranker_trainer
from bbqrec_jax.trainers import tokenizer as tokenizer_trainer

ROOT = pathlib.Path(__file__).resolve().parents[2]
# AdamW; Hugging Face's side is given the same.
OPTIMIZER = dict(learning_rate=3e-4, weight_decay=0.035, clip_norm=1.0)
MICRO_BATCH_SIZE = 64  # configs/common.py's.


class Shape(NamedTuple):
  """Sizes of a catalogue and of an encoder-decoder."""

  num_items: int = 12_000  # I.
  max_history: int = 20  # T.
  num_levels: int = 3  # L.
  num_signals: int = 3  # M.
  codebook_size: int = 256  # N.
  code_dim: int = 128  # D.
  model_dim: int = 128
  num_heads: int = 4
  head_dim: int = 32
  ff_dim: int = 512
  num_layers: int = 4  # Of the encoder, and of the decoder.


FULL = Shape()
QUICK = Shape(
  num_items=211, max_history=5, codebook_size=17, code_dim=6, model_dim=16, num_heads=2,
  head_dim=8, ff_dim=24, num_layers=1,
)  # fmt: skip


def load_config(name: str, arg: str = "") -> config_dict.FrozenConfigDict:
  """configs/<name>.py with what would stand behind the colon."""
  if str(ROOT) not in sys.path:  # Configs import each other from there.
    sys.path.append(str(ROOT))
  config = importlib.import_module(f"configs.{name}").get_config(arg)
  return config_dict.FrozenConfigDict(config)


def make_model(shape: Shape, *, similarity: bool, dropout_rate: float) -> generator.Model:
  """The paper's generator (bidirectional encoder) in this shape."""
  return generator.Model(
    num_levels=shape.num_levels,
    codebook_size=shape.codebook_size,
    num_signals=shape.num_signals,
    similarity=similarity,
    code_dim=shape.code_dim,
    model_dim=shape.model_dim,
    num_heads=shape.num_heads,
    head_dim=shape.head_dim,
    ff_dim=shape.ff_dim,
    num_encoder_layers=shape.num_layers,
    num_decoder_layers=shape.num_layers,
    dropout_rate=dropout_rate,
  )


def make_catalogue(shape: Shape, seed: int = 0) -> generate.Catalogue:
  """Items with codes [I, L, M] uniform in [0, N), and normal vectors [I, M * D]."""
  rng = np.random.default_rng(seed)
  size = (shape.num_items, shape.num_levels, shape.num_signals)
  codes = rng.integers(0, shape.codebook_size, size, np.int32)
  width = shape.num_signals * shape.code_dim
  vectors = rng.standard_normal((shape.num_items, width), np.float32)
  return generate.Catalogue(jnp.asarray(codes), jnp.asarray(vectors))


def make_histories(shape: Shape, num_users: int, seed: int = 1) -> np.ndarray:
  """[num_users, T] int32, of 1 .. T items each, -1 behind the end."""
  rng = np.random.default_rng(seed)
  items = rng.integers(0, shape.num_items, (num_users, shape.max_history))
  lengths = rng.integers(1, shape.max_history + 1, (num_users, 1))
  return np.where(np.arange(shape.max_history) < lengths, items, -1).astype(np.int32)


def make_batches(
  histories: np.ndarray,
  num_targets: int,
  batch_size: int,
  micro_batch_size: int = MICRO_BATCH_SIZE,
) -> batches.Batches:
  """Histories [E, T], -1 behind the end, as Batches of the generator, all padded to T.

  Args:
    num_targets: T for a target behind every item, 1 for one behind the last.
  """
  lengths = (histories >= 0).sum(axis=1)
  starts = np.arange(len(histories)) * (histories.shape[1] + 1)
  items = np.pad(histories, ((0, 0), (0, 1)), constant_values=0)
  return batches.Batches(
    np.maximum(items, 0).reshape(-1),
    starts,
    starts + lengths,
    batch_size=batch_size,
    lengths=(histories.shape[1],),
    seed=0,
    every_target=num_targets > 1,
    micro_batch_size=micro_batch_size,
  )


def init_params(model: generator.Model, catalogue: generate.Catalogue, max_history: int):
  """Random parameters of a generator."""
  return generator_trainer.init_params(model, _init_key(), catalogue, max_history)


def _init_key() -> jax.Array:
  """Of the generator whose draws compile in half the time."""
  return jax.random.key(0, impl="unsafe_rbg")


def generator_steps(
  model: generator.Model,
  params,
  catalogue: generate.Catalogue,
  groups: tuple[dict[str, np.ndarray], ...],
  num_steps: int,
) -> Callable[[], Any]:
  """Training of the generator: each call takes num_steps steps of an epoch and waits for them.

  Args:
    groups: an epoch of at least num_steps steps, as batches.Batches.epoch() gives it. Every call
      takes its first steps.
  """
  tx = optim.make_optimizer(num_steps=1_000_000, **OPTIMIZER)
  train_step = train_state.make_train_step(
    functools.partial(generator_trainer.loss_fn, model),
    tx,
    split_fn=generator_trainer.with_weights,
  )
  return _steps(train_step, train_state.create(params, tx), groups, catalogue, num_steps)


def tokenizer_steps(
  section, num_items: int, inputs: dict, epoch: dict, num_steps: int
) -> Callable[[], Any]:
  """The same of the tokenizer, its codebooks random.

  Args:
    section: a config's `tokenizer`.
    inputs: {"features": modality -> [I, F] float32, "present": modality -> [I] bool}.
    epoch: as batches.Batches.epoch_with_distinct_items() gives it.
  """
  dims = {name: x.shape[1] for name, x in inputs["features"].items()}
  model = tokenizer_trainer.make_model(section, num_items=num_items, feature_dims=dims)
  params = item_codes.init_params(model, _init_key())
  tx, train_step = tokenizer_trainer.make_step(section, model, num_steps=1_000_000)
  state = item_codes.init_state(tx, params)
  return _steps(train_step, state, epoch, jax.device_put(inputs), num_steps)


def ranker_steps(config, dataset: Dataset, share: float) -> tuple[Callable[[], Any], int, int]:
  """The same of a system that scores every item, in batches as its trainer makes them.

  Args:
    config: with the stage `ranker`.
    share: of an epoch, in (0, 1], that a call takes.

  Returns:
    (the callable, how many steps it takes, how many an epoch has).
  """
  section = config.ranker
  model = ranker_trainer.make_model(ranker_trainer.STAGE, config, dataset)
  inputs = jax.device_put(ranker_trainer.make_inputs(dataset))
  data = batches.Batches(
    dataset.items,
    *batches.windows(dataset, config.max_history),
    batch_size=section.batch_size,
    lengths=batches.group_lengths(config.max_history, section.length_groups),
    seed=config.seed,
    every_target=True,
    micro_batch_size=section.micro_batch_size,
  )
  params = ranker_trainer.init_params(model, jax.random.key(0), inputs)
  tx = optim.make_optimizer(num_steps=1_000_000, **section.optimizer)
  train_step = train_state.make_train_step(
    functools.partial(ranker_trainer.loss_fn, model, loss=section.loss), tx
  )
  num_steps = max(round(share * data.steps_per_epoch), 1)
  state = train_state.create(params, tx)
  take_steps = _steps(train_step, state, data.epoch(0), inputs, num_steps)
  return take_steps, num_steps, data.steps_per_epoch


def _steps(train_step, state, epoch, constants, num_steps: int) -> Callable[[], Any]:
  epoch = jax.device_put(epoch)
  train_chunk = train_state.make_train_chunk(train_step, max(num_steps, loop.MAX_CHUNK_STEPS))
  part = partition.Partition()
  # Where each call leaves it, so that the second one compiles nothing.
  state = jax.device_put(state, part.shardings(state))
  train_chunk = part.compile_chunk(train_chunk, state)
  key = jax.random.key(0, impl="rbg")  # As in the trainers.

  def take_steps():
    nonlocal state
    state, metrics = train_chunk(state, epoch, 0, num_steps, constants, key)
    return jax.block_until_ready(metrics)

  return take_steps


def in_own_process(fn: Callable, **kwargs) -> Any:
  """What fn(**kwargs) returns in a new interpreter."""
  spawn = multiprocessing.get_context("spawn")
  with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as executor:
    return executor.submit(fn, **kwargs).result()

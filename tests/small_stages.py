"""Stages, small, as their trainers build them: what tests of partitions and processes run.

python -m tests.small_stages STAGE STEPS OUT.npz COORDINATOR NUM_PROCESSES PROCESS_ID
"""

import functools
import sys

import jax
import numpy as np
from ml_collections import config_dict

from bbqrec_jax import optim, partition, train_state
from bbqrec_jax.data import batches, synthetic
from bbqrec_jax.decoding import generate
from bbqrec_jax.models import generator, sasrec_f, tokenizer
from bbqrec_jax.trainers import generator as generator_trainer
from bbqrec_jax.trainers import item_codes
from bbqrec_jax.trainers import ranker as ranker_trainer
from bbqrec_jax.trainers import tokenizer as tokenizer_trainer

NUM_STEPS, BATCH_SIZE, T, D, L, N = 20, 24, 6, 8, 2, 8
OPTIMIZER = dict(learning_rate=1e-3, clip_norm=1.0)


@functools.cache
def dataset():
  return synthetic.load(num_users=120, num_items=150, text_dim=7, image_dim=5)


class Stage:
  """What a stage's trainer builds, small; see those below."""

  def __init__(self, layout, dropout_rate, *, num_lengths=1, micro_batch_size=0, dtype="float32"):
    self.dtype = dtype
    self.partition = partition.Partition(**layout)
    self.dropout_rate = dropout_rate
    examples = batches.windows(dataset(), T)
    self.batches = batches.Batches(
      dataset().items,
      *examples,
      batch_size=BATCH_SIZE,
      lengths=batches.group_lengths(T, num_lengths),
      seed=0,
      every_target=True,
      micro_batch_size=micro_batch_size,
      row_multiple=self.partition.row_multiple,
      share=self.partition.share,
    )

  def run(self, num_steps=NUM_STEPS):
    """The state and the metrics of every step."""
    train_step, state, constants, epoch_fn = self.build()
    chunk = train_state.make_train_chunk(train_step, num_steps)
    chunk = self.partition.compile_chunk(chunk, state)
    key = self.partition.replicate(jax.random.key(1, impl="rbg"))
    collected = []
    for epoch in range(-(-num_steps // self.batches.steps_per_epoch)):
      done = epoch * self.batches.steps_per_epoch
      count = min(self.batches.steps_per_epoch, num_steps - done)
      epoch = self.partition.place_epoch(epoch_fn(epoch))
      state, metrics = chunk(state, epoch, 0, count, constants, key)
      collected.append({name: np.asarray(x)[:count] for name, x in metrics.items()})
    metrics = {name: np.concatenate([c[name] for c in collected]) for name in collected[0]}
    return partition.fetch(state), metrics


class Tokenizer(Stage):
  def build(self):
    features = {name: f.values.astype(np.float32) for name, f in dataset().features.items()}
    model = tokenizer.Model(
      num_items=dataset().num_items,
      feature_dims={name: x.shape[1] for name, x in features.items()},
      latent_dim=D,
      num_levels=L,
      codebook_size=N,
      hidden_dims=(12,),
      sequence_kwargs=dict(width=8, num_layers=1, max_history=T),
      dropout_rate=self.dropout_rate,
      dtype=self.dtype,
    )
    section = config_dict.ConfigDict(
      dict(
        recon_weights=dict(text=1.0, image=1.0),
        commitment_weight=0.25,
        rec_weight=1.0,
        mim_weight=1.0,
        temperature=0.1,
        logq_correction=True,
        revive_steps=3,
        club_lr_scale=5.0,
        optimizer=OPTIMIZER,
      )
    )
    tx, train_step = tokenizer_trainer.make_step(section, model, 100, self.partition.axis_name)
    params = self.partition.init(
      functools.partial(item_codes.init_params, model),
      self.partition.replicate(jax.random.key(0)),
    )
    init = functools.partial(item_codes.init_state, tx)
    present = {name: f.present for name, f in dataset().features.items()}
    constants = self.partition.place_tables(dict(features=features, present=present))
    epoch_fn = lambda epoch: self.batches.epoch_with_distinct_items(epoch, dataset().num_items)
    return train_step, self.partition.init(init, params), constants, epoch_fn


class Generator(Stage):
  def build(self):
    rng = np.random.default_rng(0)
    model = generator.Model(
      num_levels=L,
      codebook_size=N,
      num_signals=2,
      num_buckets=10,
      code_dim=D,
      model_dim=16,
      num_heads=2,
      head_dim=8,
      ff_dim=32,
      num_encoder_layers=1,
      num_decoder_layers=1,
      dropout_rate=self.dropout_rate,
      encoder="causal",
      dtype=self.dtype,
    )
    catalogue = self.partition.place_tables(
      generate.Catalogue(
        rng.integers(0, N, (dataset().num_items, L, 2), np.int32),
        rng.standard_normal((dataset().num_items, 2 * D), np.float32),
      )
    )
    tx = optim.make_optimizer(num_steps=100, **OPTIMIZER)
    axis_name = self.partition.axis_name
    train_step = train_state.make_train_step(
      functools.partial(generator_trainer.loss_fn, model, axis_name=axis_name),
      tx,
      split_fn=functools.partial(generator_trainer.with_weights, axis_name=axis_name),
      axis_name=axis_name,
    )
    params = self.partition.init(
      lambda key, catalogue: generator_trainer.init_params(model, key, catalogue, T),
      self.partition.replicate(jax.random.key(0)),
      catalogue,
    )
    state = self.partition.init(lambda params: train_state.create(params, tx), params)
    return train_step, state, catalogue, self.batches.epoch


class Ranker(Stage):
  def build(self):
    inputs = self.partition.place_tables(ranker_trainer.make_inputs(dataset()))
    model = sasrec_f.Model(
      num_items=dataset().num_items,
      feature_dims={name: x.shape[1] for name, x in inputs["features"].items()},
      max_history=T,
      width=D,
      num_layers=1,
      mlp_dim=12,
      dropout_rate=self.dropout_rate,
      dtype=self.dtype,
    )
    tx = optim.make_optimizer(num_steps=100, **OPTIMIZER)
    axis_name = self.partition.axis_name
    train_step = train_state.make_train_step(
      functools.partial(ranker_trainer.loss_fn, model, loss="softmax", axis_name=axis_name),
      tx,
      axis_name=axis_name,
    )
    params = self.partition.init(
      functools.partial(ranker_trainer.init_params, model),
      self.partition.replicate(jax.random.key(0)),
      inputs,
    )
    state = self.partition.init(lambda params: train_state.create(params, tx), params)
    return train_step, state, inputs, self.batches.epoch


STAGES = dict(tokenizer=Tokenizer, generator=Generator, ranker=Ranker)


def main(stage: str, num_steps: str, out: str, *which: str) -> None:
  """Runs a stage as one of several processes; each writes what it has."""
  coordinator, num_processes, process_id = which
  partition.initialize(
    coordinator=coordinator, num_processes=int(num_processes), process_id=int(process_id)
  )
  state, metrics = STAGES[stage]({}, 0.2, num_lengths=2).run(int(num_steps))
  leaves = jax.tree_util.tree_leaves_with_path(state.params)
  arrays = {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
  np.savez(out, **arrays, **{f"metric {name}": x for name, x in metrics.items()})


if __name__ == "__main__":
  main(*sys.argv[1:])

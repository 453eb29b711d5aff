"""A training step of our generator beside Hugging Face's T5 of the same shape, by batch size.

Histories of 20 items, 3 levels each, all padded to 60 tokens; one target each; AdamW, float32,
dropout 0.1, as many threads on both sides. `train_vs_hf_b*` is T5's time over ours with plain
attention, `train_sim_vs_hf_b*` over the whole BBQRec step (similarity-enhanced attention) against
the same plain T5. Ours predicts three codes a level, T5 one. Needs the extra [bench].

python benchmarks/train_step.py --out=results/benchmarks/train_step.json
"""

import argparse
import sys

import jax
import jax.numpy as jnp
import numpy as np
from lib import harness, workload

from bbqrec_jax.trainers import generator as generator_trainer

DROPOUT_RATE = 0.1
STEPS = {16: 8, 64: 2, 256: 1}  # Batch size -> steps of a round, so that rounds last alike.
PRODUCT_SIZE = 2048  # Of square matrices.


def add_options(parser: argparse.ArgumentParser) -> None:
  harness.add_rounds(parser, default=9)


def run(args: argparse.Namespace) -> dict:
  from lib import hf_t5  # Needs the extra.

  shape = workload.QUICK if args.quick else workload.FULL
  steps = {3: 2} if args.quick else STEPS
  threads = hf_t5.use_all_cpus()
  ratios, others, seconds, gflops = {}, {}, {}, {}
  for batch_size, num_steps in steps.items():
    for dropout_rate in (DROPOUT_RATE, 0.0):
      taken = measure(shape, batch_size, dropout_rate, num_steps, args.rounds)
      case = f"b{batch_size}" if dropout_rate else f"b{batch_size}_without_dropout"
      seconds[case] = harness.summary({name: np.divide(s, num_steps) for name, s in taken.items()})
      gflops[case] = step_gflop(shape, batch_size) / seconds[case]["ours"]["median_s"]
      plain, sim = f"train_vs_hf_{case}", f"train_sim_vs_hf_{case}"
      (ratios if dropout_rate else others)[plain] = harness.ratio(taken["hf"], taken["ours"])
      is_headline = dropout_rate and batch_size == max(steps)
      (ratios if is_headline else others)[sim] = harness.ratio(taken["hf"], taken["ours_sim"])
  return dict(
    ratios=ratios,
    details=dict(
      shape=shape._asdict(),
      optimizer=workload.OPTIMIZER,
      dropout_rate=DROPOUT_RATE,
      micro_batch_size=workload.MICRO_BATCH_SIZE,
      torch_threads=threads,
      seconds_per_step=seconds,
      gflop_per_second=gflops,
      gflop_per_second_of_a_large_product=product_gflops(args.rounds),
      other_ratios=others,
    ),
  )


def measure(
  shape: workload.Shape, batch_size: int, dropout_rate: float, num_steps: int, num_rounds: int
) -> dict[str, list[float]]:
  """Seconds of num_steps steps: "hf", "ours", "ours_sim" -> one figure a round."""
  from lib import hf_t5

  catalogue = workload.make_catalogue(shape)
  histories = workload.make_histories(shape, batch_size)
  targets = np.random.default_rng(2).integers(0, shape.num_items, (batch_size, 1), np.int32)
  repeated = np.tile(histories, (num_steps, 1))
  groups = workload.make_batches(repeated, num_targets=1, batch_size=batch_size).epoch(0)

  def ours(similarity):
    model = workload.make_model(shape, similarity=similarity, dropout_rate=dropout_rate)
    params = workload.init_params(model, catalogue, shape.max_history)
    return workload.generator_steps(model, params, catalogue, groups, num_steps)

  codes = np.asarray(catalogue.codes)
  labels = hf_t5.item_tokens(shape, codes, 1)[targets[:, 0]]
  hf = hf_t5.train_steps(
    hf_t5.make_model(shape, num_signals=1, dropout_rate=dropout_rate),
    hf_t5.encoder_inputs(shape, codes, histories),
    hf_t5.torch.from_numpy(labels),
    num_steps,
  )
  return harness.rounds(dict(hf=hf, ours=ours(False), ours_sim=ours(True)), num_rounds)


def step_gflop(shape: workload.Shape, batch_size: int) -> float:
  """Billions of operations of a step with plain attention, as XLA counts them; without AdamW's."""
  catalogue = workload.make_catalogue(shape)
  model = workload.make_model(shape, similarity=False, dropout_rate=0.0)
  params = workload.init_params(model, catalogue, shape.max_history)
  batch = dict(
    history=jnp.zeros((batch_size, shape.max_history), jnp.int32),
    targets=jnp.zeros((batch_size, 1), jnp.int32),
    weights=jnp.ones((batch_size, 1)),
  )

  @jax.jit
  def gradients(params):
    key = jax.random.key(0)  # Without dropout nothing is drawn.
    loss = lambda params: generator_trainer.loss_fn(model, params, batch, catalogue, key)[0]
    return jax.grad(loss)(params)

  return gradients.lower(params).cost_analysis()["flops"] / 1e9


def product_gflops(num_rounds: int) -> float:
  """Billions of operations a second of a product of large float32 matrices."""
  matrix = jnp.ones((PRODUCT_SIZE, PRODUCT_SIZE))
  multiply = jax.jit(jnp.matmul)
  taken = harness.rounds(dict(product=lambda: multiply(matrix, matrix)), num_rounds)
  return 2 * PRODUCT_SIZE**3 / 1e9 / harness.summary(taken)["product"]["median_s"]


if __name__ == "__main__":
  sys.exit(harness.main(run, __doc__, add_options))

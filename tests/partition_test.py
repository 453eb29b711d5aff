"""All stages give the same numbers however their devices are laid out."""

import functools
import importlib
import os
import pathlib
import socket
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bbqrec_jax import partition
from bbqrec_jax.errors import UserError
from bbqrec_jax.evaluators import ranking
from tests.small_stages import NUM_STEPS, STAGES, T, dataset

ONE = dict(num_devices=1)
# Stage one takes longer to compile.
MOSTLY_STAGE_TWO = [
  "generator",
  pytest.param("tokenizer", marks=pytest.mark.slow),
  pytest.param("ranker", marks=pytest.mark.slow),
]


@functools.cache
def alone(stage, dropout_rate, num_lengths=1):
  return STAGES[stage](ONE, dropout_rate, num_lengths=num_lengths).run()


def check(actual, expected):
  chex.assert_trees_all_close(actual[1], expected[1], rtol=1e-5, atol=1e-6)
  (params, expected_params) = actual[0].params, expected[0].params
  for (path, x), y in zip(
    jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(expected_params), strict=True
  ):
    name = jax.tree_util.keystr(path)
    if "['key']['bias']" in name:
      continue  # No softmax depends on it: its gradient is rounding, which Adam blows up.
    error = np.linalg.norm(x - y) / np.linalg.norm(y)
    assert error < 1e-5, (name, error)


@pytest.mark.parametrize(
  "stage",
  ["tokenizer", *[pytest.param(s, marks=pytest.mark.slow) for s in ("generator", "ranker")]],
)
@pytest.mark.parametrize(
  "layout",
  [
    dict(num_devices=8, model=2),
    pytest.param(dict(num_devices=2), marks=pytest.mark.slow),
    pytest.param(dict(num_devices=8), marks=pytest.mark.slow),
    pytest.param(dict(num_devices=8, model=8), marks=pytest.mark.slow),
  ],
  ids=lambda layout: "x".join(map(str, layout.values())),
)
def test_devices_change_nothing(stage, layout):
  check(STAGES[stage](layout, 0.2).run(), alone(stage, 0.2))


@pytest.mark.parametrize("stage", MOSTLY_STAGE_TWO)
def test_pmap_equals_jit(stage):
  layout = dict(mode="pmap", num_devices=2)
  check(STAGES[stage](layout, 0.0).run(), alone(stage, 0.0))


@pytest.mark.parametrize("stage", MOSTLY_STAGE_TWO)
@pytest.mark.parametrize(
  "layout",
  [ONE, pytest.param(dict(mode="pmap", num_devices=2), marks=pytest.mark.slow)],
  ids=["jit", "pmap"],
)
def test_micro_batches_change_nothing(stage, layout):
  check(STAGES[stage](layout, 0.0, micro_batch_size=6).run(), alone(stage, 0.0))


@pytest.mark.parametrize("stage", MOSTLY_STAGE_TWO)
def test_bfloat16_products_keep_parameters_and_the_loss(stage):
  state, metrics = STAGES[stage](ONE, 0.0, dtype="bfloat16").run()
  expected, expected_metrics = alone(stage, 0.0)
  chex.assert_trees_all_equal_dtypes((state, metrics), (expected, expected_metrics))
  difference = np.abs(metrics["loss"] - expected_metrics["loss"])
  assert 0 < difference.max() < 0.03 * expected_metrics["loss"].max()


@pytest.mark.parametrize("stage", MOSTLY_STAGE_TWO)
def test_processes_change_nothing(stage, tmp_path):
  with socket.socket() as probe:  # A free port; nobody is likely to take it meanwhile.
    probe.bind(("127.0.0.1", 0))
    coordinator = f"127.0.0.1:{probe.getsockname()[1]}"
  command = [sys.executable, "-m", "tests.small_stages", stage, str(NUM_STEPS)]
  env = os.environ | dict(JAX_PLATFORMS="cpu", JAX_NUM_CPU_DEVICES="1")
  processes = [
    subprocess.Popen([*command, tmp_path / f"{n}.npz", coordinator, "2", str(n)], env=env)
    for n in range(2)
  ]
  try:
    assert [process.wait(timeout=200) for process in processes] == [0, 0]
  finally:
    for process in processes:
      process.kill()
  first, second = (dict(np.load(tmp_path / f"{n}.npz")) for n in range(2))
  chex.assert_trees_all_equal(first, second)
  state, metrics = alone(stage, 0.2, 2)  # Of two lengths, which all take in one order.
  leaves = jax.tree_util.tree_leaves_with_path(state.params)
  params = state.params
  found = jax.tree.unflatten(
    jax.tree.structure(params), [first[jax.tree_util.keystr(path)] for path, _ in leaves]
  )
  found_metrics = {name: first[f"metric {name}"] for name in metrics}
  check((state._replace(params=found), found_metrics), (state, metrics))


@pytest.mark.parametrize(
  ("layout", "message"),
  [
    (dict(mode="tpu"), "parallel.mode='tpu' must be one of jit, pmap"),
    (dict(model=3), "parallel.model=3 must divide 128 and the number of devices, 8"),
    (dict(model=0), "parallel.model=0 must divide"),
    (dict(mode="pmap", model=2), "'pmap' shares no tables; parallel.model=2 must be 1"),
    (dict(num_devices=9), "parallel.num_devices=9: there are 8"),
    (dict(num_devices=-1), "parallel.num_devices=-1: there are 8"),
  ],
)
def test_layouts_that_cannot_be_are_refused(layout, message):
  with pytest.raises(UserError, match=message):
    partition.Partition(**layout)


def test_tables_are_shared_and_may_get_rows_of_zeros():
  table = np.arange(30, dtype=np.float32).reshape(10, 3)
  placed = partition.Partition(model=4).place_tables(dict(table=table))["table"]
  np.testing.assert_array_equal(placed, np.pad(table, ((0, 2), (0, 0))))
  assert {shard.data.shape for shard in placed.addressable_shards} == {(3, 3)}
  np.testing.assert_array_equal(partition.Partition(num_devices=1).place_tables(table), table)


def test_devices_share_the_users_of_an_evaluation():
  table = np.random.default_rng(0).normal(size=(dataset().num_items, 3)).astype(np.float32)

  def rank_fn(table, history, seen, targets):
    scores = table[jnp.maximum(history[:, -1], 0)] @ table.T
    return ranking.by_scores(scores, seen, targets)

  ranks = []
  for layout in (ONE, dict(num_devices=8)):
    part = partition.Partition(**layout)
    evaluator = ranking.Evaluator(
      dataset(), split="test", max_history=T, batch_size=11, row_multiple=part.row_multiple
    )
    fn = functools.partial(ranking.make_rank_fn(rank_fn, part), part.place_tables(table))
    ranks.append(evaluator.run(fn))
  chex.assert_trees_all_equal(*ranks)


@pytest.mark.parametrize("stage", ["tokenizer", pytest.param("generator", marks=pytest.mark.slow)])
def test_a_step_of_ten_million_items_holds_no_table_whole(stage, monkeypatch):
  """Compiled for abstract arrays, on 2 x 4 devices: nothing of that size is made."""
  monkeypatch.syspath_prepend(str(pathlib.Path(__file__).resolve().parents[1] / "benchmarks"))
  scale = importlib.import_module("scale")
  num_items, model = 10_000_000, 4
  compiled, table_bytes, _ = scale.STAGES[stage](num_items, model)
  width = dict(tokenizer=max(scale.FEATURE_DIMS.values()), generator=3 * 128)[stage]
  assert scale.largest_array(compiled) == num_items // model * width  # A device's share of one.
  memory = compiled.memory_analysis()
  assert table_bytes < memory.argument_size_in_bytes < table_bytes + 2**30
  # Of stage one's id embeddings a device holds its share of the gradient and of Adam's update.
  own_update = dict(tokenizer=2 * num_items // model * 128 * 4, generator=0)[stage]
  assert memory.temp_size_in_bytes < own_update + 2**30

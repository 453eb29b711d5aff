"""Forward passes of the systems that score every item, against NumPy with the same weights."""

import functools

import jax
import numpy as np
import pytest

from bbqrec_jax.errors import UserError
from bbqrec_jax.models import bert4rec, gru4rec, gru4rec_f, layers, nova_bert, sasrec, sasrec_f
from tests.reference import rankers as reference

I, T, E = 11, 5, 8
DIMS = dict(text=7, image=3)
ROWS = layers.table_rows(I)
# Without repetitions, so that an item tells its position.
HISTORY = np.array([[4, 2, 7, 9, 1], [3, 8, -1, -1, -1], [10, -1, -1, -1, -1]])
TARGETS = np.array([[2, 7, 9, 1, 5], [8, 0, -1, -1, -1], [6, -1, -1, -1, -1]])
SEQUENCES = [[*history[:1], *targets[targets >= 0]] for history, targets in zip(HISTORY, TARGETS)]


@pytest.fixture(scope="module")
def inputs():
  rng = np.random.default_rng(0)
  present = {name: rng.uniform(size=ROWS) < 0.7 for name in DIMS}
  features = {
    name: np.where(present[name][:, None], rng.normal(size=(ROWS, dim)), 0).astype(np.float32)
    for name, dim in DIMS.items()
  }
  return dict(features=features, present=present)


def build(module, inputs, dims=DIMS, **kwargs):
  """(forward, parameters of which none is zero); forward(params, inputs) is compiled once.

  forward gives (Items, Predictions, [B, E] of represent()) of HISTORY.
  """
  model = module.Model(num_items=I, feature_dims=dims, max_history=T, width=E, **kwargs)
  keys = dict(params=jax.random.key(0), mask=jax.random.key(1))
  shapes = jax.eval_shape(model.init, keys, HISTORY, TARGETS, inputs)["params"]
  rng = np.random.default_rng(1)
  params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32) / 2, shapes)

  @jax.jit
  def forward(params, inputs):
    apply = functools.partial(model.apply, {"params": params})
    items = apply(inputs, method="items")
    rngs = dict(mask=jax.random.key(2))
    predicted = apply(items, HISTORY, TARGETS, inputs, True, method="predictions", rngs=rngs)
    return items, predicted, apply(items, HISTORY, inputs, method="represent")

  return forward, params


def check_left_to_right(forward, params, inputs, expected):
  """expected: items of one history -> hidden states, [n, E]. Returns the item vectors."""
  items, predicted, represented = forward(params, inputs)
  np.testing.assert_array_equal(predicted.targets, TARGETS)
  for row, history in enumerate(HISTORY):
    hidden = expected(history[history >= 0])
    np.testing.assert_allclose(predicted.hidden[row, : len(hidden)], hidden, atol=2e-5)
    np.testing.assert_allclose(represented[row], hidden[-1], atol=2e-5)
  return items.vectors


def test_sasrec(inputs):
  forward, params = build(sasrec, inputs, num_heads=2, mlp_dim=9)
  table = np.asarray(params["id_embedding"], np.float64)
  vectors = check_left_to_right(
    forward, params, inputs, lambda items: reference.transformer(params["encoder"], table[items])
  )
  np.testing.assert_array_equal(vectors, params["id_embedding"])


def test_gru4rec(inputs):
  forward, params = build(gru4rec, inputs, hidden_dim=4, num_layers=2)
  table = np.asarray(params["id_embedding"], np.float64)

  def expected(items):
    x = table[items]
    for layer in range(2):
      x = reference.gru(params[f"units_{layer}"]["cell"], x)
    return reference.dense(x, params["out"])

  check_left_to_right(forward, params, inputs, expected)


@pytest.mark.parametrize("module", [sasrec_f, gru4rec_f])
def test_fused_vectors_go_in_and_ids_alone_are_scored(inputs, module):
  forward, params = build(module, inputs, num_layers=1)
  ids = np.asarray(params["id_embedding"], np.float64)
  fused = np.array(
    [
      reference.fuse(
        params["fusion"],
        ids[item],
        {name: x[item] for name, x in inputs["features"].items()},
        {name: x[item] for name, x in inputs["present"].items()},
      )
      for item in range(I)
    ]
  )
  assert not all(x[:I].all() for x in inputs["present"].values())

  def expected(items):
    if module is sasrec_f:
      return reference.transformer(params["encoder"], fused[items])
    return reference.dense(reference.gru(params["units_0"]["cell"], fused[items]), params["out"])

  vectors = check_left_to_right(forward, params, inputs, expected)
  np.testing.assert_array_equal(vectors, params["id_embedding"])


def check_masked(forward, params, inputs, side=None, alone=False):
  """alone: whether of every sequence the last item alone is masked."""
  items, predicted, represented = forward(params, inputs)
  np.testing.assert_array_equal(items.bias, params["item_bias"])
  for row, history in enumerate(HISTORY):
    history = history[history >= 0].tolist()
    hidden = reference.masked_transformer(params, [*history, -1], {len(history)}, side)
    np.testing.assert_allclose(represented[row], hidden[-1], atol=2e-5)
  for hidden, targets, sequence in zip(predicted.hidden, predicted.targets, SEQUENCES):
    asked = targets >= 0
    places = [sequence.index(item) for item in targets[asked]]
    assert len(set(places)) == len(places) > 0
    if alone:
      assert places == [len(sequence) - 1]
    expected = reference.masked_transformer(params, sequence, set(places), side)
    np.testing.assert_allclose(hidden[asked], expected[places], atol=2e-5)


def test_bert4rec(inputs):
  for last_rate in (0.0, 1.0):
    forward, params = build(bert4rec, inputs, num_layers=1, mlp_dim=9, last_rate=last_rate)
    check_masked(forward, params, inputs, alone=last_rate == 1.0)


@pytest.mark.parametrize("module", [sasrec, bert4rec])
def test_kernels_of_transformers_start_at_bert_s_scale(inputs, module):
  model = module.Model(num_items=I, feature_dims={}, max_history=T, width=64)
  keys = dict(params=jax.random.key(0), mask=jax.random.key(1))
  params = model.init(keys, HISTORY, TARGETS, inputs)["params"]
  found = [
    (jax.tree_util.keystr(path), np.std(x))
    for path, x in jax.tree_util.tree_leaves_with_path(params)
    if "kernel" in jax.tree_util.keystr(path) or "embedding" in jax.tree_util.keystr(path)
  ]
  assert len(found) >= 13
  for name, std in found:
    assert abs(std - 0.02) < 0.004, name


def test_nova_bert(inputs):
  forward, params = build(nova_bert, inputs, num_layers=1, last_rate=0.0)

  def side(item):
    return sum(
      reference.norm(
        reference.dense(inputs["features"][name][item], params[f"side_layers_{name}"]),
        params[f"side_norms_{name}"],
      )
      for name in DIMS
      if inputs["present"][name][item]
    ) + np.zeros(E)

  check_masked(forward, params, inputs, side)
  # Without side information it is BERT4Rec.
  plain, _ = build(bert4rec, inputs, num_layers=1)
  shared = {name: x for name, x in params.items() if not name.startswith("side_")}
  for given, same in ((jax.tree.map(np.zeros_like, inputs), True), (inputs, False)):
    _, _, found = forward(params, given)
    _, _, expected = plain(shared, given)
    assert np.array_equal(found, expected) == same


@pytest.mark.parametrize("module", [sasrec_f, gru4rec_f, nova_bert])
def test_systems_with_features_need_some(module):
  model = module.Model(num_items=I, feature_dims={}, max_history=T, width=E)
  with pytest.raises(UserError, match="No item has text or image"):
    nothing = dict(features={}, present={})
    model.init(jax.random.key(0), HISTORY, TARGETS, nothing)


def test_bert4rec_masks_a_share_of_a_sequence_or_one_item():
  num_rows = 400  # Of a full sequence of T + 1 items, and of one of three.
  history = np.tile([HISTORY[0], [0, 1, -1, -1, -1]], (num_rows, 1))
  targets = np.tile([TARGETS[0], [1, 2, -1, -1, -1]], (num_rows, 1))
  model = bert4rec.Model(
    num_items=I, feature_dims={}, max_history=T, width=2, num_layers=0, mask_rate=0.5, last_rate=0.4
  )
  keys = dict(params=jax.random.key(0), mask=jax.random.key(1))
  (_, predicted), _ = jax.jit(model.init_with_output)(keys, history, targets, None)
  sequences = np.concatenate([history[:, :1], targets], axis=1)
  wanted = np.asarray(predicted.targets)
  masked = (sequences[:, :, None] == wanted[:, None, :]) & (wanted[:, None, :] >= 0)
  masked = masked.any(axis=-1)
  alone = masked.sum(axis=1) == 1
  assert abs(alone.mean() - 0.4) < 0.07  # Four standard deviations.
  for first, length, count in ((0, 6, 3), (1, 3, 2)):
    rows, single = masked[first::2], alone[first::2]
    assert rows[single, length - 1].all()
    assert (rows[~single].sum(axis=1) == count).all()
    shares = rows[~single].mean(axis=0)
    np.testing.assert_allclose(shares, (np.arange(6) < length) * count / length, atol=0.13)

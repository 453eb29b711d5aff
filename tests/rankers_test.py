"""Forward passes of the systems that score every item, against NumPy with the same weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bbqrec_jax.errors import UserError
from bbqrec_jax.models import bert4rec, gru4rec, gru4rec_f, layers, nova_bert, sasrec, sasrec_f
from tests.reference import rankers as reference

I, T, E = 11, 5, 6
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


def build(module, inputs, **kwargs):
  """(model, parameters of which none is zero)."""
  model = module.Model(num_items=I, feature_dims=DIMS, max_history=T, width=E, **kwargs)
  keys = dict(params=jax.random.key(0), mask=jax.random.key(1))
  params = model.init(keys, HISTORY, TARGETS, inputs)["params"]
  shift = lambda p: p + 0.3 * jnp.sin(jnp.arange(p.size)).reshape(p.shape)
  return model, jax.tree.map(shift, params)


def apply(model, params, method, *args, **kwargs):
  return model.apply({"params": params}, *args, method=method, **kwargs)


def check_left_to_right(model, params, inputs, expected):
  """expected: items of one history -> hidden states, [n, E]."""
  items = apply(model, params, "items", inputs)
  predicted = apply(model, params, "predictions", items, HISTORY, TARGETS, inputs, True)
  np.testing.assert_array_equal(predicted.targets, TARGETS)
  represented = apply(model, params, "represent", items, HISTORY, inputs)
  for row, history in enumerate(HISTORY):
    hidden = expected(history[history >= 0])
    np.testing.assert_allclose(predicted.hidden[row, : len(hidden)], hidden, atol=2e-5)
    np.testing.assert_allclose(represented[row], hidden[-1], atol=2e-5)


def test_sasrec(inputs):
  model, params = build(sasrec, inputs, num_heads=2, mlp_dim=9)
  table = np.asarray(params["id_embedding"], np.float64)
  np.testing.assert_array_equal(apply(model, params, "items", inputs).vectors, table)
  check_left_to_right(
    model, params, inputs, lambda items: reference.transformer(params["encoder"], table[items])
  )


def test_gru4rec(inputs):
  model, params = build(gru4rec, inputs, hidden_dim=4, num_layers=2)
  table = np.asarray(params["id_embedding"], np.float64)

  def expected(items):
    x = table[items]
    for layer in range(2):
      x = reference.gru(params[f"units_{layer}"]["cell"], x)
    return reference.dense(x, params["out"])

  check_left_to_right(model, params, inputs, expected)


@pytest.mark.parametrize("module", [sasrec_f, gru4rec_f])
def test_fused_vectors_go_in_and_out(inputs, module):
  model, params = build(module, inputs, num_layers=1)
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
  np.testing.assert_allclose(apply(model, params, "items", inputs).vectors[:I], fused, atol=1e-5)

  def expected(items):
    if module is sasrec_f:
      return reference.transformer(params["encoder"], fused[items])
    return reference.dense(reference.gru(params["units_0"]["cell"], fused[items]), params["out"])

  check_left_to_right(model, params, inputs, expected)


def check_masked(model, params, inputs, side=None):
  items = apply(model, params, "items", inputs)
  np.testing.assert_array_equal(items.bias, params["item_bias"])
  represented = apply(model, params, "represent", items, HISTORY, inputs)
  for row, history in enumerate(HISTORY):
    history = history[history >= 0].tolist()
    hidden = reference.masked_transformer(params, [*history, -1], {len(history)}, side)
    np.testing.assert_allclose(represented[row], hidden[-1], atol=2e-5)
  predicted = apply(
    model, params, "predictions", items, HISTORY, TARGETS, inputs, True,
    rngs=dict(mask=jax.random.key(2)),
  )  # fmt: skip
  for hidden, targets, sequence in zip(predicted.hidden, predicted.targets, SEQUENCES):
    asked = targets >= 0
    places = [sequence.index(item) for item in targets[asked]]
    assert len(set(places)) == len(places) > 0
    expected = reference.masked_transformer(params, sequence, set(places), side)
    np.testing.assert_allclose(hidden[asked], expected[places], atol=2e-5)


def test_bert4rec(inputs):
  check_masked(*build(bert4rec, inputs, num_heads=2, mlp_dim=9, last_rate=0.0), inputs)


def test_nova_bert(inputs):
  model, params = build(nova_bert, inputs, num_heads=2, mlp_dim=9)

  def side(item):
    return sum(
      reference.norm(
        reference.dense(inputs["features"][name][item], params[f"side_layers_{name}"]),
        params[f"side_norms_{name}"],
      )
      for name in DIMS
      if inputs["present"][name][item]
    ) + np.zeros(E)

  check_masked(model, params, inputs, side)


def test_nova_bert_without_side_information_is_bert4rec(inputs):
  model, params = build(nova_bert, inputs)
  plain, plain_params = build(bert4rec, inputs)
  shared = {name: params[name] for name in plain_params}
  nothing = jax.tree.map(np.zeros_like, inputs)
  for given, same in ((nothing, True), (inputs, False)):
    items = apply(model, params, "items", given)
    found = apply(model, params, "represent", items, HISTORY, given)
    expected = apply(plain, shared, "represent", items, HISTORY, given)
    assert np.array_equal(found, expected) == same


@pytest.mark.parametrize("module", [sasrec_f, gru4rec_f, nova_bert])
def test_systems_with_features_need_some(module):
  model = module.Model(num_items=I, feature_dims={}, max_history=T, width=E)
  with pytest.raises(UserError, match="No item has text or image"):
    nothing = dict(features={}, present={})
    model.init(jax.random.key(0), HISTORY, TARGETS, nothing)


def masks(last_rate, mask_rate=0.5, num_rows=400):
  """Of many full sequences of T + 1 and of 3 items: which positions are masked."""
  rows = np.array([HISTORY[0], [0, 1, -1, -1, -1]])
  targets = np.array([TARGETS[0], [1, 2, -1, -1, -1]])
  model = bert4rec.Model(
    num_items=I, feature_dims={}, max_history=T, width=2, num_layers=1, mask_rate=mask_rate,
    last_rate=last_rate,
  )  # fmt: skip
  history, targets = np.tile(rows, (num_rows, 1)), np.tile(targets, (num_rows, 1))
  keys = dict(params=jax.random.key(0), mask=jax.random.key(1))
  (_, predicted), _ = model.init_with_output(keys, history, targets, None)
  sequences = np.concatenate([history[:, :1], targets], axis=1)
  wanted = np.asarray(predicted.targets)
  return np.any((sequences[:, :, None] == wanted[:, None, :]) & (wanted[:, None, :] >= 0), axis=-1)


def test_bert4rec_masks_a_share_of_every_sequence():
  masked = masks(last_rate=0.0)
  np.testing.assert_array_equal(masked.sum(axis=1), np.tile([3, 2], 400))  # Half of 6, of 3.
  shares = masked[::2].mean(axis=0)
  np.testing.assert_allclose(shares, 0.5, atol=0.1)  # Four standard deviations.
  np.testing.assert_allclose(masked[1::2, :3].mean(axis=0), 2 / 3, atol=0.1)


def test_bert4rec_masks_the_last_item_alone_in_a_share_of_sequences():
  masked = masks(last_rate=0.5)
  alone = masked.sum(axis=1) == 1
  assert abs(alone.mean() - 0.5) < 0.08
  np.testing.assert_array_equal(
    masked[::2][alone[::2]], np.tile(np.arange(6) == 5, (alone[::2].sum(), 1))
  )
  assert masked[1::2][alone[1::2], 2].all()

"""VQ-Rec: codes of the text, the vectors that they stand for, and the forward pass in NumPy."""

import functools

import jax
import numpy as np
import pytest

from bbqrec_jax.errors import UserError
from bbqrec_jax.models import layers, vq_rec
from tests.reference import rankers as reference

I, T, E, F, S, N = 11, 5, 8, 7, 3, 4
ROWS = layers.table_rows(I)
HISTORY = np.array([[4, 2, 7, 9, 1], [3, 8, -1, -1, -1], [10, -1, -1, -1, -1]])
TARGETS = np.array([[2, 7, 9, 1, 5], [8, 0, -1, -1, -1], [6, -1, -1, -1, -1]])
TAU = 0.5


def make_model(dims=None, **kwargs):
  return vq_rec.Model(
    num_items=I,
    feature_dims=dict(text=F) if dims is None else dims,
    max_history=T,
    num_subspaces=S,
    codebook_size=N,
    opq_iters=2,
    temperature=TAU,
    width=E,
    num_heads=2,
    mlp_dim=9,
    **kwargs,
  )


@pytest.fixture(scope="module")
def inputs():
  rng = np.random.default_rng(0)
  present = (np.arange(ROWS) < I) & (np.arange(ROWS) != 3)
  values = rng.normal(size=(ROWS, F))
  values[8] = values[2]
  features = np.where(present[:, None], values, 0).astype(np.float32)
  inputs = dict(features=dict(text=features), present=dict(text=present))
  return inputs | make_model().prepare(inputs, jax.random.key(0))


def test_equal_texts_have_equal_codes_and_no_text_has_its_own(inputs):
  codes = inputs["codes"]
  assert codes.shape == (ROWS, S) and codes.dtype == np.int32
  without = np.flatnonzero(~inputs["present"]["text"])
  assert 3 in without and len(without) == ROWS - I + 1
  np.testing.assert_array_equal(codes[without], N)
  known = np.delete(codes[:I], 3, axis=0)
  assert known.min() >= 0 and known.max() < N
  np.testing.assert_array_equal(codes[8], codes[2])
  assert len(np.unique(known, axis=0)) > 5  # Ten texts, two of them equal.
  assert make_model(dict(text=2))._subspaces() == 2


def test_forward(inputs):
  model = make_model()
  params = jax.eval_shape(model.init, jax.random.key(0), HISTORY, TARGETS, inputs)["params"]
  assert params["code_embedding"].shape == (S, N + 1, E)
  fill = lambda p: np.sin(np.arange(p.size, dtype=np.float32)).reshape(p.shape)
  params = jax.tree.map(fill, params)

  @jax.jit
  def run(params, inputs):
    apply = functools.partial(model.apply, {"params": params})
    items = apply(inputs, method="items")
    predicted = apply(items, HISTORY, TARGETS, inputs, True, method="predictions")
    return items.vectors, predicted, apply(items, HISTORY, inputs, method="represent")

  vectors, predicted, represented = jax.device_get(run(params, inputs))
  tables = params["code_embedding"].astype(np.float64)
  pooled = np.array(
    [np.mean([tables[s, inputs["codes"][i, s]] for s in range(S)], axis=0) for i in range(ROWS)]
  )
  unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
  np.testing.assert_allclose(vectors, unit(pooled), atol=1e-5)
  np.testing.assert_array_equal(predicted.targets, TARGETS)
  for row, history in enumerate(HISTORY):
    history = history[history >= 0]
    hidden = unit(reference.transformer(params["encoder"], pooled[history])) / TAU
    np.testing.assert_allclose(predicted.hidden[row, : len(hidden)], hidden, atol=2e-5)
    np.testing.assert_allclose(represented[row], hidden[-1], atol=2e-5)


def test_without_text_there_is_nothing_to_make_codes_of():
  with pytest.raises(UserError, match="vq_rec: no item has a text vector"):
    make_model({}).prepare(dict(features={}, present={}), jax.random.key(0))

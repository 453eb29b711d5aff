"""MISSRec: interests, their tokens, the fusion of modalities, and the forward pass in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bbqrec_jax.errors import UserError
from bbqrec_jax.models import layers, missrec
from tests.reference import rankers as reference

I, T, E, Q = 11, 5, 8, 3
DIMS = dict(text=7, image=4)
ROWS = layers.table_rows(I)
# The last has no interests: of item 8 nothing but the id is known.
HISTORY = np.array([[4, 2, 7, 9, 4], [3, 8, 4, -1, -1], [10, -1, -1, -1, -1], [8, 8, -1, -1, -1]])
TAU = 0.5


def unit(x):
  length = np.linalg.norm(x, axis=-1, keepdims=True)
  return np.where(length > 0, x / np.where(length > 0, length, 1.0), 0.0)


def make_model(use_id, dims=DIMS):
  return missrec.Model(
    num_items=I,
    feature_dims=dims,
    max_history=T,
    use_id=use_id,
    num_interests=Q,
    temperature=TAU,
    width=E,
    num_heads=2,
    mlp_dim=9,
  )


@pytest.fixture(scope="module")
def inputs():
  rng = np.random.default_rng(0)
  present = dict(
    text=np.isin(np.arange(ROWS), [0, 1, 2, 3, 4, 5, 9, 10]),
    image=np.isin(np.arange(ROWS), [4, 7]),  # Fewer items than interests asked for.
  )
  features = {
    name: np.where(present[name][:, None], rng.normal(size=(ROWS, dim)), 0).astype(np.float32)
    for name, dim in DIMS.items()
  }
  inputs = dict(features=features, present=present)
  return inputs | make_model(True).prepare(inputs, jax.random.key(0))


def test_an_interest_is_the_nearest_center(inputs):
  for name, dim in DIMS.items():
    centers, interests = inputs[f"centers_{name}"], inputs[f"interests_{name}"]
    assert centers.shape == (min(Q, inputs["present"][name].sum()), dim)
    assert interests.shape == (ROWS,)
    for item, present in enumerate(inputs["present"][name]):
      gaps = ((inputs["features"][name][item] - centers) ** 2).sum(axis=1)
      assert interests[item] == (np.argmin(gaps) if present else -1)
    for interest in range(len(centers)):  # K-means has come to rest: centers are means.
      members = inputs["features"][name][interests == interest]
      np.testing.assert_allclose(centers[interest], members.mean(axis=0), atol=1e-5)


def brute_force_tokens(history, interests):
  """One history: modality after modality, each interest where it comes up first."""
  seen, tokens = set(), []
  for modality in range(interests.shape[1]):
    for item in history:
      token = interests[item, modality] if item >= 0 else -1
      tokens.append(-1 if token in seen else token)
      seen.add(token)
  return tokens


def test_interest_tokens_by_brute_force():
  rng = np.random.default_rng(1)
  interests = rng.integers(-1, 6, size=(13, 3))
  history = rng.integers(0, 13, size=(40, 7))
  history[np.arange(7)[None, :] >= rng.integers(1, 8, size=40)[:, None]] = -1
  found = jax.jit(missrec.interest_tokens)(history, interests)
  np.testing.assert_array_equal(found, [brute_force_tokens(h, interests) for h in history])


def slow_score(h, vectors, use_id, sharpness):
  """One history's score of one candidate, [M', E] of raw vectors, zeros where one is missing."""
  vectors = unit(vectors)
  modal = vectors[:-1] if use_id else vectors
  cosines = np.array([v @ unit(h) for v in modal if v.any()])
  fused = cosines @ reference.softmax(sharpness * cosines) if len(cosines) else 0.0
  if use_id:
    fused = (len(cosines) * fused + vectors[-1] @ unit(h)) / (len(cosines) + 1)
  return fused / TAU


@pytest.mark.parametrize("use_id", [True, False])
@pytest.mark.parametrize("modalities", [1, 2])
def test_scores_fuse_what_a_candidate_has(modalities, use_id):
  rng = np.random.default_rng(2)
  vectors = rng.normal(size=(6, modalities + use_id, E))
  vectors[1, 0] = vectors[2, modalities - 1] = vectors[3, :modalities] = 0.0
  h, bias, own = unit(rng.normal(size=(4, E))), rng.normal(size=6), np.array([5, 3, 1, 2])

  @jax.jit
  def scores(h, vectors, bias):
    items = missrec.Items(vectors, bias, 3.0, None, None, None)
    scorer = make_model(use_id).scorer(items)
    return scorer.items(h, vectors, bias), scorer.rows(h, vectors, bias, own)

  all_items, rows = scores(*map(jnp.float32, (h, unit(vectors), bias)))
  expected = [[slow_score(x, v, use_id, 3.0) for v in vectors] for x in h] + bias
  np.testing.assert_allclose(all_items, expected, atol=1e-5)
  np.testing.assert_allclose(rows, expected[np.arange(4), own], atol=1e-5)


def make_params(use_id, inputs):
  model = make_model(use_id)
  shapes = jax.eval_shape(model.init, jax.random.key(0), HISTORY, HISTORY[:, :1], inputs)
  fill = lambda p: np.sin(1 + np.arange(p.size, dtype=np.float32)).reshape(p.shape)
  return jax.tree.map(fill, shapes["params"])


def test_forward(inputs):
  model, targets, params = make_model(True), HISTORY[:, :1], make_params(True, inputs)
  assert set(params) - set(make_params(False, inputs)) == {"id_embedding"}

  @jax.jit
  def run(params, inputs):
    apply = functools.partial(model.apply, {"params": params})
    items = apply(inputs, method="items")
    return items, apply(items, HISTORY, targets, inputs, True, method="predictions")

  items, predicted = jax.device_get(run(params, inputs))
  np.testing.assert_array_equal(predicted.targets, targets)
  adapt = lambda name, x: reference.dense(np.asarray(x, np.float64), params[f"adapter_{name}"])
  parts = [
    np.where(inputs["present"][name][:, None], adapt(name, inputs["features"][name]), 0.0)
    for name in DIMS
  ]
  vectors = np.stack([*parts, params["id_embedding"].astype(np.float64)], axis=1)
  np.testing.assert_allclose(items.vectors, unit(vectors), atol=1e-5)
  for row, history in enumerate(HISTORY):
    history = history[history >= 0]
    context = []
    for name in DIMS:
      found = inputs[f"interests_{name}"][history]
      for interest in dict.fromkeys(found[found >= 0]):
        context.append(adapt(name, inputs[f"centers_{name}"][interest]))
    # Without interests there is one token of zeros, however long the padding.
    context = np.array(context or [np.zeros(E)])
    context = reference.missrec_block(params["encoder_0"], context)
    x = vectors[history].sum(axis=1) + params["positions"][: len(history)]
    x = reference.norm(x, params["norm"])
    x = reference.missrec_block(params["decoder_0"], x, context)
    np.testing.assert_allclose(predicted.hidden[row, 0], unit(x[-1]), atol=3e-5)


def test_without_features_there_are_no_interests():
  with pytest.raises(UserError, match="missrec: no item has a vector of text or image"):
    make_model(True, {}).prepare(dict(features={}, present={}), jax.random.key(0))

"""Contrastive pre-training: its losses in NumPy, its augmentation, what the ranker gets of it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import config_dict

from bbqrec_jax import checkpoint, losses, main
from bbqrec_jax.models import item_ranker, layers
from bbqrec_jax.trainers import pretrainer, ranker
from configs import missrec

I, E, TAU, WEIGHT = 7, 3, 0.5, 0.25
GROUPS = (
  dict(
    history=np.array([[[4, 2, 6], [3, 5, -1], [4, -1, -1], [-1, -1, -1]]]),
    targets=np.array([[[0], [1], [1], [-1]]]),
  ),
  dict(history=np.array([[[0, 3], [6, 1]]]), targets=np.array([[[1], [5]]])),
)
FIRST, TARGETS = [4, 3, 4, 0, 6], [0, 1, 1, 1, 5]  # Of the sequences that are none of padding.


class Toy:
  """A sequence is its first item, which no augmentation drops."""

  num_items, dtype = I, "float32"
  scorer = staticmethod(lambda items: losses.PRODUCT)

  def apply(self, variables, *args, method, rngs=None):
    table = variables["params"]
    if method == "items":
      return item_ranker.Items(table["vectors"], table["bias"])
    return item_ranker.rows(args[0].vectors, args[1][:, 0])


def make_params():
  rng = np.random.default_rng(0)
  rows = layers.table_rows(I)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  return dict(vectors=draw(rows, E), bias=draw(rows))


def make_loss(axis_name=None):
  return functools.partial(
    pretrainer.loss_fn,
    Toy(),
    temperature=TAU,
    sequence_weight=WEIGHT,
    item_drop_rate=0.5,
    axis_name=axis_name,
  )


def expected_loss():
  table = jax.tree.map(lambda x: np.asarray(x, np.float64), make_params())
  h = table["vectors"][FIRST]
  nll = lambda scores, right: np.log(np.exp(scores).sum()) - scores[right]
  candidates = sorted(set(TARGETS))
  scores = h @ table["vectors"][candidates].T + table["bias"][candidates]
  to_items = np.mean([nll(row, candidates.index(t)) for row, t in zip(scores, TARGETS)])
  to_sequences = np.mean([nll(row, n) for n, row in enumerate(h @ h.T / TAU)])
  return to_items + WEIGHT * to_sequences


def test_the_loss_contrasts_with_the_distinct_targets_and_the_other_sequences():
  loss, (terms, _) = jax.jit(make_loss())(make_params(), GROUPS, None, jax.random.key(0))
  np.testing.assert_allclose(loss, expected_loss(), rtol=1e-5)
  assert set(terms) == {"to_items", "to_sequences"}


def test_devices_that_share_the_rows_contrast_with_those_of_all():
  split = lambda x: x.reshape(x.shape[0], 2, -1, x.shape[2]).swapaxes(0, 1)
  groups = jax.tree.map(split, GROUPS)
  loss_fn = jax.pmap(make_loss("data"), "data", in_axes=(None, 0, None, None))
  loss, _ = loss_fn(make_params(), groups, None, jax.random.key(0))
  np.testing.assert_allclose(loss, [expected_loss()] * 2, rtol=1e-5)


def test_items_are_dropped_in_place_but_the_first():
  history = np.tile([[5, 1, 4, 2, 3], [6, 2, 0, -1, -1], [1, -1, -1, -1, -1]], (2_000, 1))
  words = jnp.array([3, 5], jnp.uint32)
  found = np.asarray(jax.jit(pretrainer.drop_items, static_argnums=2)(history, words, 0.25))
  for before, after in zip(history, found):
    left = after[after >= 0]
    assert np.all(after[len(left) :] == -1) and left[0] == before[0]
    places = [before.tolist().index(item) for item in left]
    assert places == sorted(places)
  for n, share in ((0, 0.75), (1, 0.75), (2, 1.0)):
    possible = max(np.sum(history[n] >= 0) - 1, 1)
    kept = (np.sum(found[n::3] >= 0, axis=1) - (n < 2)).mean() / possible
    assert kept == pytest.approx(share, abs=0.03)


@pytest.mark.slow
def test_the_ranker_starts_from_what_was_best(tmp_path):
  config = missrec.get_config("smoke")
  config.parallel.num_devices = 1
  config.pretrainer.num_epochs = config.ranker.num_epochs = 1
  config.ranker.optimizer.learning_rate = 1e-12  # Adam's steps are as small.
  config = config_dict.FrozenConfigDict(config)
  main.run(config, tmp_path)
  dataset = main.load_dataset(config)
  with np.load(tmp_path / "ranker_prepared.npz") as file:
    inputs = ranker.make_inputs(dataset) | dict(file)
  found = {}
  for stage in config.stages:
    model = ranker.make_model(stage, config, dataset)
    init = functools.partial(ranker.init_params, model)
    template = jax.eval_shape(init, jax.random.key(0), inputs)
    found[stage] = checkpoint.best_params(tmp_path, stage, template)
  assert set(found["ranker"]) - set(found["pretrainer"]) == {"id_embedding"}
  shared = {name: found["ranker"][name] for name in found["pretrainer"]}
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-8), shared, found["pretrainer"]
  )

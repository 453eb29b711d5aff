"""The stage of systems that score every item: its loss, its ranks, its negatives."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bbqrec_jax import losses, validate
from bbqrec_jax.errors import UserError
from bbqrec_jax.models import item_ranker, layers
from bbqrec_jax.trainers import ranker
from configs import bert4rec, item_knn, missrec, sasrec, vq_rec

I, E = 7, 3
GROUPS = (
  dict(  # Two micro-batches of two sequences.
    history=np.array([[[4, 2, 6], [3, 5, -1]], [[1, -1, -1], [-1, -1, -1]]]),
    targets=np.array([[[2, 6, 0], [5, 1, -1]], [[2, -1, -1], [-1, -1, -1]]]),
  ),
  dict(history=np.array([[[0, 3]]]), targets=np.array([[[3, 6]]])),
)
SEQUENCES = (  # (first item, last item, number of targets)
  (4, 0, 3), (3, 1, 2), (1, 2, 1), (0, 6, 2)
)  # fmt: skip


class Toy:
  """Scores by a table; a sequence predicts its last target as often as it has any, up to `most`."""

  num_items, dtype = I, "float32"
  scorer = staticmethod(lambda items: losses.PRODUCT)

  def __init__(self, most):
    self.most = most

  def apply(self, variables, *args, method, rngs=None):
    table = variables["params"]
    if method == "items":
      return item_ranker.Items(table["vectors"], table["bias"])
    items, history, targets = args[:3]
    if method == "represent":
      return item_ranker.last_item(item_ranker.rows(items.vectors, history), history)
    last = jnp.take_along_axis(targets, jnp.maximum(jnp.sum(targets >= 0, 1) - 1, 0)[:, None], 1)
    hidden = item_ranker.rows(items.vectors, history[:, :1])
    repeat = lambda x: jnp.concatenate([x] * self.most, axis=1)
    counts = jnp.arange(self.most)[None, :] < jnp.sum(targets >= 0, axis=1, keepdims=True)
    return item_ranker.Predictions(repeat(hidden), jnp.where(counts, repeat(last), -1))


def params():
  rng = np.random.default_rng(0)
  rows = layers.table_rows(I)
  # What stands behind the items would win everything.
  bias = np.where(np.arange(rows) < I, rng.normal(size=rows), 50.0)
  return dict(vectors=jnp.asarray(rng.normal(size=(rows, E)), jnp.float32), bias=jnp.asarray(bias))


def scores(history_item):
  table = jax.tree.map(lambda x: np.asarray(x, np.float64)[:I], params())
  return table["vectors"] @ table["vectors"][history_item] + table["bias"]


@pytest.mark.parametrize("most", [1, 2, 4])
def test_all_that_is_predicted_weighs_the_same(most):
  loss_fn = functools.partial(ranker.loss_fn, Toy(most), loss="softmax")
  loss, _ = jax.jit(loss_fn)(params(), GROUPS, None, jax.random.key(0))
  terms = []
  for first, last, length in SEQUENCES:
    row = scores(first)
    terms += [np.log(np.exp(row).sum()) - row[last]] * min(length, most)
  np.testing.assert_allclose(loss, np.mean(terms), rtol=1e-5)


def test_the_binary_loss_of_many_draws_nears_its_expectation():
  draw = lambda key: ranker.loss_fn(Toy(1), params(), GROUPS, None, key, loss="bce")[0]
  found = np.mean(jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), 4_000)))
  expected = 0.0
  log_sigmoid = lambda x: -np.log1p(np.exp(-x))
  for sequence in ([4, 2, 6, 0], [3, 5, 1], [1, 2], [0, 3, 6]):
    row = scores(sequence[0])
    negatives = [item for item in range(I) if item not in sequence]
    term = log_sigmoid(row[sequence[-1]]) + np.sum(log_sigmoid(-row[negatives])) / I
    expected -= term / len(SEQUENCES)
  np.testing.assert_allclose(found, expected, rtol=0.03)


def test_ranks_are_among_the_items_alone():
  history, targets = np.array([[4, 2], [3, -1]]), np.array([6, 1])
  table, model = params(), Toy(1)
  items = ranker.catalogue(model, table, None)
  seen = np.array([[4, 2], [3, -1]])
  found = ranker.ranks(model, (table, items, None), history, seen, targets)
  before = [set(np.flatnonzero(scores(last) >= scores(last)[t])) for last, t in ((2, 6), (3, 1))]
  np.testing.assert_array_equal(found.all, [len(items) for items in before])
  np.testing.assert_array_equal(
    found.unseen, [len(items - had) for items, had in zip(before, ({4, 2}, {3}))]
  )


def test_negatives_are_uniform_and_their_own_sequence_is_told():
  group = dict(history=jnp.array([[4, 2], [3, -1]]), targets=jnp.array([[2, 6], [5, -1]]))
  group = jax.tree.map(lambda x: jnp.tile(x, (2_000, 1)), group)
  negatives, allowed = ranker.sample_negatives(jax.random.key(0), group, 3, I)
  chex.assert_shape((negatives, allowed), (4_000, 3))
  shares = np.bincount(np.asarray(negatives).ravel(), minlength=I) / negatives.size
  np.testing.assert_allclose(shares, 1 / I, atol=0.015)
  np.testing.assert_array_equal(allowed[::2], ~np.isin(negatives[::2], [4, 2, 6]))
  np.testing.assert_array_equal(allowed[1::2], ~np.isin(negatives[1::2], [3, 5]))


def test_what_a_model_prepares_is_computed_once(tmp_path):
  path, drawn = tmp_path / "ranker_prepared.npz", []

  class Model:
    def prepare(self, inputs, key):
      drawn.append(jax.random.key_data(key))
      return dict(codes=np.full(2, len(drawn)))

  for _ in range(2):
    np.testing.assert_array_equal(ranker.prepared(Model(), {}, path, seed=3)["codes"], [1, 1])
  path.write_bytes(path.read_bytes()[:40])
  with pytest.raises(UserError, match=r"ranker_prepared\.npz cannot be read .*remove the workdir"):
    ranker.prepared(Model(), {}, path, seed=3)
  assert len(drawn) == 1
  ranker.prepared(Model(), {}, tmp_path / "pretrainer_prepared.npz", seed=3)
  np.testing.assert_array_equal(drawn[0], drawn[1])  # Of one run, whatever the stage.


@pytest.mark.parametrize(
  ("config", "changes", "said"),
  [
    (sasrec, {"ranker.loss": "hinge"}, "ranker.loss='hinge' must be one of softmax, bce"),
    (sasrec, {"ranker.model_name": "popularity"}, "no model of this stage; it has no predictions"),
    (sasrec, {"ranker.model_name": "sasrek"}, "did you mean 'sasrec'?"),
    (sasrec, {"ranker.model.num_heads": 3}, "ranker.model.width=128 must be a multiple of 3 heads"),
    (sasrec, {"ranker.model.mask_rate": 0.5}, "ranker.model has no field 'mask_rate'"),
    (sasrec, {"ranker.model.num_items": 5}, "ranker.model has no field 'num_items'"),
    (sasrec, {"ranker.model.dropout_rate": 1.0}, "ranker.model.dropout_rate=1.0 must be"),
    (sasrec, {"ranker.monitor": "loss"}, "ranker.monitor='loss' must be one of recall@5"),
    (sasrec, {"num_levels": 3}, "has no field 'num_levels'"),
    (sasrec, {"stages": ("ranker", "counts")}, "counts is missing in the config."),
    (bert4rec, {"ranker.model.mask_rate": 0.0}, "ranker.model.mask_rate=0.0 must be"),
    (vq_rec, {"ranker.model.codebook_size": 1}, "ranker.model.codebook_size=1 must be"),
    (vq_rec, {"ranker.model.temperature": 0}, "ranker.model.temperature=0 must be"),
    (vq_rec, {"ranker.init_from": "pretrainer"}, "must have it before"),
    (vq_rec, {"ranker.init_from": "tokenizer"}, "ranker.init_from='tokenizer' must be one of"),
    (missrec, {"stages": ("ranker", "pretrainer")}, "must have it before"),
    (missrec, {"pretrainer.model.width": 64}, "they differ in width."),
    (missrec, {"pretrainer.model.num_heads": 3}, "pretrainer.model.width=128 must be a multiple"),
    (missrec, {"pretrainer.micro_batch_size": 8}, "pretrainer.micro_batch_size=8 must be one of 0"),
    (missrec, {"pretrainer.item_drop_rate": 1.0}, "pretrainer.item_drop_rate=1.0 must be"),
    (missrec, {"pretrainer.model_name": "sasrec"}, "no model of this stage; it has no sequence"),
    (item_knn, {"counts.model.num_neighbours": 0}, "counts.model.num_neighbours=0 must be"),
    (item_knn, {"counts.model_name": "sasrec"}, "no model of this stage; it has no scores"),
    (item_knn, {"counts.model.width": 5}, "counts.model has no field 'width'"),
    (item_knn, {"counts.batch_size": 5}, "counts has no field 'batch_size'"),
  ],
)
def test_configs_that_cannot_work_are_refused(config, changes, said):
  tree = config.get_config().to_dict()
  validate.check_config(tree)
  for name, value in changes.items():
    *path, last = name.split(".")
    section = tree
    for key in path:
      section = section[key]
    section[last] = value
  with pytest.raises(UserError, match=said):
    validate.check_config(tree)

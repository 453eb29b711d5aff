import numpy as np
import pytest

from bbqrec_jax.data import synthetic
from bbqrec_jax.data.dataset import histories, train_counts
from bbqrec_jax.errors import UserError


@pytest.fixture(scope="module")
def default():
  return synthetic.generate()


def recall_at_10(scores, target):
  rank = (scores > scores[np.arange(len(target)), target][:, None]).sum(axis=1)
  return (rank < 10).mean()


def test_the_seed_decides_everything():
  kwargs = dict(num_users=53, num_items=37, mean_length=7.0)
  first = synthetic.load(seed=1, **kwargs)
  assert first.fingerprint == synthetic.load(seed=1, **kwargs).fingerprint
  assert first.fingerprint != synthetic.load(seed=2, **kwargs).fingerprint
  text_only = synthetic.load(seed=1, modalities=("text",), **kwargs)
  assert list(text_only.features) == ["text"]
  np.testing.assert_array_equal(text_only.items, first.items)
  np.testing.assert_array_equal(text_only.features["text"].values, first.features["text"].values)


@pytest.mark.parametrize("modality", ["text", "image"])
def test_features_are_behavior_and_nuisance_mixed(default, modality):
  dataset, truth = default
  feature, drawn = dataset.features[modality], truth.modalities[modality]
  clean = truth.behavior @ drawn.mixing + drawn.nuisance @ drawn.nuisance_mixing
  error = (feature.values - clean)[feature.present]
  assert abs(error.std() - 0.1) < 0.005  # noise_scale.
  assert not feature.values[~feature.present].any()
  # Half of what varies is behavior: least squares on the true factors leaves the other half.
  values = feature.values[feature.present]
  factors = truth.behavior[feature.present]
  fit = factors @ np.linalg.lstsq(factors, values, rcond=None)[0]
  assert 0.4 < 1.0 - (values - fit).var() / values.var() < 0.6


def test_missing_rates(default):
  dataset, _ = default
  assert abs(1 - dataset.features["text"].present.mean() - 0.05) < 0.03
  assert abs(1 - dataset.features["image"].present.mean() - 0.1) < 0.04


def test_popularity_is_zipf_like(default):
  dataset, truth = default
  counts = np.bincount(dataset.items, minlength=dataset.num_items)
  top = np.sort(counts)[::-1][: dataset.num_items * 3 // 4]
  slope = np.polyfit(np.log(1 + np.arange(len(top))), np.log(top), 1)[0]
  assert -0.6 < slope < -0.3
  assert np.corrcoef(np.log(counts), np.log(truth.popularity))[0, 1] > 0.4


def test_who_knows_the_model_beats_popularity_by_a_wide_margin(default):
  dataset, truth = default
  history, target = histories(dataset, "test", max_history=50)
  length = (history >= 0).sum(axis=1)
  last = history[np.arange(len(history)), length - 1]
  popular = np.tile(train_counts(dataset), (dataset.num_users, 1))
  assert recall_at_10(popular, target) < 0.11
  assert recall_at_10(truth.next_item_logits(last), target) > 0.45
  # What comes next is not what is alike: the transition has to be learned.
  alike = truth.behavior[last] @ truth.behavior.T
  assert recall_at_10(alike, target) < 0.2


def test_users_keep_their_taste_while_it_drifts(default):
  dataset, truth = default
  first = truth.behavior[dataset.items[dataset.offsets[:-1]]]  # [U, G], drawn without a last item.
  own = (first * truth.user_factors).sum(axis=1).mean()
  others = (first * np.roll(truth.user_factors, 1, axis=0)).sum(axis=1).mean()
  assert own > 0.1 > 0.05 > abs(others)


def test_lengths_and_sizes(default):
  dataset, _ = default
  lengths = np.diff(dataset.offsets)
  assert lengths.min() >= 5
  assert abs(lengths.mean() - 11.0) < 0.3
  assert dataset.num_users == 1200
  assert dataset.num_items >= 395
  assert all(len(set(dataset.sequence(u))) == lengths[u] for u in range(dataset.num_users))


def test_users_that_would_run_out_of_items_are_refused():
  with pytest.raises(UserError, match=r"mean_length=11\.0 must be"):
    synthetic.load(num_items=20)

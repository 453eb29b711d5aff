"""Scaled features have one scale, whatever their number of dimensions and their units."""

import numpy as np
import pytest

from bbqrec_jax.data import scaling
from bbqrec_jax.data.dataset import Features

I, F = 53, 7


def _features(unit=1.0):
  rng = np.random.default_rng(0)
  spread = np.array([1e-3, 1.0, 50.0, 2.0, 0.1, 1.0, 3.0])
  values = rng.normal(size=(I, F)) * spread[None, :] + rng.normal(size=F)[None, :]
  present = rng.random(I) < 0.7
  values[~present] = 0.0  # As Features has it; counted, these rows would shift the mean.
  return Features((unit * values).astype(np.float32), present)


@pytest.mark.parametrize("unit", [1e-10, 1.0, 1e10])
def test_items_that_are_present_have_mean_zero_and_mean_square_length_one(unit):
  features = _features(unit)
  scaled = scaling.fit(features)(features.values)[features.present]
  assert scaled.dtype == np.float32
  np.testing.assert_allclose(scaled.mean(axis=0), 0.0, atol=1e-5)
  np.testing.assert_allclose((scaled**2).mean(axis=0), 1.0 / F, rtol=1e-4)  # Each dimension alike.
  np.testing.assert_allclose((scaled**2).sum(axis=1).mean(), 1.0, rtol=1e-4)


def test_absent_rows_do_not_count():
  features = _features()
  noisy = np.where(features.present[:, None], features.values, 1e3)
  for a, b in zip(scaling.fit(features), scaling.fit(Features(noisy, features.present))):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("constant", [0.0, 0.1, -3e9])
def test_constant_dimensions_become_zero_and_the_others_share_the_length(constant):
  features = _features()
  features.values[:, [2, 5]] = constant
  scaled = scaling.fit(features)(features.values)[features.present]
  np.testing.assert_array_equal(scaled[:, [2, 5]], 0.0)
  np.testing.assert_allclose((scaled**2).sum(axis=1).mean(), 1.0, rtol=1e-4)


def test_constant_features_become_zero():
  scale = scaling.fit(Features(np.full((I, F), 0.3, np.float32), np.ones(I, bool)))
  assert not scale(np.full((I, F), 0.3, np.float32)).any()


def test_saved_and_loaded_are_equal(tmp_path):
  scalings = dict(text=scaling.fit(_features()), image=scaling.fit(_features(3.0)))
  scaling.save(tmp_path, scalings)
  loaded = scaling.load(tmp_path, ("text", "image"))
  assert list(loaded) == ["text", "image"]
  assert [path.name for path in tmp_path.iterdir()] == [scaling.FILE_NAME]
  for name, expected in scalings.items():
    np.testing.assert_array_equal(loaded[name].mean, expected.mean)
    np.testing.assert_array_equal(loaded[name].factor, expected.factor)

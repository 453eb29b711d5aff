"""On data whose latent model is known, BBQRec learns what it is said to learn.

A ridge regression on held-out items says how much of the behavior factors a latent holds: z should
hold them for the sequence task, and z_bar should lose them where gamma makes the two independent,
but keep what is the modality's own. gamma = 1 does both at no cost of recall (seeds 0 to 2). That z
holds more of them than z_bar on all three seeds takes a larger gamma, 4; with mutual information in
nats of all D dimensions together, here gamma = 32, z_bar loses its own factors too.
"""

import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import config_dict

from bbqrec_jax import checkpoint, main
from bbqrec_jax.data import scaling, synthetic
from bbqrec_jax.data.dataset import MODALITIES
from bbqrec_jax.metric_writer import MetricWriter
from bbqrec_jax.trainers import item_codes, tokenizer
from configs import quickstart

_SPLITS = 5  # Random splits of the items, 3 to 1, that a figure is averaged over.


class Trained(NamedTuple):
  popularity: float  # Validation Recall@10 of ranking by training counts.
  recall: float  # Validation Recall@10 of cos(h_t, v_i).
  z: float  # R^2 of the behavior factors from z, mean over modalities.
  z_bar: float  # The same from z_bar.
  specific: float  # R^2 of a modality's own nuisance factors from its z_bar.


def train(workdir: pathlib.Path, *, gamma: float, seed: int, num_epochs: int = 15) -> Trained:
  """Stage one on the synthetic data of this seed, small; what its latents hold."""
  config = quickstart.get_config()
  config.update(seed=seed, max_history=5, codebook_size=32, latent_dim=32)
  config.tokenizer.update(
    mim_weight=gamma,
    batch_size=128,
    num_epochs=num_epochs,
    eval_epochs=num_epochs,
    log_steps=1000,
  )
  config.tokenizer.model.hidden_dims = (64,)
  config.parallel.num_devices = 1
  config = config_dict.FrozenConfigDict(config)
  dataset, truth = synthetic.generate(seed=seed)
  workdir.mkdir()
  with MetricWriter(workdir) as writer:
    record = tokenizer.train(config, dataset, workdir, writer)

  latents = encode(config, dataset, workdir)
  z, z_bar, specific = [], [], []
  for modality, behavior in zip(MODALITIES, (latents.behavior[:, 1], latents.behavior[:, 2])):
    present = dataset.features[modality].present
    held = np.asarray(latents.specific[modality])[present]
    factors = truth.behavior[present]
    z.append(ridge_r2(np.asarray(behavior)[present], factors))
    z_bar.append(ridge_r2(held, factors))
    specific.append(ridge_r2(held, truth.modalities[modality].nuisance[present]))
  recalls = (
    main.popularity_baseline(dataset)["valid"]["recall@10"],
    record["valid_at_best"]["recall@10"],
  )
  return Trained(*recalls, *(float(np.mean(x)) for x in (z, z_bar, specific)))


def encode(config, dataset, workdir: pathlib.Path):
  """The latents of every item, by the selected parameters."""
  scalings = scaling.load(workdir, MODALITIES)
  present = {name: features.present for name, features in dataset.features.items()}
  features = {
    name: np.where(present[name][:, None], scalings[name](f.values), 0.0)
    for name, f in dataset.features.items()
  }
  model = tokenizer.make_model(
    config.tokenizer,
    num_items=dataset.num_items,
    feature_dims={name: x.shape[1] for name, x in features.items()},
  )
  template = item_codes.init_params(model, jax.random.key(0))
  params = checkpoint.best_params(workdir, tokenizer.STAGE, template)
  items = jnp.arange(dataset.num_items, dtype=jnp.int32)
  return model.apply({"params": params}, items, features, present, method="encode")


def ridge_r2(x: np.ndarray, y: np.ndarray) -> float:
  """Share of the variance of y [n, G] that a ridge regression on x [n, D] explains, held out."""
  rng, scores = np.random.default_rng(0), []
  x = (x - x.mean(axis=0)) / x.std(axis=0)  # A latent's scale is nobody's business.
  for _ in range(_SPLITS):
    fit = rng.permutation(len(x)) < 0.75 * len(x)
    mean = y[fit].mean(axis=0)
    gram = x[fit].T @ x[fit] + 1e-3 * fit.sum() * np.eye(x.shape[1])
    coefficients = np.linalg.solve(gram, x[fit].T @ (y[fit] - mean))
    error = y[~fit] - mean - x[~fit] @ coefficients
    scores.append(1.0 - np.sum(error**2) / np.sum((y[~fit] - mean) ** 2))
  return float(np.mean(scores))


def test_z_bar_loses_behavior_to_mutual_information_and_keeps_its_own(tmp_path):
  bound = train(tmp_path / "bound", gamma=1.0, seed=0, num_epochs=10)
  free = train(tmp_path / "free", gamma=0.0, seed=0, num_epochs=10)
  check_bound(bound, free)
  for trained in (bound, free):
    assert trained.z > 0.4
    assert trained.recall > 2.5 * trained.popularity


@pytest.mark.slow
def test_z_bar_loses_behavior_over_three_seeds(tmp_path):
  margins = []
  for seed in range(3):
    bound, free, more = (
      train(tmp_path / f"{gamma}_{seed}", gamma=gamma, seed=seed) for gamma in (1.0, 0.0, 4.0)
    )
    check_bound(bound, free)
    margins.append(more.z - more.z_bar)
  assert min(margins) > 0.0


def check_bound(bound: Trained, free: Trained) -> None:
  assert free.z < free.z_bar  # z_bar alone reaches the decoder unquantized, and keeps everything.
  assert bound.z_bar < free.z_bar - 0.2
  assert bound.z > free.z - 0.1
  assert bound.specific > 0.6  # 0.71 after 10 epochs, 0.82 after 15.
  assert bound.recall > free.recall - 0.03


@pytest.mark.slow
def test_what_the_generator_recommends_beats_popularity(tmp_path):
  config = quickstart.get_config()
  config.parallel.num_devices = 1
  config = config_dict.FrozenConfigDict(config)
  results = main.run(config, tmp_path)
  for split in ("valid", "test"):
    assert results[split]["recall@10"] > 2.5 * results["popularity"][split]["recall@10"]


def test_the_probe_finds_what_is_there():
  """Against known answers: noise of variance 1/4 beside a signal of variance 1, and noise alone."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=(4000, 7))
  signal = x @ np.linalg.qr(rng.normal(size=(7, 5)))[0]
  assert ridge_r2(x, signal + 0.5 * rng.normal(size=signal.shape)) == pytest.approx(0.8, abs=0.02)
  assert abs(ridge_r2(x, rng.normal(size=(4000, 5)))) < 0.02

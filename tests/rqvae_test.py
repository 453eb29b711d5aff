"""The tokenizer of TIGER and LETTER: what it quantizes, what its losses reach, what it leaves."""

import functools
import json
import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import config_dict

from bbqrec_jax import losses, main, recommend
from bbqrec_jax.data import item_vectors, semantic_ids, synthetic
from bbqrec_jax.errors import UserError
from bbqrec_jax.metric_writer import MetricWriter
from bbqrec_jax.models import rqvae as rqvae_model
from bbqrec_jax.trainers import rqvae
from configs import letter, tiger
from tests.reference import tokenizer as reference

P, F, D, L, N = 6, 11, 4, 3, 5


@functools.cache
def built():
  """The model, its parameters and a step's inputs; row 1 has no text, row 4 is padding."""
  model = rqvae_model.Model(
    num_items=17, feature_dims=dict(text=F), latent_dim=D, num_levels=L, codebook_size=N,
    hidden_dims=(7,), init_scale=1.0,
  )  # fmt: skip
  items = jnp.array([3, 16, 0, 9, -1, 5])
  features = jax.random.normal(jax.random.key(0), (17, F)) / F**0.5
  constants = dict(
    features=dict(text=features),
    present=dict(text=jnp.arange(17) != 16),
    collaborative=jax.random.normal(jax.random.key(1), (17, D)),
  )
  rows = jnp.maximum(items, 0)
  inputs = (items, dict(text=features[rows]), dict(text=constants["present"]["text"][rows]))
  params = model.init(jax.random.key(2), *inputs)["params"]
  batch = ({"history": items[None, :, None], "targets": items[None, :, None]},)
  return model, params, constants, batch, inputs


def extra(clusters):
  return rqvae.Extra(jnp.zeros((1, L, N), jnp.int32), clusters, jnp.zeros((), jnp.int32))


def test_codes_are_those_of_a_search_through_every_code():
  model, params, _, _, inputs = built()
  latents = model.apply({"params": params}, *inputs, method="encode").behavior
  out = model.apply({"params": params}, *inputs)
  for row in range(P):
    codes, _, embeds = reference.residual_quantize(
      np.asarray(latents[row, 0]), np.asarray(params["quantizer"]["codebooks"][0])
    )
    np.testing.assert_array_equal(out.quantized.codes[row, :, 0], codes)
    np.testing.assert_allclose(out.quantized.latent[row, 0], embeds.sum(0), atol=1e-5)
  looked_up = model.apply({"params": params}, out.quantized.codes, method="lookup")
  chex.assert_trees_all_close(looked_up, out.quantized.latent[:, 0])


def test_an_item_without_text_is_read_as_the_learned_vector():
  model, params, _, _, (items, features, present) = built()
  encode = lambda x, has: (
    model.apply({"params": params}, items, dict(text=x), dict(text=has), method="encode").behavior
  )
  told = encode(features["text"].at[1].set(params["missing"]), jnp.ones(P, bool))
  chex.assert_trees_all_equal(encode(features["text"], present["text"]), told)


def test_one_modality_is_needed():
  model = rqvae_model.Model(num_items=3, feature_dims=dict(text=F, image=F))
  with pytest.raises(ValueError, match="One modality is needed"):
    model.init(jax.random.key(0), None, {}, {})


def loss(params, alignment_weight=0.0, diversity_weight=0.0):
  model, _, constants, batch, _ = built()
  clusters = jnp.tile(jnp.array([0, 1, 0, 1, 0])[None, :], (L, 1))
  return rqvae.loss_fn(
    model, params, batch, constants, jax.random.key(3), extra(clusters), commitment_weight=0.25,
    alignment_weight=alignment_weight, diversity_weight=diversity_weight,
  )  # fmt: skip


def test_the_loss_is_the_sum_of_its_terms_over_items_alone():
  model, params, constants, _, inputs = built()
  total, (terms, _) = loss(params, alignment_weight=0.3, diversity_weight=0.2)
  out = model.apply({"params": params}, *inputs)
  errors = np.sum((out.reconstruction - inputs[1]["text"]) ** 2, axis=1)
  np.testing.assert_allclose(terms["recon"], np.mean(errors[[0, 2, 3, 5]]), rtol=1e-5)
  gaps = np.sum((out.quantized.residuals - out.quantized.embeds) ** 2, axis=(1, 2, 3))
  np.testing.assert_allclose(terms["codebook"], np.mean(gaps[[0, 1, 2, 3, 5]]), rtol=1e-5)
  rows = jnp.array([0, 2, 3, 5])  # With a text of their own.
  aligned = losses.alignment_loss(
    out.quantized.latent[rows, 0], constants["collaborative"][inputs[0][rows]], jnp.ones(4)
  )
  np.testing.assert_allclose(terms["alignment"], aligned, rtol=1e-5)
  expected = terms["recon"] + 1.25 * terms["codebook"] + 0.3 * aligned + 0.2 * terms["diversity"]
  np.testing.assert_allclose(total, expected, rtol=1e-5)
  assert set(loss(params)[1][0]) == {"recon", "codebook", "commitment"}


def test_alignment_moves_the_encoder_and_diversity_the_codebooks():
  params = built()[1]

  def reached(name, **weights):
    gradient = jax.grad(lambda params: loss(params, **weights)[1][0][name])(params)
    return {part for part, x in gradient.items() if any(map(np.any, jax.tree.leaves(x)))}

  assert reached("alignment", alignment_weight=1.0) == {"encoder"}
  assert reached("diversity", diversity_weight=1.0) == {"quantizer"}


def test_clusters_are_found_anew_every_so_many_steps():
  model, params, _, _, inputs = built()
  out = model.apply({"params": params}, *inputs)
  outputs = (out.quantized, inputs[2], jnp.ones(P))
  state = extra(jnp.full((L, N), 7))
  step = functools.partial(rqvae.after_update, patience=0, num_clusters=2, cluster_steps=2)
  moved, first = step(params, state, outputs, jax.random.key(0))
  chex.assert_trees_all_equal((moved, first.clusters), (params, state.clusters))
  _, second = step(params, first, outputs, jax.random.key(0))
  assert [sorted(np.bincount(level)) for level in np.asarray(second.clusters)] == [[2, 3]] * L


@functools.cache
def dataset():
  return synthetic.load(num_users=150, num_items=70, text_dim=13, modalities=("text",))


def small(config, **changes) -> config_dict.FrozenConfigDict:
  """A config, smaller than its smoke; changes are by dotted name."""
  config.unlock()
  config.data.update(num_users=150, num_items=70, text_dim=13)
  config.update(max_history=2, codebook_size=8)
  config.rqvae.update(batch_size=32, kmeans_iters=3)
  config.generator.update(batch_size=32)
  config.parallel.num_devices = 1
  config.update_from_flattened_dict(changes)
  return config_dict.FrozenConfigDict(config)


def train(config, workdir: pathlib.Path) -> tuple[dict, semantic_ids.SemanticIds]:
  workdir.mkdir(exist_ok=True)
  with MetricWriter(workdir) as writer:
    record = rqvae.train(config, dataset(), workdir, writer)
  return record, semantic_ids.load(workdir)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """(workdir, config, results) of a tiny TIGER, both stages."""
  workdir, config = tmp_path_factory.mktemp("tiger"), small(tiger.get_config("smoke"))
  return workdir, config, main.run(config, workdir)


def test_letter_without_its_terms_is_tiger_bit_for_bit(finished, tmp_path):
  without = {"rqvae.alignment_weight": 0.0, "rqvae.diversity_weight": 0.0}
  same = {"num_levels": 3, "rqvae.number_collisions": True}
  record, ids = train(small(letter.get_config("smoke"), **without, **same), tmp_path / "letter")
  chex.assert_trees_all_equal(vars(ids), vars(semantic_ids.load(finished[0])))
  assert record["best_valid"] == finished[2]["stages"]["rqvae"]["best_valid"]
  vectors = np.random.default_rng(0).normal(size=(dataset().num_items, 8)).astype(np.float32)
  item_vectors.save(tmp_path, dataset().item_ids, vectors)
  aligned, other = train(small(letter.get_config("smoke"), **same), tmp_path)
  assert aligned["best_valid"] != record["best_valid"]
  assert np.any(other.codes != ids.codes)


def test_running_numbers_make_every_semantic_id_unique(finished):
  workdir, _, results = finished
  ids = semantic_ids.load(workdir)
  report = results["codebook"]
  assert report["num_levels"] == 3 and report["num_semantic_ids"] < ids.codes.shape[0]
  assert ids.codes.shape[1] == 4 and ids.has_numbers
  assert len(np.unique(ids.codes, axis=0)) == len(ids.codes)
  assert report["running_numbers"] == report["largest_group"] == ids.codes[:, 3].max() + 1
  # The vectors are sums of code vectors, by the codes before the number.
  levels = np.arange(3)[None, :]
  rebuilt = ids.codebooks[0, levels, ids.codes[:, :3, 0]].sum(axis=1)
  np.testing.assert_allclose(ids.vectors, rebuilt, atol=1e-6)


def test_new_items_get_the_next_number_until_there_is_none(finished):
  workdir, _, _ = finished
  recommender = recommend.Recommender.load(workdir)
  model_size = semantic_ids.load(workdir).codebook_size
  features = dataset().features["text"]
  item = int(np.flatnonzero(features.present)[0])
  text, known = features.values[[item]], recommender.codes[item]
  same = (recommender.codes[:, :3] == known[None, :3]).all(axis=(1, 2)).sum()
  for number in range(same, model_size):
    codes = recommender.add_items([f"new {number}"], text=text)
    np.testing.assert_array_equal(codes[0, :, 0], [*known[:3, 0], number])
  history = [dataset().item_ids[item].item()]
  assert len(recommender.recommend([history], k=5)[0].item_ids) == 5
  with pytest.raises(UserError, match=f"{model_size + 1} items would share one semantic ID"):
    recommender.add_items(["one too many"], text=text)


def test_vectors_that_do_not_fit_are_refused(tmp_path):
  config = small(letter.get_config("smoke"))
  with pytest.raises(UserError, match=r"item_vectors\.npz does not exist"):
    train(config, tmp_path)
  item_vectors.save(tmp_path, dataset().item_ids, np.zeros((dataset().num_items, 5), np.float32))
  with pytest.raises(UserError, match=r"of 5 dimensions, and rqvae\.model\.latent_dim=8"):
    train(config, tmp_path)


def test_what_no_item_has_is_refused(tmp_path):
  config = small(tiger.get_config("smoke"), **{"rqvae.modality": "image"})
  with pytest.raises(UserError, match=r"rqvae\.modality='image': no item of synthetic has"):
    main.run(config, tmp_path / "workdir")
  assert not (tmp_path / "workdir").exists()


def test_pmap_over_two_devices_equals_one(tmp_path):
  changes = {"rqvae.diversity_weight": 0.0, "rqvae.kmeans_iters": 0, "rqvae.model.init_scale": 1.0}
  vectors = np.random.default_rng(0).normal(size=(dataset().num_items, 8)).astype(np.float32)
  losses_of = []
  for name, layout in (("one", {}), ("two", {"parallel.mode": "pmap", "parallel.num_devices": 2})):
    (tmp_path / name).mkdir()
    item_vectors.save(tmp_path / name, dataset().item_ids, vectors)
    train(small(letter.get_config("smoke"), **changes, **layout), tmp_path / name)
    lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
    losses_of.append([json.loads(line)["metrics"].get("loss", 0.0) for line in lines])
  np.testing.assert_allclose(*losses_of, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("system", [tiger, letter])
def test_what_is_generated_beats_popularity(tmp_path, system):
  config = system.get_config("causal")
  config.unlock()
  config.data.num_users = 2_000
  config.update(codebook_size=64)
  config.rqvae.update(batch_size=256, num_epochs=300, eval_epochs=50)
  config.rqvae.model.hidden_dims = (128, 64)
  if "ranker" in config:
    config.ranker.update(batch_size=128, num_epochs=20, eval_epochs=2, patience=4)
  config.generator.update(batch_size=128, num_epochs=18, eval_epochs=3, length_groups=2)
  config.generator.optimizer.update(learning_rate=3e-3, warmup_steps=100)
  config.generator.model.update(
    code_dim=32, model_dim=64, num_heads=4, head_dim=16, ff_dim=128, num_encoder_layers=2,
    num_decoder_layers=2,
  )  # fmt: skip
  config.parallel.num_devices = 1
  results = main.run(config_dict.FrozenConfigDict(config), tmp_path)
  for split in ("valid", "test"):
    assert results[split]["recall@10"] > 2 * results["popularity"][split]["recall@10"]

"""The tokenizer of TIGER and LETTER: what it quantizes, what its losses reach, what it leaves."""

import functools
import json
import os
import pathlib
import signal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import config_dict

from bbqrec_jax import losses, main, new_items, partition, recommend, validate
from bbqrec_jax.data import item_vectors, scaling, semantic_ids, synthetic
from bbqrec_jax.errors import Stopped, UserError
from bbqrec_jax.evaluators import codebook
from bbqrec_jax.metric_writer import MetricWriter
from bbqrec_jax.models import balanced
from bbqrec_jax.models import rqvae as rqvae_model
from bbqrec_jax.trainers import generator as generator_trainer
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
  params = jax.jit(model.init)(jax.random.key(2), *inputs)["params"]
  batch = ({"history": items[None, :, None], "targets": items[None, :, None]},)
  return model, params, constants, batch, inputs


def extra(clusters):
  return rqvae.Extra(jnp.zeros((1, L, N), jnp.int32), clusters, jnp.zeros((), jnp.int32))


@functools.cache
def outputs():
  """(Latents, RqvaeOutput) of the step's inputs, as NumPy's."""
  model, params, _, _, inputs = built()

  @jax.jit
  def run(params):
    variables = {"params": params}
    return model.apply(variables, *inputs, method="encode"), model.apply(variables, *inputs)

  return jax.device_get(run(params))


def test_codes_are_those_of_a_search_through_every_code():
  model, params, _, _, _ = built()
  codebooks = np.asarray(params["quantizer"]["codebooks"][0])
  latents, out = outputs()
  latents = latents.behavior
  for row in range(P):
    codes, _, embeds = reference.residual_quantize(latents[row, 0], codebooks)
    np.testing.assert_array_equal(out.quantized.codes[row, :, 0], codes)
    np.testing.assert_allclose(out.quantized.latent[row, 0], embeds.sum(0), atol=1e-5)
  looked_up = model.apply({"params": params}, out.quantized.codes, method="lookup")
  np.testing.assert_allclose(looked_up, out.quantized.latent[:, 0], atol=1e-6)


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


def loss(
  params,
  alignment_weight=0.0,
  diversity_weight=0.0,
  items=None,
  axis_name=None,
  reduction="sum",
  sinkhorn_temperature=0.0,
):
  model, _, constants, batch, _ = built()
  if items is not None:
    batch = ({"history": items[None, :, None]},)
  clusters = jnp.tile(jnp.array([0, 1, 0, 1, 0])[None, :], (L, 1))
  return rqvae.loss_fn(
    model, params, batch, constants, jax.random.key(3), extra(clusters), commitment_weight=0.25,
    alignment_weight=alignment_weight, diversity_weight=diversity_weight, axis_name=axis_name,
    quantization_reduction=reduction, sinkhorn_temperature=sinkhorn_temperature,
  )  # fmt: skip


@functools.cache
def terms_and_gradients():
  """(loss, terms), and each term's gradient, with both weights."""
  fn = lambda params: (lambda total, rest: (rest[0], total))(*loss(params, 0.3, 0.2))
  params = built()[1]
  jacobian, total = jax.jit(jax.jacrev(fn, has_aux=True))(params)
  terms, _ = jax.jit(fn)(params)
  return jax.device_get((total, terms, jacobian))


def test_the_loss_is_the_sum_of_its_terms_over_items_alone():
  _, _, constants, _, (items, features, _) = built()
  total, terms, _ = terms_and_gradients()
  out = outputs()[1]
  errors = np.sum((out.reconstruction - np.asarray(features["text"])) ** 2, axis=1)
  np.testing.assert_allclose(terms["recon"], np.mean(errors[[0, 2, 3, 5]]), rtol=1e-5)
  gaps = np.sum((out.quantized.residuals - out.quantized.embeds) ** 2, axis=(1, 2, 3))
  np.testing.assert_allclose(terms["codebook"], np.mean(gaps[[0, 1, 2, 3, 5]]), rtol=1e-5)
  rows = np.array([0, 2, 3, 5])  # With a text of their own.
  collaborative = np.asarray(constants["collaborative"])[np.asarray(items)[rows]]
  aligned = losses.alignment_loss(out.quantized.latent[rows, 0], collaborative, jnp.ones(4))
  np.testing.assert_allclose(terms["alignment"], aligned, rtol=1e-5)
  expected = terms["recon"] + 1.25 * terms["codebook"] + 0.3 * aligned + 0.2 * terms["diversity"]
  np.testing.assert_allclose(total, expected, rtol=1e-5)


def test_the_mean_over_levels_and_dimensions_weighs_the_quantizer_less_and_nothing_else():
  _, params, _, _, _ = built()
  summed, meant = (loss(params, 0.3, 0.2, reduction=reduction) for reduction in rqvae.REDUCTIONS)
  quantized, items = outputs()[1].quantized, [0, 1, 2, 3, 5]
  gap = np.mean(
    (quantized.residuals - quantized.embeds)[items] ** 2
  )  # Of each level and dimension.
  for name in ("codebook", "commitment"):
    np.testing.assert_allclose(meant[1][0][name], gap, rtol=1e-5)
  for name in ("recon", "alignment", "diversity"):
    assert meant[1][0][name] == summed[1][0][name]
  np.testing.assert_allclose(summed[0] - meant[0], 1.25 * gap * (L * D - 1), rtol=1e-4)


def test_alignment_moves_the_encoder_and_diversity_the_codebooks():
  _, _, gradients = terms_and_gradients()

  def reached(name):
    return {part for part, x in gradients[name].items() if any(map(np.any, jax.tree.leaves(x)))}

  assert reached("alignment") == {"encoder"}
  assert reached("diversity") == {"quantizer"}


def test_parts_of_the_rows_on_two_devices_have_the_terms_of_all():
  _, params, _, _, (items, _, _) = built()
  part = lambda items: loss(params, 0.3, items=items, axis_name="devices")[1][0]
  parts = jax.jit(jax.vmap(part, axis_name="devices"))(items.reshape(2, -1))
  for name, of_each in parts.items():
    np.testing.assert_allclose(of_each, terms_and_gradients()[1][name], rtol=1e-5)


def test_diversity_takes_its_positives_from_the_clusters_of_their_level(monkeypatch):
  model, params, constants, batch, _ = built()
  seen = []
  monkeypatch.setattr(losses, "diversity_loss", lambda *args: seen.append(args) or jnp.zeros(()))
  clusters = np.array([[0, 1, 0, 1, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 1]])
  rqvae.loss_fn(
    model, params, batch, constants, jax.random.key(3), extra(jnp.asarray(clusters)),
    quantization_reduction="sum", commitment_weight=0.0, alignment_weight=0.0, diversity_weight=1.0,
  )  # fmt: skip
  ((embeds, codes, codebooks, positives, known, axis_name),) = seen
  quantized = outputs()[1].quantized
  np.testing.assert_array_equal(codes, quantized.codes[:, :, 0])
  np.testing.assert_allclose(embeds, quantized.embeds[:, 0], atol=1e-6)
  np.testing.assert_array_equal(codebooks, params["quantizer"]["codebooks"][0])
  np.testing.assert_array_equal(known, [1, 0, 1, 1, 0, 1])  # Neither padding nor what has no text.
  levels = np.arange(L)[None, :]
  np.testing.assert_array_equal(clusters[levels, positives], clusters[levels, codes])
  assert np.all(np.asarray(positives) != codes) and axis_name is None


def test_networks_see_a_mean_square_of_one_in_each_dimension():
  model, params, _, _, (_, features, present) = built()
  bound = model.bind({"params": params})
  x = jnp.where(present["text"][:, None], features["text"], params["missing"])
  expected = bound.encoder(F**0.5 * x)
  np.testing.assert_allclose(outputs()[0].behavior[:, 0], expected, atol=1e-5)
  q = jax.random.normal(jax.random.key(5), (P, 1, D))
  np.testing.assert_allclose(bound.decode(q), bound.decoder(q[:, 0]) / F**0.5, atol=1e-6)


def test_the_last_level_is_used_evenly_by_items_alone():
  _, params, _, _, (items, _, _) = built()
  codebooks = params["quantizer"]["codebooks"].at[0, -1].multiply(0.3)  # Rows 0 and 3 want one.
  params = params | {"quantizer": {"codebooks": codebooks}}
  before, after = (loss(params, sinkhorn_temperature=t)[1][1][0] for t in (0.0, 0.003))
  np.testing.assert_array_equal(after.codes[:, :-1], before.codes[:, :-1])
  counted = np.array([0, 1, 2, 3, 5])
  expected = balanced.balanced_codes(
    before.residuals[counted, 0, -1], params["quantizer"]["codebooks"][0, -1], jnp.ones(5), 0.003
  )
  np.testing.assert_array_equal(after.codes[counted, -1, 0], expected)
  assert len(set(expected.tolist())) > len(set(before.codes[counted, -1, 0].tolist()))
  rows, levels = np.arange(P)[:, None], np.arange(L)[None, :]
  chosen = params["quantizer"]["codebooks"][0][levels, after.codes[rows, levels, 0]]
  np.testing.assert_array_equal(after.embeds[:, 0], chosen)
  np.testing.assert_allclose(after.latent[:, 0], chosen.sum(axis=1), atol=1e-6)

  part = lambda items: loss(params, items=items, axis_name="devices", sinkhorn_temperature=0.003)[1]
  _, (of_parts, _, _) = jax.jit(jax.vmap(part, axis_name="devices"))(items.reshape(2, -1))
  np.testing.assert_array_equal(of_parts.codes.reshape(after.codes.shape), after.codes)


def test_clusters_are_found_anew_every_so_many_steps():
  _, params, _, _, inputs = built()
  results = (outputs()[1].quantized, inputs[2], jnp.ones(P))
  state = extra(jnp.full((L, N), 7))

  @jax.jit
  def step(extra):
    return rqvae.after_update(
      params,
      extra,
      results,
      jax.random.key(0),
      signals=("text",),
      patience=0,
      num_clusters=2,
      cluster_steps=2,
    )

  moved, first = step(state)
  chex.assert_trees_all_equal((moved, first.clusters), (params, state.clusters))
  _, second = step(first)
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
def tokenized(tmp_path_factory):
  """(workdir, config, record, semantic IDs) of TIGER's first stage, tiny."""
  workdir, config = tmp_path_factory.mktemp("tiger"), small(tiger.get_config("smoke"))
  return workdir, config, *train(config, workdir)


def test_letter_without_its_terms_is_tiger_bit_for_bit(tokenized, tmp_path):
  _, _, record, ids = tokenized
  config = small(
    letter.get_config("smoke"),
    **{"rqvae.alignment_weight": 0.0, "rqvae.diversity_weight": 0.0},
    **{"rqvae.sinkhorn_temperature": 0.0, "rqvae.repair_rounds": 0},
    **{"rqvae.quantization_reduction": "sum"},
    **{"num_levels": 3, "rqvae.number_collisions": True},
  )
  same_record, same_ids = train(config, tmp_path)
  chex.assert_trees_all_equal(vars(same_ids), vars(ids))
  assert same_record["best_valid"] == record["best_valid"]


def rebuilt(ids):
  """[I, D] sums of the code vectors of IDs of three levels, which may have a running number."""
  return ids.codebooks[0, np.arange(3)[None, :], ids.codes[:, :3, 0]].sum(axis=1)


def test_what_selects_is_less_the_error_of_what_is_reconstructed(tokenized):
  workdir, config, record, ids = tokenized
  frozen = new_items.FrozenTokenizer.load(workdir, config, ids)
  inputs, _ = scaling.standardise(dataset())
  present = inputs["present"]["text"]
  variables = {"params": frozen._params}
  x_hat = frozen._model.apply(variables, rebuilt(ids)[:, None], method="decode")
  errors = np.sum((inputs["features"]["text"] - np.asarray(x_hat)) ** 2, axis=1)
  valid = record["valid_at_best"]["reconstruction"]
  np.testing.assert_allclose(valid, -np.mean(errors[present]), rtol=1e-4)
  assert record["best_valid"] == valid


def test_the_generator_learns_at_the_temperature_of_its_config(tokenized, monkeypatch):
  workdir, config, _, _ = tokenized
  config = config_dict.FrozenConfigDict(
    config.to_dict() | dict(generator=config.generator.to_dict() | dict(temperature=0.3))
  )

  class Reached(Exception):
    pass

  def reached(loss, *args, **kwargs):
    raise Reached(loss.keywords["temperature"])

  monkeypatch.setattr(generator_trainer.train_state, "make_train_step", reached)
  with MetricWriter(workdir) as writer, pytest.raises(Reached, match=r"^0\.3$"):
    generator_trainer.train(config, dataset(), workdir, writer)


def test_items_of_one_semantic_id_are_given_others(tmp_path):
  config = small(letter.get_config("smoke"), **{"rqvae.alignment_weight": 0.0, "num_levels": 3})
  record, ids = train(config, tmp_path)
  report, left = record["codebook"], len(ids.codes) - len(np.unique(ids.codes, axis=0))
  assert report["num_surplus_repaired"] == left < report["num_surplus_items"]
  assert f"items less semantic IDs once repaired: {left}" in codebook.format_report(report)
  np.testing.assert_allclose(ids.vectors, rebuilt(ids), atol=1e-6)


def test_running_numbers_make_every_semantic_id_unique(tokenized):
  _, _, record, ids = tokenized
  report = record["codebook"]
  assert report["num_levels"] == 3 and report["num_semantic_ids"] < ids.codes.shape[0]
  assert ids.codes.shape[1] == 4 and ids.has_numbers
  assert len(np.unique(ids.codes, axis=0)) == len(ids.codes)
  assert report["running_numbers"] == report["largest_group"] == ids.codes[:, 3].max() + 1
  assert f"tell them apart: {report['running_numbers']}" in codebook.format_report(report)
  # The vectors are sums of code vectors, by the codes before the number.
  np.testing.assert_allclose(ids.vectors, rebuilt(ids), atol=1e-6)


def test_new_items_get_the_next_number_until_there_is_none(tokenized):
  workdir, config, _, ids = tokenized
  recommender = recommend.Recommender(config, ids, None, workdir)  # No generator is asked.
  features = dataset().features["text"]
  item = int(np.flatnonzero(features.present)[0])
  text, known = features.values[[item]], ids.codes[item]
  taken = (ids.codes[:, :3] == known[None, :3]).all(axis=(1, 2)).sum()
  left = ids.codebook_size - taken
  codes = recommender.add_items([f"new {n}" for n in range(left)], text=text.repeat(left, axis=0))
  np.testing.assert_array_equal(codes[:, :3], known[None, :3].repeat(left, axis=0))
  np.testing.assert_array_equal(codes[:, 3, 0], np.arange(taken, ids.codebook_size))
  with pytest.raises(UserError, match=f"{ids.codebook_size + 1} items would share one semantic ID"):
    recommender.add_items(["one too many"], text=text)


def test_item_vectors_that_do_not_fit_are_refused(tmp_path):
  config = small(letter.get_config("smoke"))
  with pytest.raises(UserError, match=r"item_vectors\.npz does not exist"):
    train(config, tmp_path)
  item_vectors.save(tmp_path, dataset().item_ids, np.zeros((dataset().num_items, 5), np.float32))
  with pytest.raises(UserError, match=r"of 5 dimensions, and rqvae\.model\.latent_dim=8"):
    train(config, tmp_path)


@pytest.mark.parametrize(
  ("system", "changes", "said"),
  [
    (tiger, {"rqvae.modality": "sound"}, "rqvae.modality='sound' must be one of text, image"),
    (tiger, {"rqvae.model_name": "tokenizer"}, "is no model of this stage"),
    (tiger, {"stages": ("generator", "rqvae")}, "the rqvae comes before the generator"),
    (tiger, {"generator.inherit_codebooks": True}, "running numbers have no codebook"),
    (tiger, {"generator.temperature": 0.0}, "generator.temperature=0.0 must be"),
    (tiger, {"rqvae.alignment_weight": 0.1}, "needs a ranker before the rqvae"),
    (letter, {"stages": ("rqvae", "ranker", "generator")}, "needs a ranker before the rqvae"),
    (letter, {"rqvae.sinkhorn_temperature": 0.0}, "rqvae.repair_rounds=20 needs"),
    (letter, {"rqvae.sinkhorn_temperature": 1e-9}, "must be 0 (not used) or at least 1e-06"),
    (letter, {"rqvae.num_clusters": 5}, "codebook_size=8 leaves a cluster with a single code"),
    (
      letter,
      {"generator.inherit_codebooks": True, "generator.model.code_dim": 9},
      "code_dim=9 must be rqvae.model.latent_dim=8",
    ),
  ],
)
def test_what_cannot_work_is_refused(system, changes, said):
  with pytest.raises(UserError) as error:
    validate.check_config(small(system.get_config("smoke"), **changes).to_dict())
  assert said in str(error.value)


def test_a_modality_that_no_item_has_is_refused():
  config = small(tiger.get_config("smoke"), **{"rqvae.modality": "image"})
  with pytest.raises(UserError, match="no item of synthetic has a vector of it"):
    validate.check_data(config, dataset())


@pytest.mark.slow
def test_a_letter_that_was_stopped_ends_as_one_that_never_was(tmp_path, monkeypatch):
  vectors = np.random.default_rng(0).normal(size=(dataset().num_items, 8)).astype(np.float32)
  for name in ("whole", "stopped"):
    (tmp_path / name).mkdir()
    item_vectors.save(tmp_path / name, dataset().item_ids, vectors)
  config = small(letter.get_config("smoke"), **{"rqvae.num_epochs": 8, "rqvae.eval_epochs": 8})
  record, ids = train(config, tmp_path / "whole")
  compile_chunk = partition.Partition.compile_chunk

  def interrupted(self, train_chunk, state):
    train_chunk = compile_chunk(self, train_chunk, state)

    def wrapped(state, epoch, first, count, *args):
      if int(state.step) >= 7:  # In the third epoch, between two clusterings.
        os.kill(os.getpid(), signal.SIGINT)
      return train_chunk(state, epoch, first, count, *args)

    return wrapped

  with monkeypatch.context() as patched:
    patched.setattr(partition.Partition, "compile_chunk", interrupted)
    with pytest.raises(Stopped):
      train(config, tmp_path / "stopped")
  resumed, same = train(config, tmp_path / "stopped")
  assert resumed["earlier_seconds"] > 0 and resumed["best_valid"] == record["best_valid"]
  chex.assert_trees_all_equal(vars(same), vars(ids))


@pytest.mark.slow
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
  """Where text tells of behavior, and nothing else is heard: half a minute of training."""
  config = system.get_config("causal")
  config.unlock()
  config.data.update(nuisance_scale=0.1, missing_text_rate=0.0)
  config.update(max_history=5, codebook_size=16)
  config.rqvae.update(batch_size=256, num_epochs=200, eval_epochs=50, num_clusters=4)
  config.rqvae.model.hidden_dims = (128, 64)
  if "ranker" in config:
    config.ranker.update(batch_size=64, num_epochs=10, eval_epochs=5)
  config.generator.update(
    batch_size=64, num_epochs=20, eval_epochs=10, length_groups=2, num_beams=20
  )
  config.generator.optimizer.update(learning_rate=3e-3, warmup_steps=100)
  config.generator.model.update(
    code_dim=32, model_dim=64, num_heads=4, head_dim=16, ff_dim=128, num_encoder_layers=2,
    num_decoder_layers=2,
  )  # fmt: skip
  config.parallel.num_devices = 1
  results = main.run(config_dict.FrozenConfigDict(config), tmp_path)
  for split in ("valid", "test"):
    assert results[split]["recall@10"] > 1.7 * results["popularity"][split]["recall@10"]

"""The tokenizer's model: what its parts are fed, and what they must ignore."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from bbqrec_jax import losses
from bbqrec_jax.models import club, tokenizer
from bbqrec_jax.trainers import tokenizer as trainer
from tests.reference import tokenizer as reference

NUM_ITEMS, P, B, T, D, L, N = 17, 5, 2, 4, 6, 3, 7
FEATURE_DIMS = {"text": 11, "image": 3}
POSITIONS = (jnp.array([[0, 3, 0, 2], [1, 2, -1, -1]]), jnp.array([[2], [0], [1]]))


@functools.cache
def default():
  """The full model, built once for the tests that change nothing about it."""
  return build()


def build(**kwargs):
  """A small model, its variables and a batch.

  Row 1 has no text, row 2 no image, row 4 is padding.
  """
  kwargs = dict(feature_dims=FEATURE_DIMS, sequence_kwargs=dict(width=8, num_layers=1)) | kwargs
  model = tokenizer.Model(
    num_items=NUM_ITEMS, latent_dim=D, num_levels=L, codebook_size=N, hidden_dims=(13,), **kwargs
  )
  dims = kwargs["feature_dims"]
  batch = dict(
    items=jnp.array([3, 16, 0, 9, -1]),
    features={
      m: jax.random.normal(jax.random.key(i), (P, f)) for i, (m, f) in enumerate(dims.items())
    },
    present={m: jnp.arange(P) != 1 + i for i, m in enumerate(dims)},
  )
  variables = model.init(jax.random.key(9), **batch)
  return model, variables, batch


def total_loss(model, params, batch):
  """Every loss of stage one, equally weighted."""
  out = model.apply({"params": params}, **batch)
  weights = (batch["items"] >= 0).astype(jnp.float32)
  total = sum(losses.quantization_losses(out.quantized.residuals, out.quantized.embeds, weights))
  for m, x_hat in out.reconstructions.items():
    total += losses.reconstruction_loss(batch["features"][m], x_hat, batch["present"][m], weights)
  for positions in POSITIONS:
    h = model.apply({"params": params}, out.v, positions, True, method="represent")
    targets = jnp.pad(positions[:, 1:], ((0, 0), (0, 1)), constant_values=-1).reshape(-1)
    h = h.reshape(-1, h.shape[-1])
    total += losses.info_nce(h, out.v, targets, targets >= 0, weights, 0.1)
  return total + sum(sum(information) for information in out.mutual_information.values())


class ModelTest(chex.TestCase):
  @chex.variants(with_jit=True, without_jit=True)
  def test_shapes_and_signals(self):
    model, variables, batch = default()
    assert model.signals == ("id", "text", "image")
    out = self.variant(lambda v: model.apply(v, **batch))(variables)
    represent = lambda *args: model.apply(*args, True, method="represent")
    chex.assert_shape(out.latents.behavior, (P, 3, D))
    chex.assert_shape(list(out.latents.specific.values()), (P, D))
    chex.assert_shape(out.quantized.codes, (P, L, 3))
    h = [self.variant(represent)(variables, out.v, positions) for positions in POSITIONS]
    chex.assert_shape((out.v, *h), ((P, 3 * D), (B, T, 3 * D), (3, 1, 3 * D)))
    assert {m: x.shape for m, x in out.reconstructions.items()} == {
      "text": (P, 11),
      "image": (P, 3),
    }
    chex.assert_tree_all_finite(out)

  def test_every_switch_builds_and_trains_what_it_leaves(self):
    cases = [
      dict(use_id=False, use_specific=False, sequence_encoder="srgnn", sequence_kwargs={}),
      dict(shared_codebook=False, normalize_latents=False),
      dict(feature_dims={}),
    ]
    for case in cases:
      model, variables, batch = build(**case)
      grad_fn = jax.jit(jax.grad(functools.partial(total_loss, model)))
      grads = grad_fn(variables["params"], batch)
      chex.assert_tree_all_finite(grads)
      names = set(variables["params"])
      assert ("id_embedding" in names) == case.get("use_id", True)
      assert any(n.startswith("club_") for n in names) == (
        case.get("use_specific", True) and bool(model.feature_dims)
      )
      for name, grad in grads.items():  # No part is left without a teacher.
        assert any(np.any(leaf != 0) for leaf in jax.tree.leaves(grad)), (case, name)
    with pytest.raises(ValueError, match="at least one modality"):
      build(feature_dims={}, use_id=False)

  def test_padding_rows_change_nothing(self):
    model, variables, batch = default()
    loss_fn = jax.jit(jax.value_and_grad(lambda p, batch: total_loss(model, p, batch)))
    expected = loss_fn(variables["params"], batch)
    other = jax.tree.map(lambda x: x, batch)
    for m in FEATURE_DIMS:
      other["features"][m] = other["features"][m].at[4].set(100.0)
    chex.assert_trees_all_close(loss_fn(variables["params"], other), expected, rtol=1e-6)
    fewer = jax.tree.map(lambda x: x[: P - 1] if x.shape[0] == P else x, batch)
    assert fewer["items"].shape == (P - 1,)
    chex.assert_trees_all_close(loss_fn(variables["params"], fewer), expected, rtol=1e-4, atol=1e-5)

  def test_missing_inputs_take_the_learned_vector_and_teach_nothing_of_their_own(self):
    model, variables, batch = default()
    loss_fn = jax.jit(jax.value_and_grad(lambda p, batch: total_loss(model, p, batch)))
    other = jax.tree.map(lambda x: x, batch)
    other["features"]["text"] = other["features"]["text"].at[1].set(55.0)
    expected = loss_fn(variables["params"], batch)
    chex.assert_trees_all_equal(loss_fn(variables["params"], other), expected)
    given = jax.tree.map(lambda x: x, batch)
    given["features"]["text"] = (
      given["features"]["text"].at[1].set(variables["params"]["missing_text"])
    )
    given["present"]["text"] = jnp.ones(P, bool)
    args = ("items", "features", "present")
    missing_latents, given_latents = (
      model.apply(variables, *(b[k] for k in args), method="encode") for b in (batch, given)
    )
    chex.assert_trees_all_equal(missing_latents, given_latents)

  def test_mutual_information_counts_present_items_only(self):
    model, variables, batch = default()
    out = model.apply(variables, **batch)
    rows = jnp.array([0, 2, 3])  # With text.
    latents = tokenizer.Latents(
      out.latents.behavior[rows], {"text": out.latents.specific["text"][rows]}
    )
    expected = model.apply(variables, latents, {"text": jnp.ones(3)}, method="mutual_information")
    chex.assert_trees_all_close(out.mutual_information["text"], expected["text"], rtol=1e-4)

  @parameterized.parameters(True, False)
  def test_mutual_information_is_of_a_dimension_where_latents_are_normalised(self, normalize):
    model, variables, batch = build(normalize_latents=normalize)
    out = model.apply(variables, **batch)
    present = np.array([0, 2, 3])  # With text.
    z, z_bar = out.latents.behavior[present, 1], out.latents.specific["text"][present]
    dims = D if normalize else 1
    mean, log_variance = club.Club(model.club_hidden_dim, model.max_log_variance).apply(
      {"params": variables["params"]["club_text"]}, dims**0.5 * z
    )
    expected = reference.club_upper_bound(mean, log_variance, dims**0.5 * np.asarray(z_bar))
    found = out.mutual_information["text"]
    np.testing.assert_allclose(found.mim_loss, expected / dims, rtol=1e-4, atol=1e-6)
    rows = zip(dims**0.5 * np.asarray(z_bar), np.asarray(mean), np.asarray(log_variance))
    likelihood = np.mean([reference.gaussian_log_density(*row) for row in rows])
    np.testing.assert_allclose(found.likelihood_loss, -likelihood / dims, rtol=1e-5)

  def test_normalised_latents_have_unit_length_and_no_mean(self):
    model, variables, batch = default()
    latents = model.apply(variables, **batch).latents
    for z in (latents.behavior, *latents.specific.values()):
      np.testing.assert_allclose(jnp.linalg.norm(z, axis=-1), 1.0, rtol=1e-5)
      np.testing.assert_allclose(jnp.mean(z, axis=-1), 0.0, atol=1e-6)
    model, variables, batch = build(normalize_latents=False)
    latents = model.apply(variables, **batch).latents
    embedding = variables["params"]["id_embedding"]
    chex.assert_trees_all_equal(latents.behavior[:4, 0], embedding[batch["items"][:4]])

  @parameterized.parameters(True, False)
  def test_centered_encoders_have_mean_0_over_the_items_that_have_the_modality(self, use_specific):
    model, variables, batch = build(use_specific=use_specific)
    inputs = batch["features"], batch["present"]
    params = trainer.center_latents(model, variables["params"], *inputs)
    restored = {}
    for kind in ("behavior", "specific") if use_specific else ("behavior",):
      for modality in FEATURE_DIMS:
        name = f"{kind}_encoder_{modality}"
        layers = jax.tree.map(np.asarray, params[name])
        hidden, last = layers["Dense_0"], layers["Dense_1"]
        x = np.asarray(batch["features"][modality])[np.asarray(batch["present"][modality])]
        x = np.maximum(x @ hidden["kernel"] + hidden["bias"], 0) @ last["kernel"] + last["bias"]
        np.testing.assert_allclose(x.mean(axis=0), 0, atol=1e-6)
        assert np.all(x.std(axis=0) > 0)
        bias = variables["params"][name]["Dense_1"]["bias"]
        restored[name] = params[name] | {"Dense_1": last | {"bias": bias}}
    # Nothing else has changed, and nothing else is returned.
    assert params.keys() == restored.keys()
    chex.assert_trees_all_equal(restored, {name: variables["params"][name] for name in params})

  @parameterized.parameters(True, False)
  def test_the_contrast_of_the_loss_is_corrected_if_asked_to(self, logq_correction):
    model, variables, batch = build(dropout_rate=0.0)
    log_q = jnp.array([-0.1, -2.0, -0.7, -1.3, 0.0])
    targets = [jnp.array([[3, 0, 2, 1], [2, -1, -1, -1]]), jnp.array([[0], [1], [3]])]
    groups = tuple(
      dict(history=h[None], targets=t[None]) for h, t in zip(POSITIONS, targets, strict=True)
    )
    inputs = dict(features=batch["features"], present=batch["present"])
    constants = jax.tree.map(lambda x: jnp.zeros((NUM_ITEMS, *x.shape[1:]), x.dtype), inputs)
    constants = jax.tree.map(
      lambda table, x: table.at[batch["items"][:4]].set(x[:4]), constants, inputs
    )
    _, (terms, _) = trainer.loss_fn(
      model,
      variables["params"],
      dict(items=batch["items"][None], log_q=log_q[None], groups=groups),
      constants,
      jax.random.key(0),
      recon_weights=dict(text=1.0, image=1.0),
      commitment_weight=0.25,
      rec_weight=1.0,
      mim_weight=1.0,
      temperature=0.1,
      logq_correction=logq_correction,
    )
    v = model.apply(variables, **batch).v
    h = [model.apply(variables, v, p, True, method="represent") for p in POSITIONS]
    rows = np.concatenate([x.reshape(-1, x.shape[-1]) for x in h])
    wanted = np.concatenate([t.reshape(-1) for t in targets])
    q = np.exp(np.asarray(log_q)) if logq_correction else None
    weights = np.asarray(batch["items"] >= 0)
    expected = reference.info_nce(rows, np.asarray(v), wanted, weights, 0.1, q)
    np.testing.assert_allclose(terms["rec"], expected, rtol=1e-4)

  def test_id_latents_stand_in_for_the_embedding(self):
    model, variables, batch = default()
    args = (batch["items"], batch["features"], batch["present"])
    encoded = model.apply(variables, *args, method="encode")
    given = 5.0 * variables["params"]["id_embedding"][jnp.maximum(batch["items"], 0)]
    nobody = (jnp.full(P, -1), *args[1:])
    again = model.apply(variables, *nobody, id_latents=given, method="encode")
    chex.assert_trees_all_close(again, encoded, rtol=1e-5, atol=1e-6)
    model, variables, batch = build(use_id=False)
    with pytest.raises(ValueError, match="use_id=False"):
      model.apply(variables, *args, id_latents=given, method="encode")

  def test_lookup_gives_v_of_which_sequences_and_reconstructions_are_made(self):
    model, variables, batch = default()
    out = model.apply(variables, **batch)
    v = model.apply(variables, out.quantized.codes, method="lookup")
    chex.assert_trees_all_equal(v, out.v)
    rebuilt = model.apply(variables, v.reshape(P, 3, D), out.latents.specific, method="reconstruct")
    chex.assert_trees_all_equal(out.reconstructions, rebuilt)  # Decoders see q, not z.
    codebooks = np.asarray(variables["params"]["quantizer"]["codebooks"])[0]
    codes = np.asarray(out.quantized.codes)[3]  # [L, M]
    rows = [sum(codebooks[l, codes[l, m]] for l in range(L)) for m in range(3)]
    np.testing.assert_allclose(v[3], np.concatenate(rows), atol=1e-6)
    for positions in POSITIONS:
      expected = model.apply(variables, out.v, positions, True, method="represent")
      h = model.apply(variables, v[positions], positions, True, method="represent_sequence")
      kept = positions >= 0
      chex.assert_trees_all_close(h[kept], expected[kept], atol=1e-6)

  def test_decoders_see_q_alone_without_the_specific_latents(self):
    for use_specific in (True, False):
      model, variables, _ = build(use_specific=use_specific)
      specific = {"text": jnp.ones((P, D)), "image": jnp.ones((P, D))} if use_specific else {}
      q = jax.random.normal(jax.random.key(5), (P, 3, D))
      _, pullback = jax.vjp(
        lambda q, v=variables, z=specific, m=model: m.apply(v, q, z, method="reconstruct")["image"],
        q,
      )
      (grad,) = pullback(jax.random.normal(jax.random.key(6), (P, 3)))
      np.testing.assert_array_equal(np.any(np.asarray(grad) != 0, axis=(0, 2)), [0, 0, 1])
      first = variables["params"]["decoder_image"]["Dense_0"]["kernel"]
      assert first.shape[0] == (2 * D if use_specific else D)

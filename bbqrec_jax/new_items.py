"""Semantic IDs of items that stage one was not trained with."""

import pathlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import config_dict

from bbqrec_jax import checkpoint, fields, losses
from bbqrec_jax.data import scaling, semantic_ids
from bbqrec_jax.data.dataset import MODALITIES
from bbqrec_jax.errors import UserError
from bbqrec_jax.trainers import item_codes, rqvae, tokenizer

_TRAINERS = {trainer.STAGE: trainer for trainer in (tokenizer, rqvae)}
_NEIGHBOURS = 10  # Items whose ids stand in for the id that a new item lacks.


class FrozenTokenizer:
  """Stage one of a finished run, its parameters as they are.

  The id latent that a new item lacks is the mean of those of the 10 items of the training catalogue
  that are nearest to it in the other signals.
  """

  def __init__(self, model, params, scalings: Mapping[str, scaling.Scaling], vectors: np.ndarray):
    """Use FrozenTokenizer.load()."""
    self._model, self._params, self._scalings, self._vectors = model, params, scalings, vectors

  @classmethod
  def load(
    cls,
    workdir: pathlib.Path,
    config: config_dict.FrozenConfigDict,
    ids: semantic_ids.SemanticIds,
  ) -> "FrozenTokenizer":
    """Loads the selected parameters.

    Args:
      config: the run's.
      ids: what stage one has written, without any item that was added.

    Raises UserError if something of stage one is missing or damaged.
    """
    stage = fields.writer_of_ids(config)
    if stage not in _TRAINERS:
      raise UserError(
        f"Items cannot be added to {workdir}: its config has none of the stages "
        f"{', '.join(_TRAINERS)}, whose codebooks would give them semantic IDs."
      )
    scalings = scaling.load(workdir, [m for m in MODALITIES if m in ids.signals])
    model = _TRAINERS[stage].make_model(
      config[stage],
      num_items=len(ids.item_ids),
      feature_dims={name: len(s.mean) for name, s in scalings.items()},
    )
    template = jax.eval_shape(lambda: item_codes.init_params(model, jax.random.key(0)))
    params = checkpoint.best_params(workdir, stage, template)
    return cls(model, params, scalings, ids.vectors)

  def encode(
    self, num_items: int, given: Mapping[str, np.ndarray | None]
  ) -> tuple[np.ndarray, np.ndarray]:
    """Codes and quantized vectors of new items.

    Args:
      num_items: n.
      given: modality -> [n, F] features as those of the training data, before they were
        standardised; None, or a row of zeros, where missing.

    Returns:
      (codes [n, L, M] int32, vectors [n, M * D] float32).

    Raises UserError if features are missing, not finite, or of a wrong shape.
    """
    features, present = self._standardise(num_items, given)
    model, variables = self._model, {"params": self._params}
    items = jnp.full((num_items,), -1, jnp.int32)
    id_latents = ()
    if "id" in model.signals:
      dim = model.latent_dim
      blank = jnp.zeros((num_items, dim), jnp.float32)
      latents = model.apply(variables, items, features, present, blank, method="encode")
      codes = model.apply(variables, latents, method="tokenize").codes
      others = model.apply(variables, codes, method="lookup")[:, dim:]  # Without the id's part.
      catalogue = jnp.asarray(self._vectors[:, dim:])
      cosine = jnp.einsum("ne,ie->ni", losses.unit(others), losses.unit(catalogue))
      _, nearest = jax.lax.top_k(cosine, min(_NEIGHBOURS, len(catalogue)))
      known = model.apply(variables, nearest, method="id_latents")  # [n, 10, D]
      id_latents = (jnp.mean(known, axis=1),)
    latents = model.apply(variables, items, features, present, *id_latents, method="encode")
    codes = model.apply(variables, latents, method="tokenize").codes
    return np.asarray(codes), np.asarray(model.apply(variables, codes, method="lookup"))

  def _standardise(self, num_items: int, given: Mapping[str, np.ndarray | None]):
    """(features, present): modality -> [n, F] float32 and [n] bool, as stage one reads them."""
    features, present = {}, {}
    for name, values in given.items():
      if name not in self._scalings:
        if values is not None:
          raise UserError(f"This run was trained without {name}; leave it out.")
        continue
      scale = self._scalings[name]
      shape = (num_items, len(scale.mean))
      try:
        values = np.zeros(shape, np.float32) if values is None else np.asarray(values, np.float32)
      except (TypeError, ValueError, OverflowError) as error:  # Texts themselves, say.
        raise UserError(
          f"{name} must be vectors of numbers, of shape {shape}, as those of the training data "
          f"({error})."
        ) from error
      if values.shape != shape or not np.isfinite(values).all():
        raise UserError(f"{name} must be finite and of shape {shape}, got {values.shape}.")
      present[name] = np.any(values != 0, axis=1)
      standard = np.where(present[name][:, None], scale(values), 0.0)
      features[name] = jnp.asarray(standard, jnp.float32)
    if not present:
      raise UserError("This run was trained on ids alone; it cannot encode new items.")
    missing = ~np.any(list(present.values()), axis=0)
    if missing.any():
      raise UserError(
        f"{missing.sum()} of {num_items} new items have no vector; each needs one of "
        f"{', '.join(present)} that is not all zeros."
      )
    return features, present

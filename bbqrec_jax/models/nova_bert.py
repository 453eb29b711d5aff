"""NOVA-BERT: BERT4Rec whose attention, but not whose values, sees side information."""

import flax.linen as nn
import jax.numpy as jnp

from bbqrec_jax.errors import UserError
from bbqrec_jax.models import bert4rec, item_ranker


class Model(bert4rec.Model):
  """Non-invasive fusion: queries and keys are of items and features, values of items alone.

  Liu et al. 2021 (NOVA-BERT, arXiv:2103.03578), NOVA-SA with addition as fusion, one of its
  three; of the others, gating scores somewhat higher there. Addition leaves BERT4Rec where the side
  information is zero. Where we differ: side information is the modalities' features, each through
  a layer and a norm without biases, rather than embeddings of categories; positions belong to the
  items, as in BERT4Rec; and a masked item hides its features, for nobody knows those of the next.
  """

  def setup(self):
    super().setup()
    if not self.feature_dims:
      raise UserError("No item has text or image, which NOVA-BERT reads as side information.")
    self.side_layers = {
      modality: nn.Dense(self.width, use_bias=False, dtype=self.dtype)
      for modality in self.feature_dims
    }
    # So that features, whatever their scale, weigh about as much as the normed items.
    self.side_norms = {modality: nn.LayerNorm(use_bias=False) for modality in self.feature_dims}

  def side(self, sequence, inputs):
    total = 0.0
    for modality in self.feature_dims:
      x = item_ranker.rows(inputs["features"][modality], sequence)  # [B, S, F]
      x = self.side_norms[modality](self.side_layers[modality](x))
      there = item_ranker.rows(inputs["present"][modality][:, None], sequence)  # [B, S, 1]
      total += jnp.where(there > 0, x, 0.0)
    return total

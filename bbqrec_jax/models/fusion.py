"""Vectors of items out of ID embeddings and features: the _F of GRU4Rec_F and SASRec_F."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bbqrec_jax.errors import UserError
from bbqrec_jax.models import item_ranker


class Fusion(nn.Module):
  """One layer over the ID embedding and every modality's features, side by side.

  A missing input takes a learned vector, as in the tokenizer of BBQRec.
  """

  width: int  # E.
  feature_dims: Mapping[str, int]  # modality -> F.
  dtype: str = "float32"  # Of products; parameters and the result are float32.

  @nn.compact
  def __call__(self, ids: jax.Array, items: jax.Array, inputs: Mapping[str, Any]) -> jax.Array:
    """Fuses what belongs to the same item.

    Args:
      ids: [B, T, E] float32, the ID embeddings of `items`.
      items: [B, T] int32, -1 behind the end of a history.
      inputs: as in item_ranker.ItemRanker.

    Returns:
      [B, T, E] float32; finite, and of no meaning, where there is no item.

    Raises UserError if there is no modality.
    """
    if not self.feature_dims:
      raise UserError("No item has text or image, which this model joins to the id.")
    parts = [ids]
    for modality, dim in self.feature_dims.items():
      missing = self.param(f"missing_{modality}", nn.initializers.normal(0.01), (dim,))
      features = item_ranker.rows(inputs["features"][modality], items)  # [B, T, F]
      present = item_ranker.rows(inputs["present"][modality][:, None], items)  # [B, T, 1]
      parts.append(jnp.where(present > 0, features, missing[None, None, :]))
    fused = nn.Dense(self.width, dtype=self.dtype, name="out")(jnp.concatenate(parts, axis=-1))
    return fused.astype(jnp.float32)

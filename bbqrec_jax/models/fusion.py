"""Item vectors out of ID embeddings and features: the _F of GRU4Rec_F and SASRec_F."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bbqrec_jax.errors import UserError


class Fusion(nn.Module):
  """One layer over the ID embedding and every modality's features, side by side.

  A missing input takes a learned vector, as in the tokenizer of BBQRec.
  """

  width: int  # E.
  feature_dims: Mapping[str, int]  # modality -> F.
  dtype: str = "float32"  # Of products; parameters and the result are float32.

  @nn.compact
  def __call__(self, ids: jax.Array, inputs: Mapping[str, Any]) -> jax.Array:
    """Fuses what belongs to the same item.

    Args:
      ids: [I', E] float32.
      inputs: as in item_ranker.ItemRanker.

    Returns:
      [I', E] float32.

    Raises UserError if there is no modality.
    """
    if not self.feature_dims:
      raise UserError("No item has text or image, which this model joins to the id.")
    parts = [ids]
    for modality, dim in self.feature_dims.items():
      missing = self.param(f"missing_{modality}", nn.initializers.normal(0.01), (dim,))
      present = inputs["present"][modality][:, None]
      parts.append(jnp.where(present, inputs["features"][modality], missing[None, :]))
    fused = nn.Dense(self.width, dtype=self.dtype, name="out")(jnp.concatenate(parts, axis=-1))
    return fused.astype(jnp.float32)

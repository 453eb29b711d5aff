"""GRU4Rec_F: GRU4Rec over item vectors into which the modalities' features are fused."""

from bbqrec_jax.models import fusion, gru4rec, item_ranker


class Model(gru4rec.Model):
  """GRU4Rec whose item vectors are made of the ID embedding and the features, concatenated.

  The modality-fused baseline of BBQRec Table 2 (arXiv:2504.06636), which says no more of it; fused
  as in models/sasrec_f.py.
  """

  def setup(self):
    super().setup()
    self.fusion = fusion.Fusion(self.width, self.feature_dims, self.dtype)

  def items(self, inputs):
    ids = super().items(inputs)
    return item_ranker.Items(self.fusion(ids.vectors, inputs), ids.bias)

"""SASRec_F: SASRec over item vectors into which the modalities' features are fused."""

from bbqrec_jax.models import fusion, item_ranker, sasrec


class Model(sasrec.Model):
  """SASRec whose item vectors are made of the ID embedding and the features, concatenated.

  The modality-fused baseline of BBQRec Table 2 (arXiv:2504.06636), which says no more of it. Here
  one layer projects the concatenation to the model's width, and the fused vectors are what goes in
  and what is scored against, as SASRec's table is.
  """

  def setup(self):
    super().setup()
    self.fusion = fusion.Fusion(self.width, self.feature_dims, self.dtype)

  def items(self, inputs):
    ids = super().items(inputs)
    return item_ranker.Items(self.fusion(ids.vectors, inputs), ids.bias)

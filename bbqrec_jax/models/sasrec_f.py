"""SASRec_F: SASRec that reads of every item its modalities' features too."""

from bbqrec_jax.models import fusion, sasrec


class Model(sasrec.Model):
  """SASRec whose input is made of the ID embedding and the features, concatenated.

  The modality-fused baseline of BBQRec Table 2 (arXiv:2504.06636, section 5.1), which extends
  SASRec "with the concatenation of item embeddings and the pre-trained modality representations".
  As in RecBole's SASRecF, on which the paper's own is based, one layer projects the concatenation
  to the model's width, and what is scored against are the ID embeddings alone.
  """

  def setup(self):
    super().setup()
    self.fusion = fusion.Fusion(self.width, self.feature_dims, self.dtype)

  def embed(self, items, history, inputs):
    return self.fusion(super().embed(items, history, inputs), history, inputs)

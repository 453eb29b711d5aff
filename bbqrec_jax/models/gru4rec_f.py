"""GRU4Rec_F: GRU4Rec that reads of every item its modalities' features too."""

from bbqrec_jax.models import fusion, gru4rec


class Model(gru4rec.Model):
  """GRU4Rec whose input is made of the ID embedding and the features, concatenated.

  The modality-fused baseline of BBQRec Table 2 (arXiv:2504.06636, section 5.1): both together
  "serve as the input for the GRU". Fused as in models/sasrec_f.py. Where we differ: Hidasi et al.
  2016 ("Parallel Recurrent Neural Network Architectures for Feature-rich Session-based
  Recommendations", RecSys), whom the paper cites, and RecBole's GRU4RecF have a recurrent network
  for the items and one for the features, whose states they join.
  """

  def setup(self):
    super().setup()
    self.fusion = fusion.Fusion(self.width, self.feature_dims, self.dtype)

  def embed(self, items, history, inputs):
    return self.fusion(super().embed(items, history, inputs), history, inputs)

"""SASRec: self-attentive sequential recommendation."""

import jax.numpy as jnp

from bbqrec_jax.models import item_ranker, sasrec_encoder


class Model(item_ranker.LeftToRight):
  """A causal transformer over embeddings of the items, scored by the same embeddings.

  Kang and McAuley 2018 (SASRec, arXiv:1808.09781), Eqs. (1)-(6): one table of embeddings serves as
  input and as output, and positions are learned. Where we differ: blocks are those of
  models/sasrec_encoder.py, and the loss is by default a cross-entropy over all items rather than
  Eq. (7) with one sampled negative (`ranker.loss="bce"`; see trainers/ranker.py).
  """

  width: int = 128  # E, d of the paper.
  num_layers: int = 2
  num_heads: int = 2
  mlp_dim: int = 256
  dropout_rate: float = 0.5
  dtype: str = "float32"  # Of products; parameters, softmax and the result are float32.

  def setup(self):
    self.id_embedding = self.id_table(self.width)
    self.encoder = sasrec_encoder.Encoder(
      out_dim=None,
      max_history=self.max_history,
      width=self.width,
      num_layers=self.num_layers,
      num_heads=self.num_heads,
      mlp_dim=self.mlp_dim,
      dropout_rate=self.dropout_rate,
      dtype=self.dtype,
      init_scale=0.02,
    )

  def items(self, inputs):
    return item_ranker.Items(self.id_embedding, jnp.zeros(len(self.id_embedding)))

  def hidden(self, items, history, inputs, deterministic):
    return self.encoder(self.embed(items, history, inputs), history, deterministic)

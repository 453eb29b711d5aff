"""GRU4Rec: a recurrent network over the items of a session."""

import flax.linen as nn
import jax.numpy as jnp

from bbqrec_jax.models import item_ranker, layers


class Model(item_ranker.LeftToRight):
  """Gated recurrent units over embeddings of the items, scored by the same embeddings.

  Hidasi et al. 2016 (GRU4Rec, arXiv:1511.06939), section 3; the unit is that of flax, whose reset
  gate acts behind the recurrent product, and which has biases. Where we differ, as RecBole does: a
  user's whole history is one session, whole sequences make a batch rather than parallel ones one
  step at a time, embeddings are dropped out, a layer projects the states to their width, the output
  is tied to them, and the loss is a cross-entropy over all items rather than BPR or TOP1 over those
  of the batch.
  """

  width: int = 128  # E.
  hidden_dim: int = 128
  num_layers: int = 1
  dropout_rate: float = 0.3
  dtype: str = "float32"  # Of products; parameters and the result are float32.

  def setup(self):
    self.id_embedding = self.id_table(self.width)
    self.dropout = layers.Dropout(self.dropout_rate)
    self.units = [
      nn.RNN(nn.GRUCell(self.hidden_dim, dtype=self.dtype)) for _ in range(self.num_layers)
    ]
    self.out = nn.Dense(self.width, dtype=self.dtype)

  def items(self, inputs):
    return item_ranker.Items(self.id_embedding, jnp.zeros(len(self.id_embedding)))

  def hidden(self, items, history, inputs, deterministic):
    x = self.dropout(self.embed(items, history, inputs), deterministic)
    for unit in self.units:
      x = unit(x)  # Padding comes last, so that no item's state depends on it.
    return self.out(x).astype(jnp.float32)

"""VQ-Rec: items as the codes of their text."""

from collections.abc import Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bbqrec_jax import losses
from bbqrec_jax.errors import UserError
from bbqrec_jax.models import item_ranker, opq, sasrec_encoder

_MODALITY = "text"
_SAMPLE = 50_000  # Items that codebooks are made from; bounds the memory.
_CHUNK = 50_000  # Items that are encoded at once.


class Items(NamedTuple):
  """As item_ranker.Items, with what the sequence encoder reads."""

  vectors: jax.Array  # [I', E] float32, of unit length.
  bias: jax.Array  # [I'] float32.
  pooled: jax.Array  # [I', E] float32, the vectors before they were scaled.


class Model(item_ranker.LeftToRight):
  """SASRec over the mean of each item's code embeddings.

  Hou et al. 2023 (VQ-Rec, arXiv:2210.12316), section 2.2: text becomes discrete codes by optimized
  product quantization (models/opq.py), a code vector of each subspace is looked up in tables that
  are learned, and their mean is the item, as the sequence encoder's input and as what its output is
  compared with. As in the authors' released code, the score is the cosine divided by a temperature,
  and the loss a cross-entropy over all items. No id is read: items of equal codes are one.

  Where we differ: trained from scratch on the data themselves, without the pre-training on other
  domains, its semi-synthetic negatives, and the permutation of code embeddings that transfers it;
  text features are standardised before quantization, which is fitted to all items with a text, by
  no inverted file and by squared distance; every position of a sequence is a target; an item
  without text has a code of its own in every subspace; blocks are those of
  models/sasrec_encoder.py.
  """

  num_subspaces: int = 32  # S, the paper's D; fewer where the text has fewer dimensions.
  codebook_size: int = 256  # N, the paper's M.
  opq_iters: int = 20
  temperature: float = 0.07
  width: int = 128  # E.
  num_layers: int = 2
  num_heads: int = 2
  mlp_dim: int = 256
  dropout_rate: float = 0.5
  dtype: str = "float32"  # Of products; parameters, softmax and the result are float32.

  def setup(self):
    shape = (self._subspaces(), self.codebook_size + 1, self.width)
    self.code_embedding = self.param("code_embedding", nn.initializers.normal(0.02), shape)
    self.encoder = sasrec_encoder.Encoder(
      out_dim=None,
      max_history=self.max_history,
      width=self.width,
      num_layers=self.num_layers,
      num_heads=self.num_heads,
      mlp_dim=self.mlp_dim,
      dropout_rate=self.dropout_rate,
      dtype=self.dtype,
    )

  @nn.nowrap
  def prepare(self, inputs, key):
    """The codes, [I', S] int32 in [0, N]; N where an item has no text.

    Raises UserError if the data have no text.
    """
    features, present = text_of(inputs)
    rows = np.flatnonzero(present)
    fit_key, sample_key = jax.random.split(key)
    order = np.asarray(jax.random.permutation(sample_key, len(rows)))
    quantizer = opq.fit(
      fit_key,
      features[rows[order[:_SAMPLE]]],
      num_subspaces=self._subspaces(),
      codebook_size=self.codebook_size,
      num_iters=self.opq_iters,
    )
    codes = np.full((len(features), self._subspaces()), self.codebook_size, np.int32)
    for start in range(0, len(rows), _CHUNK):
      chunk = rows[start : start + _CHUNK]
      codes[chunk] = quantizer.encode(features[chunk])
    return dict(codes=codes)

  @nn.nowrap
  def _subspaces(self) -> int:
    return min(self.num_subspaces, self.feature_dims.get(_MODALITY, self.num_subspaces))

  def items(self, inputs):
    pooled = pool(self.code_embedding, inputs["codes"])
    return Items(losses.unit(pooled), jnp.zeros(len(pooled)), pooled)

  def embed(self, items, history, inputs):
    return item_ranker.rows(items.pooled, history)

  def hidden(self, items, history, inputs, deterministic):
    v = self.embed(items, history, inputs)
    return losses.unit(self.encoder(v, history, deterministic)) / self.temperature


def text_of(inputs: Mapping) -> tuple[np.ndarray, np.ndarray]:
  """The text's features [I', F] and which items have any [I']; UserError if none has."""
  if _MODALITY not in inputs["features"]:
    raise UserError("vq_rec: no item has a text vector, and its codes are made of nothing else.")
  return inputs["features"][_MODALITY], inputs["present"][_MODALITY]


def pool(tables: jax.Array, codes: jax.Array) -> jax.Array:
  """The mean of the embeddings of an item's codes: [S, N + 1, E], [I', S] int32 -> [I', E]."""

  def add(total, subspace):
    table, codes = subspace
    return total + table[codes], None

  # One subspace after the other: the embeddings of all at once would be S catalogues.
  zeros = jnp.zeros((len(codes), tables.shape[-1]), tables.dtype)
  total, _ = jax.lax.scan(add, zeros, (tables, codes.T))
  return total / len(tables)

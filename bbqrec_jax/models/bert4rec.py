"""BERT4Rec: masked items, predicted from both sides."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from bbqrec_jax.models import item_ranker, sasrec_encoder


class Model(item_ranker.ItemRanker):
  """A bidirectional transformer that learns to fill in masked items of a sequence.

  Sun et al. 2019 (BERT4Rec, arXiv:1904.06690), Eqs. (1)-(8); a mask behind the history asks for
  the next item. As in the authors' program round(mask_rate * n) of a sequence's n items, and one at
  least, are masked, or its last item alone, which there is one sample to every ten of the others;
  all masked items weigh the same, where Eq. (8) gives all sequences the same; and a LayerNorm
  follows the GELU of Eq. (7), which the paper does not have. Where we differ: blocks are those of
  models/sasrec_encoder.py (pre-norm), and which of both a sequence is in an epoch is drawn.
  """

  width: int = 128  # E, d of the paper.
  num_layers: int = 2
  num_heads: int = 2
  mlp_dim: int = 256
  mask_rate: float = 0.6  # rho.
  last_rate: float = 1 / 11  # Of sequences whose last item alone is masked.
  dropout_rate: float = 0.2
  dtype: str = "float32"  # Of products; parameters, softmax and the result are float32.

  def setup(self):
    self.id_embedding = self.id_table(self.width)
    self.item_bias = self.param("item_bias", nn.initializers.zeros, (len(self.id_embedding),))
    self.mask_embedding = self.param("mask_embedding", nn.initializers.normal(0.02), (self.width,))
    self.encoder = sasrec_encoder.Encoder(
      out_dim=None,
      max_history=self.max_history + 1,  # The mask, or the last target.
      width=self.width,
      num_layers=self.num_layers,
      num_heads=self.num_heads,
      mlp_dim=self.mlp_dim,
      dropout_rate=self.dropout_rate,
      dtype=self.dtype,
      init_scale=0.02,
      causal=False,
    )
    init = nn.initializers.normal(0.02)
    self.head = nn.Dense(self.width, dtype=self.dtype, kernel_init=init)
    self.head_norm = nn.LayerNorm(dtype=self.dtype)

  def items(self, inputs):
    return item_ranker.Items(self.id_embedding, self.item_bias)

  def predictions(self, items, history, targets, inputs, deterministic):
    sequence = jnp.concatenate([history[:, :1], targets], axis=1)  # [R, S], S = T + 1.
    chosen, asked = self._corrupt(sequence)
    place = jax.nn.one_hot(jnp.where(asked, chosen, -1), sequence.shape[1], dtype=bool)
    hidden = self._encode(items, sequence, jnp.any(place, axis=1), inputs, deterministic)
    hidden = jnp.take_along_axis(hidden, chosen[:, :, None], axis=1)  # [R, P, E]
    wanted = jnp.where(asked, jnp.take_along_axis(sequence, chosen, axis=1), -1)
    return item_ranker.Predictions(self._project(hidden), wanted)

  def represent(self, items, history, inputs):
    sequence = jnp.pad(history, ((0, 0), (0, 1)), constant_values=-1)
    length = jnp.sum(history >= 0, axis=1)  # [B]
    masked = jnp.arange(sequence.shape[1])[None, :] == length[:, None]
    hidden = self._encode(items, sequence, masked, inputs, True)
    return self._project(jnp.take_along_axis(hidden, length[:, None, None], axis=1)[:, 0])

  def side(self, sequence: jax.Array, inputs) -> jax.Array | None:
    """What queries and keys see beside the items [B, S] int32, -1 where there is none to be seen.

    Nothing here; [B, S, E] float32 in models/nova_bert.py.
    """
    del sequence, inputs
    return None

  def _corrupt(self, sequence: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What is masked of sequences [R, S] int32, -1 behind the end.

    Returns:
      chosen: [R, P] int32, positions.
      asked: [R, P] bool, whether each of them is masked.
    """
    places = jnp.arange(sequence.shape[1])[None, :]
    order_key, alone_key = jax.random.split(self.make_rng("mask"))
    length = jnp.sum(sequence >= 0, axis=1, keepdims=True)  # [R, 1], 2 at least, or 0.
    alone = jax.random.uniform(alone_key, length.shape) < self.last_rate
    order = jnp.where(sequence >= 0, jax.random.uniform(order_key, sequence.shape), 2.0)
    order = jnp.where(alone & (places == length - 1), -1.0, order)
    most = min(math.ceil(self.mask_rate * sequence.shape[1]) + 1, sequence.shape[1])
    count = jnp.clip(jnp.round(self.mask_rate * length).astype(jnp.int32), 1, most)
    count = jnp.where(alone, 1, count)
    _, chosen = jax.lax.top_k(-order, most)
    return chosen, (jnp.arange(most)[None, :] < count) & (length > 0)

  def _encode(self, items, sequence, masked, inputs, deterministic):
    """[B, S, E] of sequences [B, S] int32 whose items at `masked` [B, S] bool are hidden."""
    seen = jnp.where(masked, -1, sequence)
    x = jnp.where(
      masked[:, :, None], self.mask_embedding[None, None, :], item_ranker.rows(items.vectors, seen)
    )
    taken = jnp.where(masked | (sequence >= 0), 0, -1)
    return self.encoder(x, taken, deterministic, self.side(seen, inputs))

  def _project(self, hidden):
    return self.head_norm(nn.gelu(self.head(hidden))).astype(jnp.float32)

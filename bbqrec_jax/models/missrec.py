"""MISSRec: sequences of multi-modal items, seen beside the interests that they are made of."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bbqrec_jax import losses
from bbqrec_jax.errors import UserError
from bbqrec_jax.models import item_ranker, layers, quantizer

_SAMPLE = 50_000  # Items that interests are made from; bounds the memory.
_CHUNK = 50_000  # Items whose interests are looked for at once.
_KMEANS_ITERS = 20


class Items(NamedTuple):
  """As item_ranker.Items, with what the encoder and the decoder read."""

  vectors: jax.Array  # [I', M', E] float32 of unit length: modalities, then the id if there is one.
  bias: jax.Array  # [I'] float32.
  sharpness: jax.Array  # [] float32, of the fusion of modalities.
  embeds: jax.Array  # [I', E] float32, an item in a history.
  interests: jax.Array  # [Q, E] float32, of all modalities.
  tokens: jax.Array  # [I', M] int32 in [0, Q), the interest of each modality; -1 without it.


class Model(item_ranker.OneTarget):
  """A context encoder of a history's interests, and a decoder of its items that attends to them.

  Wang et al. 2023 (MISSRec, arXiv:2308.11175), section 3, in the form of the authors' released
  code and settings:

  * every modality has a linear adapter; the vectors of all items are clustered by k-means, and a
    cluster is an interest, whose embedding is its center behind the adapter;
  * the distinct interests of a history's items, a set without positions, go through the context
    encoder;
  * the decoder reads the items (the sum of their adapted modalities, of their id when fine-tuning,
    and of a position), attends to all of them and then to the encoded interests; its output at the
    last item is the sequence;
  * a candidate is scored by the cosines to each of its modalities, fused by a softmax over the very
    cosines times a learned sharpness (which starts at 0, the mean); the id's cosine joins with the
    weight of one modality. Scores are divided by a temperature.

  trainers/pretrainer.py holds the contrastive objective of the pre-training, with use_id=False; the
  ranker's cross-entropy over all items fine-tunes, with the id.

  Where we differ: pre-training is on the same data, and nothing is transferred between domains, so
  that fine-tuning moves every parameter, where the program then keeps the positions, the encoder
  and the decoder as they were pre-trained; interests are 256 of a modality, where the program has
  one for every two vectors when fine-tuning (for fifty when pre-training); text and image are not
  of one space here, so that each is clustered by itself, once, in the space of its features, and
  not all together behind the adapters anew in every epoch; gradients reach the adapters through the
  interests too; a modality that an item does not have takes no part in the fusion, and one interest
  is no token twice; with a single modality and the id a candidate's score is the mean of both
  cosines, as it is with more, and not the cosine to the sum of both vectors; an item that is
  dropped from a history in pre-training takes its image with it; the penalty on the mean of the
  encoded interests, of weight 1e-4, and the norms behind the last block of encoder and decoder are
  left out; features are standardised (data/scaling.py); dropout of attention weights draws one mask
  for all sequences of a batch and all heads (Flax's default).
  """

  use_id: bool = True
  num_interests: int = 256  # Of a modality, at most one for every item that has it.
  temperature: float = 0.07
  width: int = 128  # E.
  num_layers: int = 1  # Of the encoder, and as many of the decoder.
  num_heads: int = 4
  mlp_dim: int = 256
  dropout_rate: float = 0.5
  dtype: str = "float32"  # Of products; parameters, softmax and the result are float32.

  def setup(self):
    self.adapters = {
      name: nn.Dense(self.width, dtype=self.dtype, name=f"adapter_{name}")
      for name in self.feature_dims
    }
    self.sharpness = self.param("sharpness", nn.initializers.zeros, ())
    shape = (self.max_history, self.width)
    self.positions = self.param("positions", nn.initializers.normal(0.02), shape)
    if self.use_id:
      self.id_embedding = self.id_table(self.width)
    block = functools.partial(
      Block, self.num_heads, self.mlp_dim, self.dropout_rate, dtype=self.dtype
    )
    self.encoder = [block() for _ in range(self.num_layers)]
    self.decoder = [block() for _ in range(self.num_layers)]
    self.norm = nn.LayerNorm(dtype=self.dtype)
    self.dropout = layers.Dropout(self.dropout_rate)

  @nn.nowrap
  def prepare(self, inputs, key):
    """Of each modality the interests' centers, [Q', F] float32, and each item's, [I'] int32 or -1.

    Raises UserError if the data have neither text nor images.
    """
    if not inputs["features"]:
      raise UserError(
        "missrec: no item has a vector of text or image, of which it makes interests."
      )
    prepared = {}
    for name, features in inputs["features"].items():
      key, own_key = jax.random.split(key)
      centers, nearest = discover_interests(
        own_key, features, inputs["present"][name], self.num_interests
      )
      prepared |= {f"centers_{name}": centers, f"interests_{name}": nearest}
    return prepared

  @nn.nowrap
  def scorer(self, items):
    return losses.Scorer(
      functools.partial(score_items, self.use_id, self.temperature, items.sharpness),
      functools.partial(score_rows, self.use_id, self.temperature, items.sharpness),
    )

  def items(self, inputs):
    vectors, interests, tokens, size = [], [], [], 0
    for name, adapter in self.adapters.items():
      adapted = adapter(inputs["features"][name]).astype(jnp.float32)
      vectors.append(jnp.where(inputs["present"][name][:, None], adapted, 0.0))
      own = inputs[f"interests_{name}"]
      tokens.append(jnp.where(own >= 0, own + size, -1))
      interests.append(adapter(inputs[f"centers_{name}"]).astype(jnp.float32))
      size += len(interests[-1])
    if self.use_id:
      vectors.append(self.id_embedding)
    vectors = jnp.stack(vectors, axis=1)  # [I', M', E]
    return Items(
      vectors=losses.unit(vectors),
      bias=jnp.zeros(len(vectors)),
      sharpness=self.sharpness,
      embeds=jnp.sum(vectors, axis=1),
      interests=jnp.concatenate(interests),
      tokens=jnp.stack(tokens, axis=1),
    )

  def sequence(self, items, history, inputs, deterministic):
    tokens = interest_tokens(history, items.tokens)  # [R, S]
    context_mask = tokens >= 0
    context = item_ranker.rows(items.interests, tokens)
    for block in self.encoder:
      context = block(context, context_mask, deterministic)
    mask = history >= 0
    x = item_ranker.rows(items.embeds, history) + self.positions[None, : history.shape[1]]
    x = self.dropout(self.norm(x), deterministic)
    for block in self.decoder:
      x = block(x, mask, deterministic, context, context_mask)
    return losses.unit(item_ranker.last_item(x, history).astype(jnp.float32))


class Block(nn.Module):
  """Self-attention, attention to a context if there is one, and a GELU layer; each then normed."""

  num_heads: int
  mlp_dim: int
  dropout_rate: float
  dtype: str = "float32"

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    mask: jax.Array,
    deterministic: bool,
    context: jax.Array | None = None,
    context_mask: jax.Array | None = None,
  ) -> jax.Array:
    """One layer: [R, T, E] -> [R, T, E].

    Args:
      mask: [R, T] bool, the tokens that may be seen.
      context, context_mask: [R, S, E] and [R, S] bool, of what else is attended to.
    """

    def attend(name, keys, keys_mask):
      attention = nn.MultiHeadDotProductAttention(
        self.num_heads,
        dtype=self.dtype,
        force_fp32_for_softmax=True,
        dropout_rate=self.dropout_rate,
        deterministic=deterministic,
        name=name,
      )
      return attention(x, keys, mask=keys_mask[:, None, None, :])

    dense = functools.partial(nn.Dense, dtype=self.dtype)
    norm = functools.partial(nn.LayerNorm, dtype=self.dtype)
    dropout = lambda y: layers.Dropout(self.dropout_rate)(y, deterministic)
    x = norm(name="self_norm")(x + dropout(attend("self_attention", x, mask)))
    if context is not None:
      y = attend("context_attention", context, context_mask)
      x = norm(name="context_norm")(x + dropout(y))
    y = dropout(nn.gelu(dense(self.mlp_dim, name="mlp_in")(x)))
    return norm(name="mlp_norm")(x + dropout(dense(x.shape[-1], name="mlp_out")(y)))


def discover_interests(
  key: jax.Array, features: np.ndarray, present: np.ndarray, num_interests: int
) -> tuple[np.ndarray, np.ndarray]:
  """Clusters the vectors of one modality by k-means.

  Args:
    features: [I', F] float32; present: [I'] bool, whether an item has one, as at least one has.
    num_interests: at most so many clusters.

  Returns:
    (centers [Q, F] float32, nearest [I'] int32 in [0, Q), -1 where an item has none).
  """
  rows = np.flatnonzero(present)
  sample_key, key = jax.random.split(key)
  sample = rows[np.asarray(jax.random.permutation(sample_key, len(rows)))[:_SAMPLE]]
  centers = quantizer.kmeans_init(
    key,
    features[sample][:, None],
    num_levels=1,
    codebook_size=min(num_interests, len(sample)),
    num_iters=_KMEANS_ITERS,
    shared=True,
  )[0, 0]
  nearest = np.full(len(features), -1, np.int32)
  for start in range(0, len(rows), _CHUNK):
    chunk = rows[start : start + _CHUNK]
    nearest[chunk] = quantizer.nearest(jnp.asarray(features[chunk]), centers)
  return np.asarray(centers), nearest


def interest_tokens(history: jax.Array, interests: jax.Array) -> jax.Array:
  """The distinct interests of each history's items.

  Args:
    history: [R, T] int32, -1 behind the end.
    interests: [I', M] int32, of every item by each modality; -1: none.

  Returns:
    [R, M * T] int32: each interest where it occurs first, -1 elsewhere.
  """
  found = jnp.where((history >= 0)[..., None], interests[jnp.maximum(history, 0)], -1)  # [R, T, M]
  found = jnp.swapaxes(found, 1, 2).reshape(len(history), -1)
  same = found[:, :, None] == found[:, None, :]
  earlier = np.tri(found.shape[1], k=-1, dtype=bool)
  return jnp.where(jnp.any(same & earlier[None], axis=2), -1, found)


class Fused(NamedTuple):
  """Candidates of whose modalities and id one is made.

  A softmax over two cosines a and b is a sigmoid of their difference d, which makes their fusion
  b + d * sigmoid(sharpness * d): two products with a history. With one modality it is linear, and
  one product is enough.
  """

  base: jax.Array  # [P, E] float32, whose product with h is the cosine without that addition.
  gap: jax.Array | None  # [P, E] float32, whose product with h is d; None with one modality.
  weight: jax.Array | None  # [P] float32, of the addition; 0 where a modality is missing.


def fuse(use_id: bool, vectors: jax.Array) -> Fused:
  """What is the same for all histories.

  Args:
    use_id: whether the last of the M' is the id, which weighs as much as one modality.
    vectors: [P, M', E], of unit length, or zeros where a candidate has none. The modalities are one
      or two.
  """
  vectors = vectors.astype(jnp.float32)
  modal = vectors[:, :-1] if use_id else vectors
  present = jnp.any(modal != 0, axis=-1)  # [P, M]
  count = jnp.sum(present, axis=1, dtype=jnp.float32)
  share = count / (count + 1) if use_id else jnp.ones_like(count)
  if modal.shape[1] == 1:
    base, gap, weight = modal[:, 0], None, None
  else:
    first, second = jnp.moveaxis(modal, 1, 0)  # Fails where there are more.
    both = jnp.all(present, axis=1)
    base = second + jnp.where(both[:, None], 0.0, first)
    gap, weight = first - second, jnp.where(both, share, 0.0)
  base *= share[:, None]
  return Fused(base + vectors[:, -1] / (count + 1)[:, None] if use_id else base, gap, weight)


def score_items(use_id, temperature, sharpness, h, vectors, bias, precision=None):
  """As losses.score_items(), of candidates with vectors [I', M', E]."""
  product = lambda v: losses.score_items(h, v.astype(h.dtype), jnp.zeros_like(bias), precision)
  return _cosines(fuse(use_id, vectors), sharpness, product) / temperature + bias[None, :]


def score_rows(use_id, temperature, sharpness, h, vectors, bias, items):
  """As losses.score_rows(), of candidates with vectors [I', M', E]."""
  product = lambda v: jnp.sum(h.astype(jnp.float32) * v, axis=-1)
  return _cosines(fuse(use_id, vectors[items]), sharpness, product) / temperature + bias[items]


def _cosines(fused: Fused, sharpness: jax.Array, product: Callable) -> jax.Array:
  """One cosine out of those to all that a candidate has; 0 if nothing is known of it.

  Args:
    sharpness: [] float32: 0 gives the mean over the modalities, more the largest its way.
    product: of histories with [P, E]: [..., P] float32.
  """
  cosines = product(fused.base)
  if fused.gap is None:
    return cosines
  d = product(fused.gap)
  return cosines + jnp.broadcast_to(fused.weight, d.shape) * d * jax.nn.sigmoid(sharpness * d)

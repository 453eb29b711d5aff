"""BBQRec's generator: an encoder-decoder that spells the next item's semantic ID.

T5-like (Raffel et al. 2020, arXiv:1910.10683): pre-norm with RMSNorm, relative position bias,
no biases. The encoder's self-attention is similarity-enhanced (BBQRec Eqs. (14)-(17)). Where T5
drops out attention weights too, this model drops out none, in any of its attentions: the back ends
of the similarity-enhanced one keep them to themselves.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from bbqrec_jax.models import attention, layers

ENCODERS = ("bidirectional", "causal")


class Memory(NamedTuple):
  """What the decoder reads of a history: keys and values of every decoder layer, per user."""

  keys: tuple[jax.Array, ...]  # One [B, S, H, D] for each decoder layer.
  values: tuple[jax.Array, ...]
  mask: jax.Array  # [B, S] bool, False for padding.


class Cache(NamedTuple):
  """State of a decoding: the history's memory, shared by the beams, and each beam's own past."""

  memory: Memory
  keys: tuple[jax.Array, ...]  # One [B, W, l, H, D] for each decoder layer; l tokens so far.
  values: tuple[jax.Array, ...]


def reorder(cache: Cache, parents: jax.Array) -> Cache:
  """Gives beam w the past of beam parents[b, w]: [B, W] int32. The memory is not touched."""
  take = lambda x: jnp.take_along_axis(x, parents[:, :, None, None, None], axis=1)
  return cache._replace(
    keys=jax.tree.map(take, cache.keys), values=jax.tree.map(take, cache.values)
  )


class EncoderLayer(nn.Module):
  """Similarity-enhanced self-attention, then feed-forward; each pre-norm with a residual."""

  num_heads: int
  head_dim: int
  ff_dim: int
  dropout_rate: float
  dtype: str

  @nn.compact
  def __call__(
    self, x: jax.Array, bias: jax.Array, attend: Callable, deterministic: bool
  ) -> jax.Array:
    """x [B, S, d], bias [B, H, S, S]; attend: scores, values -> mixed values, as layers.mix."""
    norm = functools.partial(nn.RMSNorm, dtype=self.dtype)
    heads = layers.Attention(
      self.num_heads, self.head_dim, x.shape[-1], self.dtype, name="attention"
    )
    queries, keys, values = heads.qkv(norm(name="attention_norm")(x))
    mixed = attend(layers.scores(queries, keys) + bias, values)
    x = x + layers.Dropout(self.dropout_rate)(heads.out(mixed), deterministic)
    hidden = layers.FeedForward(self.ff_dim, self.dropout_rate, self.dtype, name="ff")(
      norm(name="ff_norm")(x), deterministic
    )
    return x + layers.Dropout(self.dropout_rate)(hidden, deterministic)


class DecoderLayer(nn.Module):
  """Causal self-attention over the levels, attention to the history, feed-forward."""

  model_dim: int
  num_heads: int
  head_dim: int
  ff_dim: int
  dropout_rate: float
  dtype: str

  def setup(self):
    heads = (self.num_heads, self.head_dim, self.model_dim, self.dtype)
    norm = functools.partial(nn.RMSNorm, dtype=self.dtype)
    self.self_norm, self.cross_norm, self.ff_norm = norm(), norm(), norm()
    self.self_attention = layers.Attention(*heads)
    self.cross_attention = layers.Attention(*heads)
    self.ff = layers.FeedForward(self.ff_dim, self.dropout_rate, self.dtype)
    self.dropout = layers.Dropout(self.dropout_rate)

  def qkv(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of self-attention: [B, P, l, d] -> three of [B, P, l, H, D]."""
    return self.self_attention.qkv(self.self_norm(x))

  def __call__(
    self,
    x: jax.Array,
    query: jax.Array,
    past: tuple[jax.Array, jax.Array],
    self_bias: jax.Array,
    history: tuple[jax.Array, jax.Array],
    history_bias: jax.Array,
    deterministic: bool,
  ) -> jax.Array:
    """One layer.

    Args:
      x: [B, P, q, d], q tokens of each of P prefixes (or beams).
      query: [B, P, q, H, D], of qkv(x).
      past: keys and values, [B, P, k, H, D] each, of these tokens and the ones before them.
      self_bias: [H, q, k] relative position bias, MASKED where a token may not look.
      history: keys and values, [B, S, H, D] each: once per user, whatever P is.
      history_bias: float32 that broadcasts to [B, H, P, q, S], MASKED where a prefix may not look.
    """
    batch_size, num_prefixes, num_tokens, _ = x.shape
    # [B, P, H, q, k]
    mixed = layers.mix(layers.scores(query, past[0]) + self_bias[None, None], past[1])
    x = x + self.dropout(self.self_attention.out(mixed), deterministic)

    query = self.cross_attention.query(self.cross_norm(x))  # [B, P, q, H, D]
    flat = query.reshape(batch_size, num_prefixes * num_tokens, *query.shape[3:])
    scores = layers.scores(flat, history[0])  # [B, H, P * q, S]
    scores = scores.reshape(batch_size, self.num_heads, num_prefixes, num_tokens, -1)
    scores = (scores + history_bias).reshape(
      batch_size, self.num_heads, num_prefixes * num_tokens, -1
    )
    mixed = layers.mix(scores, history[1]).reshape(query.shape)
    x = x + self.dropout(self.cross_attention.out(mixed), deterministic)
    return x + self.dropout(self.ff(self.ff_norm(x), deterministic), deterministic)


class Model(nn.Module):
  """Histories of semantic IDs in, next semantic IDs out.

  A token is one level of a semantic ID: M codes, one per signal. Its embedding is the
  concatenation of M code embeddings, projected to the model width; each level has its own table
  per signal, drawn at random with scale 0.01 (BBQRec section 5.1). One table of similarity
  embeddings, K + 1 rows of ones at the start (plain attention), serves all encoder layers.

  encoder="bidirectional" is the paper's. encoder="causal" restricts each token to its own and
  earlier items, so that one encoder pass serves every prefix of a history: a deviation, to be
  named wherever its numbers stand. Such a token cannot tell how many items come after it, and with
  that which item is the latest; so there, and only there, the decoder's attention to the history
  has a relative position bias too, as if the next item's tokens continued the history's.
  """

  num_levels: int  # L.
  codebook_size: int  # N.
  num_signals: int  # M.
  similarity: bool = True  # False: BBQRec Table 4, variant S.
  num_buckets: int = 100  # K.
  code_dim: int = 128
  model_dim: int = 128
  num_heads: int = 6
  head_dim: int = 64
  ff_dim: int = 1024
  num_encoder_layers: int = 4
  num_decoder_layers: int = 4
  dropout_rate: float = 0.1
  encoder: str = "bidirectional"
  attention_backend: str = "auto"  # One of attention.BACKENDS; all compute the same.
  # Of products and what they give; parameters, softmax and logits are float32.
  dtype: str = "float32"

  def setup(self):
    if self.encoder not in ENCODERS:
      raise ValueError(f"encoder must be one of {ENCODERS}, got {self.encoder!r}.")
    levels, signals, codes = self.num_levels, self.num_signals, self.codebook_size
    small = nn.initializers.normal(stddev=0.01)
    self.code_embed = self.param("code_embed", small, (levels, signals, codes, self.code_dim))
    unit = nn.initializers.normal(stddev=1.0)
    self.start_embed = self.param("start_embed", unit, (self.model_dim,))
    self.token_proj = nn.Dense(
      self.model_dim, use_bias=False, dtype=self.dtype, dot_general=layers.dot
    )
    # Tables this small would vanish beside the first layer's output, and with them which token
    # is which; the norm gives every token unit scale.
    self.token_norm = nn.RMSNorm(dtype=self.dtype)
    shape = (self.num_heads, self.head_dim)
    if self.similarity:
      self.similarity_table = self.param(
        "similarity_table", nn.initializers.ones, (self.num_buckets + 1, *shape)
      )
    block = dict(
      num_heads=self.num_heads,
      head_dim=self.head_dim,
      ff_dim=self.ff_dim,
      dropout_rate=self.dropout_rate,
      dtype=self.dtype,
    )
    norm = functools.partial(nn.RMSNorm, dtype=self.dtype)
    self.encoder_layers = [EncoderLayer(**block) for _ in range(self.num_encoder_layers)]
    self.decoder_layers = [
      DecoderLayer(model_dim=self.model_dim, **block) for _ in range(self.num_decoder_layers)
    ]
    self.encoder_norm, self.decoder_norm = norm(), norm()
    # Of all decoder layers at once: many small products take longer.
    self.memory_proj = nn.DenseGeneral(
      (self.num_decoder_layers, 2, *shape),
      use_bias=False,
      dtype=self.dtype,
      dot_general=layers.dot,
    )
    self.encoder_bias = layers.RelativePositionBias(self.num_heads, bidirectional=True)
    self.decoder_bias = layers.RelativePositionBias(self.num_heads, bidirectional=False)
    if self.encoder == "causal":
      self.history_bias = layers.RelativePositionBias(self.num_heads, bidirectional=False)
    self.dropout = layers.Dropout(self.dropout_rate)
    self.heads = self.param(
      "heads",
      nn.initializers.lecun_normal(in_axis=-2, out_axis=-1, batch_axis=(0, 1)),
      (levels, signals, self.model_dim, codes),
    )

  def _embed(self, codes, first_level: int):
    """Token embeddings of codes [..., l, M], levels first_level onwards -> [..., l, d]."""
    level = first_level + jnp.arange(codes.shape[-2])[:, None]  # [l, 1]
    signal = jnp.arange(self.num_signals)[None, :]  # [1, M]
    lead = (None,) * (codes.ndim - 2)
    embeds = self.code_embed[level[lead], signal[lead], codes]  # [..., l, M, code_dim]
    # Of no tokens, as one-level IDs have them before the last, -1 could not be told.
    embeds = embeds.reshape(*codes.shape[:-1], self.num_signals * self.code_dim)
    return self.token_norm(self.token_proj(embeds))

  def _logits(self, subscripts: str, x: jax.Array, level: int | None = None) -> jax.Array:
    """float32 logits of x by the heads, of all levels or of one."""
    heads = self.heads if level is None else self.heads[level]
    heads = heads.astype(self.dtype)
    return jnp.einsum(subscripts, x, heads, preferred_element_type=jnp.float32)

  def encode(
    self, codes: jax.Array, vectors: jax.Array, mask: jax.Array, deterministic: bool = True
  ) -> Memory:
    """Encodes histories, once per user.

    Args:
      codes: [B, T, L, M] int32 semantic IDs of the history's items; any codes at padding.
      vectors: [B, T, M * D] float32 frozen stage-one vectors v (read only with `similarity`).
      mask: [B, T] bool, True for an item.
    """
    _, num_items, num_levels, _ = codes.shape
    item, positions = _token_places(num_items, num_levels)
    x = jnp.einsum("btld->bltd", self._embed(codes, 0))
    x = self.dropout(x.reshape(x.shape[0], -1, self.model_dim), deterministic)  # [B, S, d]
    token_mask = jnp.tile(mask, (1, num_levels))  # [B, S]
    visible = token_mask[:, None, None, :]  # [B, 1, 1, S]
    if self.encoder == "causal":
      visible = visible & (item[None, :] <= item[:, None])[None, None]  # [B, 1, S, S]
    bias = self.encoder_bias(positions, positions)[None] + jnp.where(visible, 0.0, layers.MASKED)
    attend = layers.mix
    if self.similarity:  # Once for all layers.
      buckets = attention.similarity_buckets(vectors, mask, self.num_buckets)
      attend = attention.make_sim_attention(self.similarity_table, buckets, self.attention_backend)
    for layer in self.encoder_layers:
      x = layer(x, bias, attend, deterministic)
    x = self.dropout(self.encoder_norm(x), deterministic)
    projected = jnp.unstack(self.memory_proj(x), axis=2)  # One [B, S, 2, H, D] for each layer.
    keys, values = zip(*(jnp.unstack(both, axis=2) for both in projected))
    return Memory(keys, values, token_mask)

  def decode(
    self,
    codes: jax.Array,
    memory: Memory,
    every_prefix: bool = False,
    deterministic: bool = True,
  ) -> jax.Array:
    """Logits of every level of P target IDs, each level given the true levels before it.

    Args:
      codes: [B, P, L, M] int32 target semantic IDs.
      every_prefix: True: target p, of P = T, sees the history up to its item p; False: every
        target sees all of it.

    Returns:
      [B, P, L, M, N] float32 logits of BBQRec Eq. (1)'s P(c_j | c_1 .. c_{j-1}, S_t).
    """
    batch_size, num_prefixes, num_levels, _ = codes.shape
    start = self.start_embed.astype(self.dtype)
    start = jnp.broadcast_to(start, (batch_size, num_prefixes, 1, self.model_dim))
    x = jnp.concatenate([start, self._embed(codes[:, :, :-1], 0)], axis=2)
    x = self.dropout(x, deterministic)
    levels = np.arange(num_levels)
    causal = jnp.where(levels[None, :] <= levels[:, None], 0.0, layers.MASKED)
    bias = self.decoder_bias(levels, levels) + causal[None]
    history_bias = self._history_bias(memory, levels, every_prefix)
    for layer, key, value in zip(self.decoder_layers, memory.keys, memory.values):
      query, *past = layer.qkv(x)
      x = layer(x, query, past, bias, (key, value), history_bias, deterministic)
    return self._logits("bpld,lmdn->bplmn", self.dropout(self.decoder_norm(x), deterministic))

  def __call__(
    self,
    codes: jax.Array,
    vectors: jax.Array,
    mask: jax.Array,
    targets: jax.Array,
    deterministic: bool = True,
  ) -> jax.Array:
    """Logits of the next item after a history, or after each of its prefixes.

    Args:
      codes, vectors, mask: as for encode().
      targets: [B, P, L, M] int32. P = 1: the item after the whole history. P = T, with the causal
        encoder only: target p is the item after history item p.

    Returns:
      [B, P, L, M, N] float32.
    """
    num_prefixes = targets.shape[1]
    memory = self.encode(codes, vectors, mask, deterministic)
    if num_prefixes > 1 and self.encoder != "causal":
      raise ValueError("Targets for every prefix need encoder='causal'.")
    return self.decode(targets, memory, num_prefixes > 1, deterministic)

  def _history_bias(
    self, memory: Memory, levels: np.ndarray, every_prefix: bool = False
  ) -> jax.Array:
    """What decoder tokens of q levels add to their scores of the history's S tokens.

    Args:
      levels: [q] ints, static.
      every_prefix: as decode() has it.

    Returns:
      float32 that broadcasts to [B, H, P, q, S]; MASKED at what is out of sight.
    """
    num_items = memory.mask.shape[1] // self.num_levels
    item, positions = _token_places(num_items, self.num_levels)
    visible = memory.mask[:, None, None, None, :]  # [B, 1, 1, 1, S]
    if every_prefix:
      visible = visible & (item <= np.arange(num_items)[:, None])[None, None, :, None, :]
    bias = jnp.where(visible, 0.0, layers.MASKED)
    if self.encoder != "causal":
      return bias
    # Of the targets after item 0, 1, .. T - 1: [H, T, q, S].
    targets = np.arange(1, num_items + 1)[:, None] * self.num_levels + levels
    relative = self.history_bias(targets.reshape(-1), positions)
    relative = relative.reshape(-1, num_items, len(levels), len(positions))
    if every_prefix:
      return bias + relative[None]
    lengths = jnp.sum(memory.mask[:, :num_items], axis=1)
    last = jnp.maximum(lengths - 1, 0)  # [B]
    return bias + jnp.einsum("hbqs->bhqs", relative[:, last])[:, :, None]

  def start(self, codes: jax.Array, vectors: jax.Array, mask: jax.Array) -> Cache:
    """Encodes histories (as encode()) and opens a decoding."""
    memory = self.encode(codes, vectors, mask)
    return Cache(memory, (None,) * self.num_decoder_layers, (None,) * self.num_decoder_layers)

  def step(self, level: int, tokens: jax.Array | None, cache: Cache) -> tuple[jax.Array, Cache]:
    """One decoding step: the log-probabilities of level `level` after each beam's tokens.

    Args:
      level: 0 .. L - 1, static.
      tokens: [B, W, M] int32, the beams' choice at level - 1; None at level 0, where W = 1.

    Returns:
      ([B, W, M, N] float32 log-probabilities of the full softmax, the cache with this level).
    """
    batch_size = cache.memory.mask.shape[0]
    if tokens is None:
      x = jnp.broadcast_to(self.start_embed.astype(self.dtype), (batch_size, 1, 1, self.model_dim))
    else:
      x = self._embed(tokens[:, :, None, :], level - 1)
    bias = self.decoder_bias(np.array([level]), np.arange(level + 1))
    history_bias = self._history_bias(cache.memory, np.array([level]))
    keys, values = [], []
    for n, layer in enumerate(self.decoder_layers):
      query, key, value = layer.qkv(x)
      if level:
        key = jnp.concatenate([cache.keys[n], key], axis=2)
        value = jnp.concatenate([cache.values[n], value], axis=2)
      history = (cache.memory.keys[n], cache.memory.values[n])
      x = layer(x, query, (key, value), bias, history, history_bias, True)
      keys.append(key)
      values.append(value)
    logits = self._logits("bwd,mdn->bwmn", self.decoder_norm(x)[:, :, 0], level)
    return jax.nn.log_softmax(logits), cache._replace(keys=tuple(keys), values=tuple(values))


def _token_places(num_items: int, num_levels: int) -> tuple[np.ndarray, np.ndarray]:
  """Of a history's S tokens, which are ordered (level, item): the item of each, its position.

  Positions are item * L + level, those of the history as a sequence of tokens.
  """
  level, item = np.divmod(np.arange(num_levels * num_items), num_items)
  return item, item * num_levels + level

"""SASRec: the sequence encoder f of BBQRec Eq. (11), and of systems that score every item."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from bbqrec_jax.models import layers


class Encoder(nn.Module):
  """A transformer over item vectors.

  Kang and McAuley 2018 (SASRec, arXiv:1808.09781). Item vectors are the caller's rather than of a
  table of its own, not scaled by the root of the width, and with their positions they pass a
  LayerNorm before the first block, where the paper has dropout alone; blocks are pre-norm, the
  attention with a layer behind its heads, then a GELU layer of mlp_dim, where the paper has ReLU
  and one width. Dropout is of embeddings, of attention weights and of what each sublayer adds, not
  within the second. That of attention weights draws one mask [T, T] for all histories of a batch
  and all heads, which is Flax's default, where the paper draws one for each. Position 0 is a
  history's oldest item, as in RecBole; in the authors' program positions count from the newest.
  """

  out_dim: int | None  # None: no projection, neither in nor out; the vectors have the width.
  max_history: int = 20  # T at most: the number of learned positions.
  width: int = 128
  num_layers: int = 2
  num_heads: int = 2
  dropout_rate: float = 0.2
  dtype: str = "float32"  # Of products; parameters, softmax and the result are float32.
  mlp_dim: int | None = None  # Of the GELU layer; None: four times the width.
  # Standard deviation of all kernels at the start; None: LeCun's, by which each layer keeps the
  # scale of what it reads.
  init_scale: float | None = None
  causal: bool = True  # False: every position sees the whole history, as in BERT4Rec.

  @nn.compact
  def __call__(
    self, v: jax.Array, items: jax.Array, deterministic: bool, side: jax.Array | None = None
  ) -> jax.Array:
    """Represents every prefix: h_t depends on v_1..v_t alone, if causal.

    Args:
      v: [B, T, E] float32, finite also at padding.
      items: [B, T] int32, which item stands where, -1 behind the end of a history. If causal, only
        the shape is read: padding comes last, so the mask alone keeps it away from every item.
      deterministic: whether dropout is off; if not, apply() needs the "dropout" key.
      side: [B, T, width] float32, added to what queries and keys of every block are made of, but
        not to values: side information, as models/nova_bert.py has it.

    Returns:
      [B, T, out_dim] float32; meaningless, yet finite, at padding.

    Raises ValueError if the shapes disagree or T is above max_history.
    """
    if v.shape[:2] != items.shape or items.shape[1] > self.max_history:
      raise ValueError(
        f"v {v.shape} and items {items.shape} must agree in [B, T], T <= {self.max_history}."
      )
    dropout = lambda x: layers.Dropout(self.dropout_rate)(x, deterministic)
    positions = self.param(
      "positions", nn.initializers.normal(0.01), (self.max_history, self.width)
    )
    kernel_init = nn.initializers.lecun_normal()
    if self.init_scale is not None:
      kernel_init = nn.initializers.normal(self.init_scale)
    dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=kernel_init)
    norm = functools.partial(nn.LayerNorm, dtype=self.dtype)
    x = v if self.out_dim is None else dense(self.width, name="in")(v)
    x += positions[None, : items.shape[1]]
    # The norm makes what follows independent of the scale of the tokenizer's latents.
    x = dropout(norm(name="in_norm")(x))
    if self.causal:
      mask = nn.make_causal_mask(items)  # [B, 1, T, T]
    else:
      mask = nn.make_attention_mask(jnp.ones_like(items), items >= 0)  # [B, 1, T, T]
    for layer in range(self.num_layers):
      attention = nn.MultiHeadDotProductAttention(
        self.num_heads,
        dtype=self.dtype,
        kernel_init=kernel_init,
        force_fp32_for_softmax=True,
        dropout_rate=self.dropout_rate,
        deterministic=deterministic,
        name=f"attention_{layer}",
      )
      value = norm(name=f"attention_norm_{layer}")(x)
      query = value if side is None else value + side.astype(value.dtype)
      x += dropout(attention(query, query, value, mask=mask))
      y = norm(name=f"mlp_norm_{layer}")(x)
      y = nn.gelu(dense(self.mlp_dim or 4 * self.width, name=f"mlp_in_{layer}")(y))
      x += dropout(dense(self.width, name=f"mlp_out_{layer}")(y))
    x = norm(name="out_norm")(x)
    return (x if self.out_dim is None else dense(self.out_dim, name="out")(x)).astype(jnp.float32)

"""The RQ-VAE that gives TIGER and LETTER their semantic IDs, from one modality's vectors."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from bbqrec_jax.models import mlp, quantizer, tokenizer


class RqvaeOutput(NamedTuple):
  quantized: quantizer.Quantized  # With M = 1 signal.
  reconstruction: jax.Array  # [P, F] float32.


class Model(nn.Module):
  """An encoder and a decoder with a residual quantizer between them.

  Rajput et al. 2023 (TIGER, arXiv:2305.05065), section 3.1: hidden layers 512, 256, 128 and
  latents of 32 dimensions. Wang et al. 2024 (LETTER, arXiv:2405.07314) adds losses to it:
  trainers/rqvae.py.

  An item without the modality takes a learned vector; what it shares with all the others that lack
  it is its semantic ID. Its methods are those of the tokenizer's model (models/tokenizer.py), so
  that what encodes a catalogue serves both.
  """

  num_items: int  # I.
  feature_dims: Mapping[str, int]  # modality -> F, of one modality.
  latent_dim: int = 32  # D.
  num_levels: int = 3  # L.
  codebook_size: int = 256  # N.
  hidden_dims: Sequence[int] = (512, 256, 128)  # Of the encoder; the decoder's are reversed.
  dtype: str = "float32"  # Of products; parameters, distances and losses are float32.
  init_scale: float = 0.01  # Standard deviation of codebooks and of the missing input.

  @property
  def signals(self) -> tuple[str, ...]:
    """The name of the only signal."""
    return tuple(self.feature_dims)

  @property
  def shared_codebook(self) -> bool:
    """Whether all signals share their codebooks, as a single one does."""
    return True

  def setup(self):
    if len(self.feature_dims) != 1:
      raise ValueError(f"One modality is needed, got {list(self.feature_dims)}.")
    ((self.modality, dim),) = self.feature_dims.items()
    # Features have mean square length 1; the networks see a mean square of 1 in each dimension, so
    # that latents and code vectors begin at a scale where the optimizer's steps are small.
    self.scale = dim**0.5
    hidden = tuple(self.hidden_dims)
    self.encoder = mlp.MLP(hidden, self.latent_dim, self.dtype)
    self.decoder = mlp.MLP(hidden[::-1], dim, self.dtype)
    self.missing = self.param("missing", nn.initializers.normal(self.init_scale), (dim,))
    self.quantizer = quantizer.ResidualQuantizer(
      self.num_levels, self.codebook_size, self.latent_dim, 1, True, self.init_scale
    )

  def __call__(
    self,
    items: jax.Array,
    features: dict[str, jax.Array],
    present: dict[str, jax.Array],
    choose_last: Callable | None = None,
  ) -> RqvaeOutput:
    """Encodes, quantizes and decodes items.

    Args:
      items: [P] int32; not read, since nothing here belongs to one item.
      features: modality -> [P, F] float32, standardised.
      present: modality -> [P] bool, whether the item has it.
      choose_last: as in quantizer.ResidualQuantizer.
    """
    quantized = self.tokenize(self.encode(items, features, present), choose_last)
    return RqvaeOutput(quantized, self.decode(quantized.latent))

  def encode(
    self, items: jax.Array, features: dict[str, jax.Array], present: dict[str, jax.Array]
  ) -> tokenizer.Latents:
    """Latents [P, 1, D] of items; arguments as in __call__."""
    del items
    x = jnp.where(present[self.modality][:, None], features[self.modality], self.missing[None, :])
    return tokenizer.Latents(self.encoder(self.scale * x)[:, None], {})

  def tokenize(
    self, latents: tokenizer.Latents, choose_last: Callable | None = None
  ) -> quantizer.Quantized:
    """Residual quantization, TIGER's section 3.1."""
    return self.quantizer(latents.behavior, choose_last)

  def lookup(self, codes: jax.Array) -> jax.Array:
    """Sums of the code vectors, [P, D] float32, of codes [P, L, 1] int32 in [0, N)."""
    return self.quantizer.lookup(codes)[:, 0]

  def decode(self, q: jax.Array) -> jax.Array:
    """Features [P, F] float32 from quantized latents [P, 1, D]."""
    return self.decoder(q[:, 0]) / self.scale

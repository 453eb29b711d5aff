"""BBQRec's item tokenizer: encoders, quantizer, decoders, and the sequence encoder beside them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from bbqrec_jax import losses, plugins
from bbqrec_jax.models import club, layers, mlp, quantizer


class Latents(NamedTuple):
  behavior: jax.Array  # [P, M, D] float32, z: behavior-aligned, one per signal.
  specific: dict[str, jax.Array]  # modality -> [P, D] float32, z_bar; {} without use_specific.


class TokenizerOutput(NamedTuple):
  latents: Latents
  quantized: quantizer.Quantized  # Of latents.behavior.
  reconstructions: dict[str, jax.Array]  # modality -> [P, F] float32.
  # The items' quantized vectors, BBQRec Eq. (10): [P, M * D] float32, of all devices' items.
  v: jax.Array
  mutual_information: dict[str, club.ClubLosses]  # Per modality; {} without use_specific.


class Model(nn.Module):
  """Stage one of BBQRec, Eqs. (2)-(11). It computes everything that the losses compare.

  The signals are the item id (unless use_id is False), then the modalities of feature_dims in
  their order; M is their number. P is the number of DISTINCT items in a call, each encoded once.

  What the paper does not have: with normalize_latents every z and z_bar is layer-normalised
  without affine and divided by sqrt(D), so that all signals have unit length and share codebooks
  at one scale; CLUB sees them times sqrt(D), and its losses are divided by D. So every term of
  Eqs. (3) and (9) is one of a dimension, and no weight of Eq. (13) depends on D: in nats of all
  dimensions together, mutual information is the cheapest to lower by a z_bar that is the same for
  every item. With raw latents (False, the paper's text) the text and image latents outgrow the
  id's, one code serves them all, and CLUB is unbounded below.
  """

  num_items: int  # I.
  feature_dims: Mapping[str, int]  # modality -> F.
  use_id: bool = True
  latent_dim: int = 128  # D.
  num_levels: int = 3  # L.
  codebook_size: int = 256  # N.
  shared_codebook: bool = True
  # False removes the modality-specific encoders, and CLUB with them: decoders then see q alone.
  use_specific: bool = True
  normalize_latents: bool = True
  hidden_dims: Sequence[int] = (512, 256)  # Of the encoders; the decoders' are reversed.
  club_hidden_dim: int = 128
  max_log_variance: float = 1.0
  sequence_encoder: str = "sasrec"  # bbqrec_jax/models/<name>_encoder.py.
  sequence_kwargs: Mapping[str, Any] | None = None  # Further arguments of that file's Encoder.
  dropout_rate: float = 0.2  # In the sequence encoder.
  # Of products in encoders, decoders and the sequence encoder; parameters, distances, mutual
  # information and losses are float32.
  dtype: str = "float32"
  init_scale: float = 0.01  # Standard deviation of id embeddings, codebooks, missing inputs.

  @property
  def signals(self) -> tuple[str, ...]:
    """The names of the M signals in order: "id", then modalities."""
    return (("id",) if self.use_id else ()) + tuple(self.feature_dims)

  def setup(self):
    if not self.signals:
      raise ValueError("The tokenizer needs the id or at least one modality.")
    init = nn.initializers.normal(self.init_scale)
    num_signals = len(self.signals)

    def per_modality(make):
      return {modality: make(modality) for modality in self.feature_dims}

    def encoder(_):
      return mlp.MLP(tuple(self.hidden_dims), self.latent_dim, self.dtype)

    def decoder(modality):
      return mlp.MLP(tuple(self.hidden_dims)[::-1], self.feature_dims[modality], self.dtype)

    if self.use_id:
      shape = (layers.table_rows(self.num_items), self.latent_dim)
      self.id_embedding = self.param("id_embedding", init, shape)
    self.missing = per_modality(
      lambda modality: self.param(f"missing_{modality}", init, (self.feature_dims[modality],))
    )
    self.behavior_encoder = per_modality(encoder)
    self.decoder = per_modality(decoder)
    if self.use_specific:
      self.specific_encoder = per_modality(encoder)
      # The parameters of q_theta are those whose names begin with "club_".
      self.club = per_modality(lambda _: club.Club(self.club_hidden_dim, self.max_log_variance))
    self.quantizer = quantizer.ResidualQuantizer(
      self.num_levels,
      self.codebook_size,
      self.latent_dim,
      num_signals,
      self.shared_codebook,
      self.init_scale,
    )
    module = plugins.load(
      "models", f"{self.sequence_encoder}_encoder", "tokenizer.model.sequence_encoder"
    )
    self.sequence = module.Encoder(
      out_dim=num_signals * self.latent_dim,
      dropout_rate=self.dropout_rate,
      dtype=self.dtype,
      **(self.sequence_kwargs or {}),
    )

  def __call__(
    self,
    items: jax.Array,
    features: dict[str, jax.Array],
    present: dict[str, jax.Array],
    axis_name: str | None = None,
  ) -> TokenizerOutput:
    """Encodes and quantizes a batch's distinct items.

    Args:
      items: [P] int32 in [0, I), distinct, or -1 for a padding row. Padding rows may stand
        anywhere and count in no statistic.
      features: modality -> [P, F] float32, standardised.
      present: modality -> [P] bool, whether the item has it.
      axis_name: the axis over which devices share the items, as in losses.py. v and the mutual
        information are then of all items, the rest of the device's own.
    """
    latents = self.encode(items, features, present)
    quantized = self.tokenize(latents)
    reconstructions = self.reconstruct(quantized.latent, latents.specific)
    v = losses.gather_rows(item_vectors(quantized.latent), axis_name)
    weights = {m: (items >= 0) & present[m] for m in self.feature_dims}
    information = self.mutual_information(*losses.gather_rows((latents, weights), axis_name))
    if self.is_initializing():  # So that the sequence encoder, too, has its parameters.
      self.represent(v, jnp.zeros((1, 1), jnp.int32), True)
    return TokenizerOutput(latents, quantized, reconstructions, v, information)

  def represent(self, v: jax.Array, positions: jax.Array, deterministic: bool) -> jax.Array:
    """What each prefix of a batch's sequences predicts, from the vectors of the batch's items.

    Args:
      v: [P, M * D] float32, of __call__.
      positions: [B, T] int32, the row of v that stands where, -1 behind the end.
      deterministic: as for represent_sequence().

    Returns:
      [B, T, M * D] float32, as represent_sequence().
    """
    rows = jnp.where((positions >= 0)[:, :, None], v[jnp.maximum(positions, 0)], 0.0)
    return self.represent_sequence(rows, positions, deterministic)

  def encode(
    self,
    items: jax.Array,
    features: dict[str, jax.Array],
    present: dict[str, jax.Array],
    id_latents: jax.Array | None = None,
  ) -> Latents:
    """Behavior-aligned and modality-specific latents: BBQRec Eqs. (2) and (4).

    Args:
      items, features, present: as in __call__. A missing input takes a learned vector.
      id_latents: [P, D] float32 in place of the id embeddings, normalised like them: for items
        that were not there in training. `items` is then not read.

    Raises ValueError if id_latents are given to a model without the id.
    """
    behavior, specific = [], {}
    if self.use_id:
      behavior.append(self.id_latents(items) if id_latents is None else self._normalize(id_latents))
    elif id_latents is not None:
      raise ValueError("id_latents are given, but this model has use_id=False.")
    for modality in self.feature_dims:
      missing = self.missing[modality][None, :]
      x = jnp.where(present[modality][:, None], features[modality], missing)
      behavior.append(self._normalize(self.behavior_encoder[modality](x)))
      if self.use_specific:
        specific[modality] = self._normalize(self.specific_encoder[modality](x))
    return Latents(jnp.stack(behavior, axis=1), specific)

  def id_latents(self, items: jax.Array) -> jax.Array:
    """z_id [..., D] float32 of items [...] int32, as encode() has it: BBQRec Eq. (2)."""
    return self._normalize(self.id_embedding[jnp.maximum(items, 0)])

  def tokenize(self, latents: Latents) -> quantizer.Quantized:
    """Residual quantization of the behavior-aligned latents: BBQRec Eqs. (5)-(7)."""
    return self.quantizer(latents.behavior)

  def lookup(self, codes: jax.Array) -> jax.Array:
    """v of known semantic IDs: [P, M * D] float32 for codes [P, L, M] int32 in [0, N)."""
    return item_vectors(self.quantizer.lookup(codes))

  def reconstruct(self, q: jax.Array, specific: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Features from quantized and modality-specific latents: BBQRec Eq. (8).

    Args:
      q: [P, M, D] float32.
      specific: modality -> [P, D] float32, of Latents.

    Returns:
      modality -> [P, F] float32.
    """
    reconstructions = {}
    for modality, decoder in self.decoder.items():
      inputs = [q[:, self.signals.index(modality)]]
      if self.use_specific:
        inputs.append(specific[modality])
      reconstructions[modality] = decoder(jnp.concatenate(inputs, axis=-1))
    return reconstructions

  def represent_sequence(self, v: jax.Array, items: jax.Array, deterministic: bool) -> jax.Array:
    """h_t = f(v_1..v_t) of every prefix: BBQRec Eq. (11).

    Args:
      v: [B, T, M * D] float32, the vectors of the items in order, finite also at padding.
      items: [B, T] int32, which item stands where: equal numbers are one item (item ids or rows
        of a batch serve alike), -1 behind the end.
      deterministic: whether dropout is off; if not, apply() needs the "dropout" key.

    Returns:
      [B, T, M * D] float32; meaningless, yet finite, at padding.
    """
    return self.sequence(v, items, deterministic)

  def mutual_information(
    self, latents: Latents, weights: dict[str, jax.Array]
  ) -> dict[str, club.ClubLosses]:
    """CLUB's two losses for each modality: BBQRec Eq. (3).

    Args:
      latents: of encode.
      weights: modality -> [P] bool or float32, which rows count.

    Returns:
      modality -> ClubLosses, in nats, or nats a dimension with normalize_latents; {} without
      use_specific.
    """
    dims = self.latent_dim if self.normalize_latents else 1.0
    scale = dims**0.5
    information = {}
    for modality, z_bar in latents.specific.items():
      z = latents.behavior[:, self.signals.index(modality)]
      bound_club = self.club[modality]
      if self.is_initializing():
        bound_club(z)  # So that unbind() finds parameters.
      module, variables = bound_club.unbind()
      bound = club.club_losses(
        module,
        variables["params"],
        scale * z,
        scale * z_bar,
        weights[modality].astype(jnp.float32),
      )
      information[modality] = club.ClubLosses(*(loss / dims for loss in bound))
    return information

  def _normalize(self, x: jax.Array) -> jax.Array:
    """Layer normalisation without affine, over sqrt(D): [P, D] -> [P, D] of unit length."""
    if not self.normalize_latents:
      return x
    return losses.unit(x - jnp.mean(x, axis=-1, keepdims=True))


def item_vectors(q: jax.Array) -> jax.Array:
  """v = q_id (+) q_text (+) q_image, BBQRec Eq. (10): [P, M, D] -> [P, M * D]."""
  return q.reshape(q.shape[0], -1)

"""SR-GNN as the sequence encoder f of BBQRec Eq. (11)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from bbqrec_jax.models import layers


class Encoder(nn.Module):
  """A gated graph network over the session graph of every prefix, all in one pass.

  Wu et al. 2019 (SR-GNN, arXiv:1811.00855), Eqs. (1)-(7), with one propagation step as in its
  experiments. The nodes of prefix t's graph are the distinct items among the first t + 1, each
  held in the slot of its first occurrence; its edges are the t consecutive pairs, counted, and
  normalised by the out-degree of their start (outgoing) or the in-degree of their end (incoming).
  H of Eq. (1) is merged into the W of Eqs. (2)-(4), between which nothing nonlinear stands, so
  that messages are transformed once an item instead of once an item and prefix.
  """

  out_dim: int
  width: int = 128
  dropout_rate: float = 0.2
  dtype: str = "float32"  # Of products with parameters; those, sums and the result are float32.

  @nn.compact
  def __call__(self, v: jax.Array, items: jax.Array, deterministic: bool) -> jax.Array:
    """Represents every prefix: h_t depends on v_1..v_t alone.

    Args:
      v: [B, T, E] float32, finite also at padding; equal items have equal vectors.
      items: [B, T] int32, which item stands where: equal numbers are one item, and -1 stands
        behind the end of a history.
      deterministic: whether dropout is off; if not, apply() needs the "dropout" key.

    Returns:
      [B, T, out_dim] float32; meaningless, yet finite, at padding.

    Raises ValueError if the shapes disagree.
    """
    if v.shape[:2] != items.shape:
      raise ValueError(f"v {v.shape} and items {items.shape} must agree in [B, T].")
    node_at = first_occurrence(items)  # [B, T, T]: position, slot.
    outgoing, incoming = prefix_adjacency(node_at)  # [B, T, T, T]: prefix, node, neighbour.
    visits = jnp.cumsum(node_at, axis=1)  # [B, T, T]: how often prefix t holds each node.

    def dense(num_outputs, name, use_bias=True):
      width = num_outputs * self.width
      return nn.Dense(width, use_bias=use_bias, dtype=self.dtype, name=name)

    x = dense(1, "in")(v).astype(jnp.float32)  # [B, T, W]
    x = layers.Dropout(self.dropout_rate)(x, deterministic)
    # Eqs. (1)-(5); what propagation changes is [B, T, T, .]: prefix, node.
    messages = jnp.einsum("btij,bjw->btiw", outgoing, dense(3, "out_edges", use_bias=False)(x))
    messages += jnp.einsum("btij,bjw->btiw", incoming, dense(3, "in_edges", use_bias=False)(x))
    update, reset, candidate = jnp.split(messages, 3, axis=-1)
    own_update, own_reset = jnp.split(dense(2, "gates")(x)[:, None], 2, axis=-1)
    update = nn.sigmoid(update + own_update)
    reset = nn.sigmoid(reset + own_reset)
    old = x[:, None]  # [B, 1, T, W]: before propagation a node is the same in every prefix.
    candidate = nn.tanh(candidate + dense(1, "candidate")(reset * old))
    nodes = (1.0 - update) * old + update * candidate  # [B, T, T, W]

    # Eq. (6): the sum over a prefix's positions, taken node by node.
    last = jnp.einsum("btiw,bti->btw", nodes, node_at)  # s_l; zero at padding.
    gate = nn.sigmoid(dense(1, "last")(last)[:, :, None] + dense(1, "node", use_bias=False)(nodes))
    alpha = nn.Dense(1, use_bias=False, name="alpha")(gate)[..., 0]  # [B, T, T]
    session = jnp.einsum("btiw,bti->btw", nodes, alpha * visits)  # s_g
    # Eq. (7).
    return nn.Dense(self.out_dim, dtype=self.dtype, name="out")(
      jnp.concatenate([last, session], axis=-1)
    ).astype(jnp.float32)


def first_occurrence(items: jax.Array) -> jax.Array:
  """[B, T, T] float32: 1 where the item at the position first occurs; zeros at padding.

  items is [B, T] int32, -1 behind the end of a history.
  """
  same = items[:, :, None] == items[:, None, :]
  alias = jnp.argmax(same, axis=-1)  # The first of equal positions.
  return jax.nn.one_hot(jnp.where(items >= 0, alias, -1), items.shape[1])


def prefix_adjacency(node_at: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Adjacency matrices of the session graph of every prefix.

  Args:
    node_at: [B, T, T] float32, of first_occurrence.

  Returns:
    (outgoing, incoming): [B, T, T, T] float32 over prefix, node, neighbour. Outgoing row i holds
    the shares of i's outgoing edges, incoming row i those of its incoming ones; a row sums to 1,
    or to 0 if there is no such edge.
  """
  # The edge that position s adds, from the node before it to its own; position 0 adds none.
  before = jnp.pad(node_at, ((0, 0), (1, 0), (0, 0)))[:, :-1]
  counts = jnp.cumsum(jnp.einsum("bsi,bsj->bsij", before, node_at), axis=1)

  def share(counts):
    return counts / jnp.maximum(jnp.sum(counts, axis=-1, keepdims=True), 1.0)

  return share(counts), share(jnp.swapaxes(counts, 2, 3))

"""What models of systems that score every item have in common; trainers/ranker.py runs them."""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bbqrec_jax import losses
from bbqrec_jax.models import layers


class Items(NamedTuple):
  """What a hidden state is scored against: score = h . vector + bias. I' rows, I at least."""

  vectors: jax.Array  # [I', E] float32.
  bias: jax.Array  # [I'] float32.


class Predictions(NamedTuple):
  """What the loss compares."""

  hidden: jax.Array  # [R, P, E] float32.
  targets: jax.Array  # [R, P] int32, the item that each must predict; -1: none.


class ItemRanker(nn.Module):
  """A model that scores every item: subclasses define items(), predictions() and represent().

  `inputs`, which all three read, is dict(features=, present=): modality -> [I', F] float32,
  standardised, and [I'] bool. I' is layers.table_rows(I); the rows behind the I items are zero and
  absent, and what stands there in a result is not looked at.
  """

  num_items: int  # I.
  feature_dims: Mapping[str, int]  # modality -> F, of the modalities that the data have.
  max_history: int  # T at most.

  # Whether every position of a sequence is an example's target, or each prefix is an example.
  every_target: ClassVar[bool] = True

  @nn.nowrap
  def prepare(self, inputs: Mapping[str, Any], key: jax.Array) -> dict[str, np.ndarray]:
    """What the model reads of the catalogue and does not learn: further entries of `inputs`.

    Computed once, before any parameter is there, and kept with the run.

    Args:
      inputs: NumPy arrays.
      key: PRNG key, the same for all stages of a run.
    """
    return {}

  @nn.nowrap
  def scorer(self, items: Items) -> losses.Scorer:
    """How hidden states are scored against items()."""
    return losses.PRODUCT

  def items(self, inputs: Mapping[str, Any]) -> Items:
    """The catalogue, computed once a step, or once an evaluation."""
    raise NotImplementedError

  def predictions(
    self,
    items: Items,
    history: jax.Array,
    targets: jax.Array,
    inputs: Mapping[str, Any],
    deterministic: bool,
  ) -> Predictions:
    """What training examples give to learn from.

    Args:
      items: of items().
      history: [R, T] int32, oldest first, -1 behind the end.
      targets: [R, T] int32, the item after each; -1 where the history is. [R, 1], the item after
        the last, unless every_target.
      deterministic: whether dropout is off; if not, apply() needs the "dropout" key. The "mask" key
        is there for models that corrupt what they read.
    """
    raise NotImplementedError

  def represent(self, items: Items, history: jax.Array, inputs: Mapping[str, Any]) -> jax.Array:
    """[B, E] float32: what the item after each history [B, T] is scored by, without dropout."""
    raise NotImplementedError

  def __call__(self, history: jax.Array, targets: jax.Array, inputs: Mapping[str, Any]):
    """Reaches every parameter, for init()."""
    items = self.items(inputs)
    return items, self.predictions(items, history, targets, inputs, True)

  def id_table(self, width: int) -> jax.Array:
    """An embedding of every item, [I', width]; for setup()."""
    shape = (layers.table_rows(self.num_items), width)
    return self.param("id_embedding", nn.initializers.normal(0.02), shape)


class LeftToRight(ItemRanker):
  """Learns the next item at every position of a sequence; subclasses define items(), hidden()."""

  def embed(self, items: Items, history: jax.Array, inputs: Mapping[str, Any]) -> jax.Array:
    """[R, T, E] float32, what hidden() reads of a history [R, T]: what scores are against, here."""
    return rows(items.vectors, history)

  def hidden(
    self, items: Items, history: jax.Array, inputs: Mapping[str, Any], deterministic: bool
  ) -> jax.Array:
    """[R, T, E] float32; a position depends on no later one."""
    raise NotImplementedError

  def predictions(self, items, history, targets, inputs, deterministic):
    return Predictions(self.hidden(items, history, inputs, deterministic), targets)

  def represent(self, items, history, inputs):
    return last_item(self.hidden(items, history, inputs, True), history)


class OneTarget(ItemRanker):
  """Learns the item after a whole history; subclasses define items(), sequence()."""

  every_target: ClassVar[bool] = False

  def sequence(
    self, items: Items, history: jax.Array, inputs: Mapping[str, Any], deterministic: bool
  ) -> jax.Array:
    """[R, E] float32, of all of each history [R, T]."""
    raise NotImplementedError

  def predictions(self, items, history, targets, inputs, deterministic):
    return Predictions(self.sequence(items, history, inputs, deterministic)[:, None], targets)

  def represent(self, items, history, inputs):
    return self.sequence(items, history, inputs, True)


def rows(vectors: jax.Array, items: jax.Array) -> jax.Array:
  """The rows of [I', E] at items [...] int32: [..., E], zeros where the item is -1."""
  return jnp.where((items >= 0)[..., None], vectors[jnp.maximum(items, 0)], 0.0)


def last_item(hidden: jax.Array, history: jax.Array) -> jax.Array:
  """[B, E] of [B, T, E]: where a history [B, T] has its last item; position 0 of an empty one."""
  last = jnp.maximum(jnp.sum(history >= 0, axis=1) - 1, 0)
  return jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]

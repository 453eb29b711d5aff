"""Data drawn from a latent model whose every part is known, made in a second.

Items have behavior factors, which say what is bought after what; their text and image vectors mix
those factors with nuisance of their own, which says nothing about behavior. So it can be tested
whether a model keeps the one and leaves out the other, and how close a recommender comes to the
best possible one, which knows the model.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bbqrec_jax.data.dataset import MODALITIES, Dataset, Features, make_dataset
from bbqrec_jax.data.features import check_modalities
from bbqrec_jax.data.interactions import Log, make_sequences
from bbqrec_jax.errors import UserError

# Weights of what draws the next item, in nats. With the default sizes, a recommender that knows
# them all finds the test item among its first ten about half of the time, one that knows only
# popularity about one time in thirteen.
SEQUENCE_WEIGHT = 11.0  # Fit to the last item, through the transition.
USER_WEIGHT = 3.0  # Fit to the user's state.
POPULARITY_EXPONENT = 0.35  # Zipf: the r-th item has weight r ** -exponent.

_DRIFT = 0.15  # Share of a user's state that is drawn anew at every step.
_ITEMS_PER_CLUSTER = 10
_MOST_PAIRS = 2**28  # Of users and items: a few GiB.
_CLUSTER_SPREAD = 0.6  # Distance of an item's factors from its cluster's, before normalization.


class Modality(NamedTuple):
  """A modality as drawn: values = behavior @ mixing + nuisance @ nuisance_mixing + noise."""

  nuisance: np.ndarray  # [I, G] standard normal, unrelated to behavior.
  mixing: np.ndarray  # [G, F].
  nuisance_mixing: np.ndarray  # [G, F].


class Truth(NamedTuple):
  """The latent model behind the items and users that the dataset keeps."""

  behavior: np.ndarray  # [I, G] items' behavior factors, of unit norm.
  cluster: np.ndarray  # [I] int32, the cluster that the item's factors were drawn around.
  popularity: np.ndarray  # [I] > 0, Zipf weights.
  transition: np.ndarray  # [G, G] orthogonal: from the last item's factors to the next one's.
  user_factors: np.ndarray  # [U, G] users' states, of unit norm, when the last item was drawn.
  modalities: dict[str, Modality]

  def next_item_logits(self, last_items: np.ndarray) -> np.ndarray:
    """[U, I] logits from which every user's last item was drawn, [U] the items before it."""
    return _next_item_logits(
      self.behavior, self.popularity, self.transition, self.user_factors, last_items
    )


def generate(
  *,
  num_users: int = 1200,
  num_items: int = 400,
  num_factors: int = 16,
  seed: int = 0,
  text_dim: int = 64,
  image_dim: int = 96,
  missing_text_rate: float = 0.05,
  missing_image_rate: float = 0.1,
  mean_length: float = 11.0,
  min_interactions: int = 5,
  modalities: Sequence[str] = MODALITIES,
  nuisance_scale: float = 1.0,
  noise_scale: float = 0.1,
) -> tuple[Dataset, Truth]:
  """Draws a dataset and returns what it was drawn from. Equal arguments give equal data.

  Items lie in clusters of behavior factors. A user walks: the next item, never one bought before,
  is drawn from a softmax over its fit to the last item (through a fixed rotation, so that what
  comes next is not just what is alike), its fit to the user's slowly drifting state, and its
  popularity. What is drawn for the items does not depend on which modalities are asked for.

  Args:
    num_users, num_items: before the k-core filter.
    num_factors: G, behavior factors, and as many nuisance factors for each modality.
    seed: of everything.
    text_dim, image_dim: F of the modality.
    missing_text_rate, missing_image_rate: share of items without the modality.
    mean_length: expected items per user.
    min_interactions: k of the k-core; no user has fewer items than this, or than three.
    modalities: which modalities the dataset gets.
    nuisance_scale: how loud nuisance is; at 1, as loud as the behavior factors.
    noise_scale: standard deviation of the noise of every feature; the signal's is about 1.

  Raises UserError if users would run out of items.
  """
  modalities = check_modalities(modalities)
  shortest = max(min_interactions, 3)
  if not shortest <= mean_length <= num_items / 2:  # Nor NaN.
    raise UserError(
      f"data: mean_length={mean_length} must be at least {shortest} (min_interactions, or three) "
      f"and at most half of num_items={num_items}."
    )
  if num_users * num_items > _MOST_PAIRS:
    raise UserError(
      f"data: num_users={num_users} times num_items={num_items} is more than {_MOST_PAIRS:,}, and "
      "every pair is held in memory; lower one of them."
    )
  # One stream for each part, so that an argument of one part leaves the others as they were.
  streams = np.random.SeedSequence(seed).spawn(3 + len(MODALITIES))
  item_rng, user_rng, walk_rng, *feature_rngs = map(np.random.default_rng, streams)

  num_clusters = -(-num_items // _ITEMS_PER_CLUSTER)
  cluster = np.arange(num_items, dtype=np.int32) % num_clusters
  centers = _unit(item_rng.normal(size=(num_clusters, num_factors)))
  spread = _CLUSTER_SPREAD * _unit(item_rng.normal(size=(num_items, num_factors)))
  behavior = _unit(centers[cluster] + spread)
  popularity = (1.0 + item_rng.permutation(num_items)) ** -POPULARITY_EXPONENT
  transition = np.linalg.qr(item_rng.normal(size=(num_factors, num_factors)))[0]

  lengths = shortest + user_rng.poisson(mean_length - shortest, num_users)
  lengths = np.minimum(lengths, num_items // 2)
  states = _unit(user_rng.normal(size=(num_users, num_factors)))
  walks, final_states = _walk(walk_rng, behavior, popularity, transition, states, lengths)

  log = Log(
    user_ids=[f"user{u}" for u in range(num_users)],
    item_ids=[f"item{i}" for i in range(num_items)],
    users=np.repeat(np.arange(num_users, dtype=np.int32), lengths),
    items=walks,
    times=np.arange(len(walks), dtype=np.float64),
  )
  sequences = make_sequences(log, "synthetic", min_interactions, log.item_ids)
  items = sequences.rows  # Rows of the "item table" are the items as they were drawn.
  users = np.array([int(user_id.removeprefix("user")) for user_id in sequences.user_ids])

  sizes = dict(text=(text_dim, missing_text_rate), image=(image_dim, missing_image_rate))
  features, drawn = {}, {}
  for modality, rng in zip(MODALITIES, feature_rngs):
    if modality not in modalities:
      continue
    size, missing_rate = sizes[modality]
    nuisance = rng.normal(size=(num_items, num_factors))
    mixing = rng.normal(size=(num_factors, size))  # Behavior factors have unit norm already.
    nuisance_mixing = rng.normal(size=(num_factors, size)) * nuisance_scale / num_factors**0.5
    values = behavior @ mixing + nuisance @ nuisance_mixing
    values += rng.normal(size=values.shape) * noise_scale
    present = rng.uniform(size=num_items) >= missing_rate
    values = np.where(present[:, None], values, 0.0).astype(np.float32)
    features[modality] = Features(values[items], present[items])
    drawn[modality] = Modality(nuisance[items], mixing, nuisance_mixing)

  dataset = make_dataset(
    name="synthetic",
    user_ids=sequences.user_ids,
    item_ids=sequences.item_ids,
    items=sequences.items,
    offsets=sequences.offsets,
    features=features,
    titles=np.array([f"item {i} of group {cluster[i]}" for i in items]),
  )
  truth = Truth(
    behavior=behavior[items],
    cluster=cluster[items],
    popularity=popularity[items],
    transition=transition,
    user_factors=final_states[users],
    modalities=drawn,
  )
  return dataset, truth


@functools.wraps(generate, assigned=())  # So that its signature tells the arguments.
def load(**kwargs) -> Dataset:
  """The dataset alone; the arguments are generate's."""
  return generate(**kwargs)[0]


def _walk(
  rng: np.random.Generator,
  behavior: np.ndarray,
  popularity: np.ndarray,
  transition: np.ndarray,
  states: np.ndarray,
  lengths: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
  """All users' walks, a step of all users at a time.

  Args:
    states: [U, G] where users begin.
    lengths: [U] how many items each draws.

  Returns:
    (items, user after user, [sum(lengths)] int32; states when the last item was drawn, [U, G]).
  """
  num_users, longest = len(lengths), lengths.max()
  everyone = np.arange(num_users)
  walks = np.zeros((num_users, longest), np.int32)
  seen = np.zeros((num_users, len(behavior)), bool)
  final_states = states
  for step in range(longest):
    fresh = _unit(rng.normal(size=states.shape))
    states = _unit((1.0 - _DRIFT) * states + _DRIFT * fresh)
    if step:
      last = walks[:, step - 1]
      logits = _next_item_logits(behavior, popularity, transition, states, last)
    else:
      logits = USER_WEIGHT * states @ behavior.T + np.log(popularity)[None, :]
    # The largest of logits + Gumbel noise is a draw from their softmax.
    noise = rng.gumbel(size=logits.shape)
    walks[:, step] = np.where(seen, -np.inf, logits + noise).argmax(axis=1)
    seen[everyone, walks[:, step]] = True
    final_states = np.where((step == lengths - 1)[:, None], states, final_states)
  return walks[np.arange(longest)[None, :] < lengths[:, None]], final_states


def _next_item_logits(behavior, popularity, transition, states, last_items) -> np.ndarray:
  """[U, I] logits of the next item, from the users' states [U, G] and last items [U]."""
  wanted = SEQUENCE_WEIGHT * behavior[last_items] @ transition + USER_WEIGHT * states  # [U, G]
  return wanted @ behavior.T + np.log(popularity)[None, :]


def _unit(vectors: np.ndarray) -> np.ndarray:
  return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)

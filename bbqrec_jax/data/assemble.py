"""From files of interactions and items, in whatever format, to a cached Dataset."""

import os
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from bbqrec_jax.data import cache
from bbqrec_jax.data.dataset import Dataset, make_dataset
from bbqrec_jax.data.features import check_modalities, feature_paths, make_features
from bbqrec_jax.data.interactions import Log, make_sequences
from bbqrec_jax.data.items import ItemTable
from bbqrec_jax.data.lines import check_file


def assemble(
  *,
  source: str,
  name: str,
  interactions: str,
  items: str | None,
  features: Mapping[str, str | None] | None,
  modalities: Sequence[str],
  min_interactions: int,
  text_model: str,
  text_columns: Sequence[str],
  cache_dir: str,
  read_interactions_fn: Callable[[str], Log],
  read_items_fn: Callable[[str], ItemTable],
) -> Dataset:
  """Reads, filters, sorts and numbers the data, adds the features, and caches the result.

  Args:
    source: the loader's name, part of the cache's key.
    name: what the dataset is called.
    interactions, items: paths, ~ allowed; items None if there is no item table.
    features: modality -> .npy file whose rows are those of the item table.
    modalities: which modalities to load.
    min_interactions: k of the k-core.
    text_model, text_columns, cache_dir: see features.make_features.
    read_interactions_fn, read_items_fn: read one file of the source's format.

  Raises UserError for anything wrong with the files.
  """
  modalities = check_modalities(modalities)
  interactions = check_file(interactions)
  matrices = feature_paths(modalities, features)
  inputs = matrices | dict(interactions=interactions)
  if items is not None:
    items = inputs["items"] = check_file(items)
  encodes_text = "text" in modalities and "text" not in matrices and items is not None

  def make() -> Dataset:
    table = read_items_fn(items) if items is not None else None
    table_ids = table.item_ids if table else ()
    log = read_interactions_fn(interactions)
    sequences = make_sequences(log, interactions, min_interactions, table_ids)
    return make_dataset(
      name=name,
      user_ids=sequences.user_ids,
      item_ids=sequences.item_ids,
      items=sequences.items,
      offsets=sequences.offsets,
      features=make_features(
        modalities,
        matrices,
        table,
        sequences.rows,
        text_model=text_model,
        text_columns=text_columns,
        cache_dir=cache_dir,
      ),
      titles=table.titles(sequences.rows) if table else np.full(len(sequences.rows), ""),
    )

  options = dict(
    source=source,
    name=name,
    modalities=modalities,
    min_interactions=min_interactions,
    text_model=cache.model_identity(text_model) if encodes_text else None,
    text_columns=list(text_columns) if encodes_text else None,
  )
  identities = {role: cache.file_identity(os.path.abspath(p)) for role, p in inputs.items()}
  return cache.load_or_make(cache_dir, options, identities, make)

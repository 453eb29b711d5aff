"""Amazon reviews of 2014, the raw files: https://jmcauley.ucsd.edu/data/amazon/

McAuley et al. 2015 (arXiv:1506.04757) and He & McAuley 2016 (arXiv:1602.01585). Research use.
"""

import ast
import json
import os
import re
from collections.abc import Mapping, Sequence

import numpy as np

from bbqrec_jax.data import cache, text
from bbqrec_jax.data.dataset import MODALITIES, Dataset, Features, make_dataset
from bbqrec_jax.data.download import fetch, remember, verify
from bbqrec_jax.data.features import check_modalities
from bbqrec_jax.data.interactions import Log, LogBuilder, check_id, make_sequences, parse_time
from bbqrec_jax.data.items import ItemTable
from bbqrec_jax.data.lines import check_file, read_lines
from bbqrec_jax.errors import UserError

# The paper's four datasets, by their names here.
SUBSETS = {
  "beauty": "Beauty",
  "sports": "Sports_and_Outdoors",
  "clothing": "Clothing_Shoes_and_Jewelry",
  "toys": "Toys_and_Games",
}

# Both hold categoryFiles/ and image_features/categoryFiles/.
MIRRORS = (
  "https://snap.stanford.edu/data/amazon/productGraph",
  "https://mcauleylab.ucsd.edu/public_datasets/data/amazon",
)

IMAGE_DIM = 4096
_IMAGE_RECORD = np.dtype([("asin", "S10"), ("values", "<f4", (IMAGE_DIM,))])
_BLOCK_RECORDS = 256  # Records read at a time: 4 MB.

# Every line of the metadata names its product once under this key. Finding it here first spares
# the slow parser the products that are not wanted, most of the file.
_ASIN = re.compile(r"""['"]asin['"]: ?u?['"]([^'"]*)['"]""")


def load(
  *,
  subset: str,
  root: str | None,
  modalities: Sequence[str] = MODALITIES,
  min_interactions: int = 5,
  text_model: str = text.DEFAULT_MODEL,
  text_columns: Sequence[str] = ("title", "description"),
  cache_dir: str = cache.DEFAULT_DIR,
  download: bool = True,
) -> Dataset:
  """Reads the 5-core reviews, the metadata and the image features of one category.

  See interactions.make_sequences for the filter and the order of ties, which are common: times
  are whole days. Items are numbered by first appearance in the reviews.

  Args:
    subset: beauty, sports, clothing or toys; or a category as it stands in the release's file
      names, such as Books.
    root: the folder of the raw files; ~ is expanded.
    modalities: which modalities to load; "text" needs the metadata, "image" the image features.
    min_interactions: k of the k-core; the files are 5-core already.
    text_model, text_columns: these fields of the metadata become vectors by this model.
    cache_dir: where processed data are kept.
    download: whether missing files are downloaded into root.

  Raises UserError for a missing or malformed file.
  """
  if root is None:
    raise UserError(
      "data.root is not set: give the folder of the raw Amazon files (--config.data.root=FOLDER)."
    )
  if not re.fullmatch(r"\w+", subset) or (subset.islower() and subset not in SUBSETS):
    raise UserError(
      f"data.subset={subset!r}: unknown; expected one of {', '.join(SUBSETS)}, or a category as it "
      "is written in the file names, such as Books."
    )
  modalities = check_modalities(modalities)
  category = SUBSETS.get(subset, subset)
  root = os.path.expanduser(root)
  names = dict(reviews=f"categoryFiles/reviews_{category}_5.json.gz")
  if "text" in modalities:
    names["meta"] = f"categoryFiles/meta_{category}.json.gz"
  if "image" in modalities:
    names["image"] = f"image_features/categoryFiles/image_features_{category}.b"
  paths = {role: _provide(root, name, download) for role, name in names.items()}

  def make() -> Dataset:
    sequences = make_sequences(read_reviews(paths["reviews"]), subset, min_interactions)
    rows = np.arange(len(sequences.item_ids))
    row_of = {str(asin): row for row, asin in enumerate(sequences.item_ids)}
    features, titles = {}, np.full(len(rows), "")
    if "meta" in paths:
      columns = dict.fromkeys(("title", *text_columns))  # Distinct.
      table = read_metadata(paths["meta"], row_of, tuple(columns))
      titles = table.titles(rows)
      texts = table.texts(rows, text_columns)
      features["text"] = text.encode_features(texts, text_model, cache_dir)
    if "image" in paths:
      features["image"] = read_images(paths["image"], row_of)
    return make_dataset(
      name=subset,
      user_ids=sequences.user_ids,
      item_ids=sequences.item_ids,
      items=sequences.items,
      offsets=sequences.offsets,
      features=features,
      titles=titles,
    )

  options = dict(
    source="amazon",
    subset=subset,
    modalities=modalities,
    min_interactions=min_interactions,
    text_model=cache.model_identity(text_model) if "meta" in paths else None,
    text_columns=list(text_columns),
  )
  identities = {role: verify(path) for role, path in paths.items()}
  dataset = cache.load_or_make(cache_dir, options, identities, make)
  for role, path in paths.items():
    remember(path, identities[role])
  return dataset


def read_reviews(path: str) -> Log:
  """Reads who reviewed what, and when, from one JSON object a line.

  Raises UserError, with file and line, where a line is malformed.
  """
  log = LogBuilder()
  for number, line in read_lines(path):
    try:
      review = json.loads(line)
      user, item, time = review["reviewerID"], review["asin"], review["unixReviewTime"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
      raise UserError(
        f"{path}:{number}: expected a JSON object with reviewerID, asin and unixReviewTime."
      ) from error
    where = f"{path}:{number}"
    log.add(
      check_id(user, "reviewerID", where),
      check_id(item, "asin", where),
      parse_time(time, where),
    )
  return log.build()


def read_metadata(path: str, row_of: Mapping[str, int], columns: Sequence[str]) -> ItemTable:
  """Reads the wanted products' text fields, from one Python literal a line.

  Of several lines for one product the first that says anything in a field counts for that field.

  Args:
    row_of: asin -> row, in [0, I), of the products that are wanted.
    columns: names of fields; one that a product lacks is "".

  Returns:
    A table of I rows.

  Raises UserError, with file and line, where a line is malformed.
  """
  texts = {column: [""] * len(row_of) for column in columns}
  for number, line in read_lines(path):
    asin = _ASIN.search(line)
    if asin and asin[1] not in row_of:
      continue
    try:
      product = ast.literal_eval(line)
      row = row_of.get(product["asin"])
    except (ValueError, SyntaxError, KeyError, TypeError, RecursionError, MemoryError) as error:
      raise UserError(
        f"{path}:{number}: expected a Python dictionary with the key 'asin'."
      ) from error
    if row is None:
      continue
    for column, values in texts.items():
      values[row] = values[row] or _flat(product.get(column))
  return ItemTable(path, list(row_of), texts)


def _flat(field) -> str:
  """A metadata field as text; `categories` is a list of lists."""
  if isinstance(field, list):
    return " ".join(filter(None, map(_flat, field)))
  return "" if field is None else str(field)


def read_images(path: str, row_of: Mapping[str, int]) -> Features:
  """Streams the CNN features of the wanted products from records of ASIN and 4,096 float32.

  Args:
    row_of: asin -> row, in [0, I), of the products that are wanted.

  Returns:
    Features of I rows; a product without a record, or with an all-zero one, is absent.

  Raises UserError if the file ends within a record, or a wanted value is not finite.
  """
  values = np.zeros((len(row_of), IMAGE_DIM), np.float32)
  if os.path.getsize(path) % _IMAGE_RECORD.itemsize:
    raise UserError(
      f"{path}: ends within a record of {_IMAGE_RECORD.itemsize:,} bytes (a truncated download?); "
      "delete the file and fetch it again."
    )
  with open(path, "rb") as file:
    while block := file.read(_BLOCK_RECORDS * _IMAGE_RECORD.itemsize):
      for record in np.frombuffer(block, _IMAGE_RECORD):
        asin = record["asin"].decode("ascii", "replace")
        if asin not in row_of:
          continue
        if not np.isfinite(record["values"]).all():
          raise UserError(f"{path}: the features of {asin} hold NaN or infinity; fetch it again.")
        values[row_of[asin]] = record["values"]
  return Features(values, values.any(axis=1))


def _provide(root: str, name: str, download: bool) -> str:
  """The path of a raw file in root, downloaded if it is missing and that is allowed."""
  path = os.path.join(root, os.path.basename(name))
  if not os.path.exists(path):
    if not download:
      raise UserError(
        f"{path}: no such file; put it there, allow the download (--config.data.download=True), or "
        "leave its modality out of data.modalities."
      )
    fetch([f"{mirror}/{name}" for mirror in MIRRORS], path)
  return check_file(path)

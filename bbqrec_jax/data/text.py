"""Texts become vectors by a sentence encoder, once: the vectors are cached."""

import hashlib
import json
import os

import numpy as np
from absl import logging

from bbqrec_jax.data import cache
from bbqrec_jax.data.dataset import Features
from bbqrec_jax.errors import UserError

# BBQRec Section 5.1: a pre-trained sentence-T5 over title and description. 768 dimensions.
DEFAULT_MODEL = "sentence-transformers/sentence-t5-base"


def encode(texts: list[str], model_name: str, cache_dir: str) -> np.ndarray:
  """Vectors of the texts, by sentence-transformers or from the cache.

  Args:
    texts: [n] str.
    model_name: a model of the Hugging Face hub, or the path of a local one.
    cache_dir: vectors are kept under cache_dir/text, keyed by the model and the texts.

  Returns:
    [n, F] float32, as the model gives them.

  Raises UserError if sentence-transformers or the model cannot be loaded.
  """
  key = json.dumps([cache.model_identity(model_name), texts])
  digest = hashlib.sha256(key.encode()).hexdigest()
  path = os.path.join(os.path.expanduser(cache_dir), "text", f"{digest}.npy")
  if os.path.isfile(path):
    try:
      values = np.load(path, allow_pickle=False)
      if values.ndim == 2 and len(values) == len(texts):
        return values
    except Exception:  # Whatever is wrong with it, it is made again.
      pass
    logging.info("%s: damaged, the texts are encoded again.", path)
  values = np.asarray(_load_model(model_name).encode(texts, show_progress_bar=True), np.float32)
  cache.write(path, lambda file: np.save(file, values))
  return values


def encode_features(texts: list[str], model_name: str, cache_dir: str) -> Features:
  """Text features of the items; an empty text is an absent one: [I, F] with a zero row there."""
  present = np.array([bool(text) for text in texts])
  if not present.any():
    return Features(np.zeros((len(texts), 1), np.float32), present)
  vectors = encode([text for text in texts if text], model_name, cache_dir)
  values = np.zeros((len(texts), vectors.shape[1]), np.float32)
  values[present] = vectors
  return Features(values, present)


def _load_model(model_name: str):
  try:
    import sentence_transformers  # An extra: importing it takes seconds and needs PyTorch.
  except ImportError as error:
    raise UserError(
      "data: turning text columns into vectors needs sentence-transformers; "
      "install it (pip install '.[text]' in the clone), or give ready vectors "
      "(config.data.features.text=FILE.npy), or go without text (the config argument no_text)."
    ) from error
  logging.info("Encoding texts with %s.", model_name)
  try:
    return sentence_transformers.SentenceTransformer(os.path.expanduser(model_name))
  except (OSError, ValueError, RuntimeError) as error:
    raise UserError(
      f"data.text_model={model_name}: cannot be loaded "
      f"({str(error).splitlines()[0] if str(error) else type(error).__name__}); "
      "give the name of a model that can be downloaded, or the path of one that is here."
    ) from error

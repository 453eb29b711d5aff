"""Hugging Face's T5 in the shape of our generator, trained and decoded as public code does it.

A code is a token of its own. The decoder spells an item either in L tokens, the codes of one
signal, a third of what ours predicts; or in L * M, the whole semantic ID. The encoder reads L
tokens an item in both cases, as many as ours. Needs the extra [bench].
"""

import os
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
import transformers

from bbqrec_jax import run_record
from lib import workload

PAD = 0  # Also what the decoder starts with; codes come behind it.


def use_all_cpus() -> int:
  """As many threads as XLA has, and no warnings; returns their number."""
  os.environ["TOKENIZERS_PARALLELISM"] = "false"
  transformers.logging.set_verbosity_error()
  torch.set_num_threads(run_record.num_cpus())
  return torch.get_num_threads()


def make_model(
  shape: workload.Shape, *, num_signals: int, dropout_rate: float
) -> transformers.T5ForConditionalGeneration:
  """T5 whose vocabulary has every level's codes of `num_signals` signals."""
  torch.manual_seed(0)
  config = transformers.T5Config(
    vocab_size=1 + shape.num_levels * num_signals * shape.codebook_size,
    d_model=shape.model_dim,
    d_kv=shape.head_dim,
    d_ff=shape.ff_dim,
    num_layers=shape.num_layers,
    num_decoder_layers=shape.num_layers,
    num_heads=shape.num_heads,
    dropout_rate=dropout_rate,
    feed_forward_proj="relu",
    pad_token_id=PAD,
    eos_token_id=None,  # Every item has the same number of tokens.
    decoder_start_token_id=PAD,
  )
  return transformers.T5ForConditionalGeneration(config)


def item_tokens(shape: workload.Shape, codes: np.ndarray, num_signals: int) -> np.ndarray:
  """Each item's tokens, level by level: codes [I, L, M] -> [I, L * num_signals] int64."""
  flat = codes[:, :, :num_signals].reshape(len(codes), -1)
  return 1 + np.arange(flat.shape[1]) * shape.codebook_size + flat.astype(np.int64)


def encoder_inputs(
  shape: workload.Shape, codes: np.ndarray, histories: np.ndarray
) -> dict[str, torch.Tensor]:
  """input_ids and attention_mask [B, T * L] of histories [B, T], -1 = padding."""
  tokens = item_tokens(shape, codes, 1)[np.maximum(histories, 0)]  # [B, T, L]
  mask = np.broadcast_to((histories >= 0)[:, :, None], tokens.shape).reshape(len(histories), -1)
  tokens = np.where(mask, tokens.reshape(mask.shape), PAD)
  return dict(
    input_ids=torch.from_numpy(tokens), attention_mask=torch.from_numpy(mask.astype(np.int64))
  )


def train_steps(
  model: transformers.T5ForConditionalGeneration,
  inputs: dict[str, torch.Tensor],
  labels: torch.Tensor,
  num_steps: int,
) -> Callable[[], float]:
  """Training on one batch: each call takes num_steps steps and returns the last loss."""
  model.train()
  settings = workload.OPTIMIZER
  optimizer = torch.optim.AdamW(
    model.parameters(),
    lr=settings["learning_rate"],
    weight_decay=settings["weight_decay"],
    fused=True,  # The fastest that PyTorch has.
  )

  def take_steps():
    for _ in range(num_steps):
      optimizer.zero_grad(set_to_none=True)
      loss = model(**inputs, labels=labels).loss
      loss.backward()
      torch.nn.utils.clip_grad_norm_(model.parameters(), settings["clip_norm"])
      optimizer.step()
    return loss.item()

  return take_steps


class Trie:
  """Which tokens may follow a prefix: nested dicts, as GENRE and the code that follows it have."""

  def __init__(self, sequences: Iterable[Iterable[int]]):
    self._root: dict[int, Any] = {}
    for sequence in sequences:
      node = self._root
      for token in sequence:
        node = node.setdefault(token, {})

  def get(self, prefix: Iterable[int]) -> list[int]:
    """The tokens that may follow; none for a prefix that no sequence has."""
    node = self._root
    for token in prefix:
      if token not in node:
        return []
      node = node[token]
    return list(node)


def make_generate(
  model: transformers.T5ForConditionalGeneration,
  tokens: np.ndarray,
  *,
  num_beams: int,
  num_results: int,
) -> Callable[[dict[str, torch.Tensor]], np.ndarray]:
  """Constrained beam search: encoder inputs -> tokens [B, num_results, tokens of an item].

  Args:
    tokens: [I, tokens of an item], the catalogue.
  """
  model.eval()
  trie = Trie(tokens.tolist())
  # The first token of a sentence is the decoder's start.
  allowed = lambda batch_id, sentence: trie.get(sentence.tolist()[1:])

  def generate(inputs):
    found = model.generate(
      **inputs,
      num_beams=num_beams,
      num_return_sequences=num_results,
      max_new_tokens=tokens.shape[1],
      do_sample=False,
      prefix_allowed_tokens_fn=allowed,
    )
    return found[:, 1:].reshape(-1, num_results, tokens.shape[1]).numpy()

  return generate

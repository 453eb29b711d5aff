"""Slow and obvious decoding, in plain Python."""

import numpy as np


def _order(codes, popularity):
  """Items as ties are broken: by semantic ID, then popularity, then index."""
  return sorted(range(len(codes)), key=lambda i: (codes[i].ravel().tolist(), -popularity[i], i))


def score(log_prob_fn, semantic_id):
  """Log-probability of a semantic ID, [L, M], where log_prob_fn(prefix [l, M]) is [M, N]."""
  total = np.float32(0)
  for level, token in enumerate(semantic_id):
    log_probs = log_prob_fn(semantic_id[:level])
    for signal, code in enumerate(token):
      total += np.float32(log_probs[signal][code])
  return total


def best_items(log_prob_fn, codes, popularity, k):
  """Scores every item of the catalogue: [(item, score)], the k best that have a finite score."""
  scored = [(i, score(log_prob_fn, codes[i])) for i in _order(codes, popularity)]
  scored = [pair for pair in scored if pair[1] > -np.inf]
  return sorted(scored, key=lambda pair: -pair[1])[:k]


def beam_items(log_prob_fn, codes, popularity, k, num_beams):
  """Beam search over prefixes held in a list: [(item, score)], at most k."""
  semantic_ids = [tuple(map(tuple, item.tolist())) for item in codes]
  beams = [()]
  for level in range(codes.shape[1]):
    prefixes = sorted({semantic_id[: level + 1] for semantic_id in semantic_ids})
    children = [prefix for prefix in prefixes if prefix[:level] in beams]
    scored = [(score(log_prob_fn, np.array(child)), child) for child in children]
    beams = [child for _, child in sorted(scored, key=lambda pair: -pair[0])[:num_beams]]
  order = _order(codes, popularity)
  found = [(i, score(log_prob_fn, codes[i])) for i in order if semantic_ids[i] in beams]
  return sorted(found, key=lambda pair: -pair[1])[:k]

"""Slow and obvious decoding, in plain Python."""

import numpy as np


def _order(codes, popularity):
  """Items by semantic ID, then popularity, then index."""
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
  """Scores every item of the catalogue: [(item, score)], the k best that have a finite score.

  Of equal scores, the item whose longest prefix scores more comes first, then that whose next
  shorter one does, and so on: so a beam search that misses nothing orders them.
  """
  scored = []
  for i in _order(codes, popularity):
    lengths = range(codes.shape[1], 0, -1)
    scored.append((i, [score(log_prob_fn, codes[i][:length]) for length in lengths]))
  scored = [(i, scores) for i, scores in scored if scores[0] > -np.inf]
  scored = sorted(scored, key=lambda pair: [-s for s in pair[1]])
  return [(i, scores[0]) for i, scores in scored[:k]]


def beam_items(log_prob_fn, codes, popularity, k, num_beams):
  """Beam search over prefixes held in a list: ([(item, score)], at most k; the bound)."""
  semantic_ids = [tuple(map(tuple, item.tolist())) for item in codes]
  beams, bound = [((), np.float32(0))], -np.inf
  for level in range(codes.shape[1]):
    prefixes = sorted({semantic_id[: level + 1] for semantic_id in semantic_ids})
    children = [child for beam, _ in beams for child in prefixes if child[:level] == beam]
    scored = [(child, score(log_prob_fn, np.array(child))) for child in children]
    scored = [(child, total) for child, total in scored if total > -np.inf]
    scored = sorted(scored, key=lambda pair: -pair[1])
    beams = scored[:num_beams]
    bound = max([bound, *(total for _, total in scored[num_beams:])])
  order = _order(codes, popularity)
  found = [(i, total) for leaf, total in beams for i in order if semantic_ids[i] == leaf]
  return found[:k], bound

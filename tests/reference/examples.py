"""Training examples of users' sequences, one by one; the last two items of each are held out."""

import itertools


def prefixes(sequences, max_history):
  """[(history, (target,))]: every item but a user's first, with what came before it."""
  found = []
  for sequence in sequences:
    training = sequence[:-2]
    for position in range(1, len(training)):
      history = training[:position][-max_history:]
      found.append((tuple(history), (training[position],)))
  return found


def windows(sequences, max_history):
  """[(history, targets)]: at most max_history items and the item after each, cut from the end."""
  found = []
  for sequence in sequences:
    pairs = list(itertools.pairwise(sequence[:-2]))
    while pairs:
      window, pairs = pairs[-max_history:], pairs[:-max_history]
      found.append(tuple(zip(*window)))
  return found

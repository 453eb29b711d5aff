"""Items of one semantic ID get others, against the loop of LETTER's program."""

import numpy as np

from bbqrec_jax.trainers import repair
from tests.reference import tokenizer as reference

N, D, TEMPERATURE = 16, 4, 0.003


def crowded(seed=0):
  """(codes [30, 3], residuals [30, D], codebook [N, D]): two codes before a last one of few."""
  rng = np.random.default_rng(seed)
  codes = np.concatenate([rng.integers(0, 2, (30, 2)), rng.integers(0, 3, (30, 1))], axis=1)
  return (
    codes.astype(np.int32),
    rng.normal(size=(30, D)).astype(np.float32),
    rng.normal(size=(N, D)).astype(np.float32),
  )


def separate(codes, residuals, codebook, num_rounds=20):
  return repair.separate(codes, residuals, codebook, temperature=TEMPERATURE, num_rounds=num_rounds)


def num_distinct(codes):
  return len(np.unique(codes, axis=0))


def test_every_round_is_that_of_letter_s_program():
  codes, residuals, codebook = crowded()
  given = codes.copy()
  for num_rounds in (1, 2, 20):
    expected = reference.separate(codes, residuals, codebook, TEMPERATURE, num_rounds)
    np.testing.assert_array_equal(separate(codes, residuals, codebook, num_rounds), expected)
  np.testing.assert_array_equal(codes, given)  # Not written to.
  assert num_distinct(codes) < 15 and num_distinct(expected) > 25
  np.testing.assert_array_equal(expected[:, :-1], codes[:, :-1])


def test_items_that_are_alike_stay_together_and_others_are_left_alone():
  codes, residuals, codebook = crowded()
  codes = np.unique(codes, axis=0)[:6]
  np.testing.assert_array_equal(separate(codes, residuals[:6], codebook), codes)
  twice = np.concatenate([codes, codes[:1], codes[:1]])
  alike = np.concatenate([residuals[:6], residuals[:1], residuals[7:8]])
  found = separate(twice, alike, codebook)
  np.testing.assert_array_equal(found[0], found[6])
  assert num_distinct(found) == 7
  np.testing.assert_array_equal(found[1:6], codes[1:])

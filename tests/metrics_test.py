"""Metrics against hand values, sorting, and the textbook formula of the t-test."""

import math

import chex
import jax
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from bbqrec_jax import metrics


class RankTest(chex.TestCase):
  @chex.variants(with_jit=True, without_jit=True)
  def test_ranks_from_items_count_the_item_itself(self):
    items = np.array([[7, 3, 5], [3, 7, 5], [5, 3, 7], [1, 2, 3], [4, -1, -1]], np.int32)
    targets = np.array([7, 7, 7, 7, -1], np.int32)  # The last row is padding: no hit on padding.
    ranks = self.variant(metrics.ranks_from_items)(items, targets)
    lost = metrics.NOT_FOUND
    np.testing.assert_array_equal(ranks, [1, 2, 3, lost, lost])
    chex.assert_type(ranks, np.int32)

  @chex.variants(with_jit=True, without_jit=True)
  def test_ranks_from_scores_equal_a_slow_count_with_ties_against_the_model(self):
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 5, (11, 17)).astype(np.float32)  # Many ties.
    scores[:, 3] = -np.inf
    targets = rng.integers(4, 17, 11).astype(np.int32)
    ranks = self.variant(metrics.ranks_from_scores)(scores, targets)
    expected = []
    for row, target in zip(scores, targets):
      others = np.delete(row, target)
      expected.append(1 + np.sum(others > row[target]) + np.sum(others == row[target]))
    np.testing.assert_array_equal(ranks, expected)
    chex.assert_type(ranks, np.int32)

  def test_broken_or_constant_scores_rank_last(self):
    scores = np.zeros((3, 5), np.float32)
    scores[1] = np.nan
    scores[2, 1] = np.nan  # Only the target's.
    ranks = metrics.ranks_from_scores(scores, np.array([1, 1, 1]))
    np.testing.assert_array_equal(ranks, [5, 5, 5])

  def test_both_ways_to_rank_agree(self):
    scores = np.random.default_rng(1).normal(size=(13, 19)).astype(np.float32)
    targets = np.arange(13, dtype=np.int32)
    items = jax.lax.top_k(scores, 19)[1]
    seen = np.tile(np.arange(5, dtype=np.int32), (13, 1))
    seen[:, 3] = -1
    for without in (None, seen):
      np.testing.assert_array_equal(
        metrics.ranks_from_items(items, targets, without),
        metrics.ranks_from_scores(scores, targets, without),
      )

  @chex.variants(with_jit=True, without_jit=True)
  def test_what_was_seen_is_no_candidate(self):
    rng = np.random.default_rng(2)
    scores = rng.integers(0, 5, (29, 17)).astype(np.float32)
    scores[3] = np.nan
    targets = rng.integers(0, 17, 29).astype(np.int32)
    seen = np.stack([rng.permutation(17)[:6] for _ in range(29)]).astype(np.int32)
    seen[::2, 3:] = -1
    ranks = self.variant(metrics.ranks_from_scores)(scores, targets, seen)
    listed = np.argsort(-scores, axis=1, kind="stable")[:, :11].astype(np.int32)
    places = self.variant(metrics.ranks_from_items)(listed, targets, seen)
    for n, (row, target) in enumerate(zip(scores, targets)):
      others = [score for item, score in enumerate(row) if item not in {*seen[n], target}]
      expected = 1 + sum(not score < row[target] for score in others)
      assert ranks[n] == (metrics.NOT_FOUND if target in seen[n] else expected)
      kept = [item for item in listed[n] if item not in seen[n]]
      assert places[n] == (kept.index(target) + 1 if target in kept else metrics.NOT_FOUND)
    assert metrics.NOT_FOUND in ranks.tolist() and metrics.NOT_FOUND in places.tolist()

  def test_wrong_shapes_raise(self):
    with self.assertRaisesRegex(ValueError, r"\[U, k\]"):
      metrics.ranks_from_items(np.zeros((3, 2), int), np.zeros(2, int))
    with self.assertRaisesRegex(ValueError, r"\[B, I\]"):
      metrics.ranks_from_scores(np.zeros((3, 2)), np.zeros((3, 1), int))


class MeanTest(chex.TestCase):
  def test_hand_values(self):
    ranks = np.array([1, 5, 6, metrics.NOT_FOUND], np.int32)
    self.assertEqual(metrics.recall_at_k(ranks, 5), 0.5)
    self.assertEqual(metrics.recall_at_k(ranks, 6), 0.75)
    gain = 1 + 1 / math.log2(6)
    self.assertAlmostEqual(metrics.ndcg_at_k(ranks, 5), gain / 4, places=15)
    self.assertAlmostEqual(metrics.ndcg_at_k(ranks, 10), (gain + 1 / math.log2(7)) / 4, places=15)
    results = metrics.summary(ranks, (5, 6))
    self.assertEqual(list(results), ["recall@5", "ndcg@5", "recall@6", "ndcg@6"])
    self.assertEqual(results["recall@6"], 0.75)

  def test_means_are_exact_over_many_users(self):
    num_users = 2**24 + 3  # A float32 count would stop at 2**24.
    self.assertEqual(metrics.recall_at_k(np.ones(num_users, np.int32), 5), 1.0)

  def test_ranks_below_one_or_none_raise(self):
    for ranks in ([0, 1], []):
      with self.assertRaisesRegex(ValueError, "counted from 1"):
        metrics.recall_at_k(np.array(ranks, int), 5)


class PairedTTest(chex.TestCase):
  def test_equals_the_formula_and_the_integral_of_the_density(self):
    rng = np.random.default_rng(2)
    a = rng.normal(size=23)
    b = a + rng.normal(0.3, 1.0, size=23)
    result = metrics.paired_t_test(a, b)
    difference, dof = b - a, 22
    t = difference.mean() / (difference.std(ddof=1) / math.sqrt(23))
    norm = math.gamma((dof + 1) / 2) / (math.sqrt(dof * math.pi) * math.gamma(dof / 2))
    tail, _ = scipy.integrate.quad(
      lambda x: norm * (1 + x * x / dof) ** (-(dof + 1) / 2), abs(t), np.inf
    )
    np.testing.assert_allclose(result, (difference.mean(), t, 2 * tail, dof), rtol=1e-6)

  def test_equal_runs_show_no_difference(self):
    self.assertEqual(metrics.paired_t_test(np.ones(7), np.ones(7)), (0.0, 0.0, 1.0, 6))

  def test_users_must_be_paired(self):
    with self.assertRaisesRegex(ValueError, "U > 1"):
      metrics.paired_t_test(np.ones(3), np.ones(2))

  def test_seeds_that_do_not_differ_are_a_constant_to_welchs_test(self):
    seeds = [0.3, 0.5, 0.7]
    one_sample = scipy.stats.ttest_1samp(seeds, 0.1).pvalue
    self.assertAlmostEqual(metrics.welch_p([0.1] * 5, seeds), one_sample, places=12)
    self.assertEqual(metrics.welch_p([0.1, 0.1], [0.1] * 3), 1.0)
    self.assertEqual(metrics.welch_p([0.1, 0.1], [0.2] * 3), 0.0)
    self.assertIsNone(metrics.welch_p([0.1], seeds))


@pytest.mark.parametrize(
  ("codes", "expected"),
  [
    ([[0, 1, 2], [3, 4, 5]], (6 / 8, 6.0, 2)),
    ([2, 2, 2], (1 / 8, 1.0, 7)),
    ([0, 0, 0, 7], (2 / 8, 4 / 27**0.25, 6)),  # exp(-(3/4 log 3/4 + 1/4 log 1/4)).
  ],
)
def test_code_usage(codes, expected):
  np.testing.assert_allclose(metrics.code_usage(np.array(codes), 8), expected, rtol=1e-12)


@pytest.mark.parametrize("codes", [[8], [-1], []])
def test_code_usage_rejects_codes_out_of_range(codes):
  with pytest.raises(ValueError, match="in \\[0, 8\\)"):
    metrics.code_usage(np.array(codes, int), 8)

"""Codebook reports of catalogues whose numbers are known, or counted one by one."""

import collections
import json

import numpy as np
import pytest

from bbqrec_jax.evaluators import codebook

SIGNALS = ("id", "text")


def test_hand_made_catalogue():
  # Two levels, two signals, four codes. Items 0, 1, 4 collide, and so do 2 and 3.
  x, y, z = [[0, 1], [2, 3]], [[0, 1], [3, 3]], [[1, 1], [2, 3]]
  codes = np.array([x, x, y, y, x, z])
  found = codebook.report(codes, 4, SIGNALS, shared=True)
  assert found["num_items"] == 6
  assert found["num_first_tokens"] == 2
  assert found["num_semantic_ids"] == 3
  assert found["num_colliding_items"] == 5
  assert found["num_surplus_items"] == 3
  assert found["largest_group"] == 3
  rows = {(row["signal"], row["level"]): row for row in found["usage"]}
  assert set(rows) == {(signal, level) for signal in (*SIGNALS, "all") for level in (1, 2)}
  assert rows["text", 2]["used"] == 1 and rows["text", 2]["dead"] == 3
  assert rows["text", 2]["perplexity"] == pytest.approx(1.0)
  assert rows["id", 1]["coverage"] == 0.5
  # Level 1, both signals: code 0 five times, code 1 seven times.
  expected = np.exp(-(5 * np.log(5 / 12) + 7 * np.log(7 / 12)) / 12)
  assert rows["all", 1]["perplexity"] == pytest.approx(expected)


@pytest.mark.parametrize("num_signals", [1, 2, 3])
def test_collisions_equal_a_slow_count(num_signals):
  codes = np.random.default_rng(num_signals).integers(0, 2, (41, 3, num_signals))
  signals = ("id", "text", "image")[:num_signals]
  groups = collections.Counter(str(item) for item in codes.tolist())
  found = codebook.report(codes, 2, signals, shared=num_signals > 1)
  assert found["num_semantic_ids"] == len(groups)
  assert found["largest_group"] == max(groups.values())
  assert found["num_colliding_items"] == sum(n for n in groups.values() if n > 1)
  assert len(found["usage"]) == 3 * (num_signals + (num_signals > 1))


def test_report_is_json_and_text_shows_every_row():
  codes = np.random.default_rng(0).integers(0, 5, (19, 2, 2))
  found = codebook.report(codes, 5, SIGNALS, shared=False)
  assert json.loads(json.dumps(found)) == found
  text = codebook.format_report(found)
  assert len(text.splitlines()) == 2 + 2 * 2 + 3
  assert f"distinct semantic IDs: {found['num_semantic_ids']}" in text


def test_signals_must_match():
  with pytest.raises(ValueError, match="I, L, 2"):
    codebook.report(np.zeros((3, 2, 1), int), 4, SIGNALS, shared=True)

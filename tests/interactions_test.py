import numpy as np
import pytest

from bbqrec_jax.data import interactions
from bbqrec_jax.data.dataset import histories, make_dataset
from bbqrec_jax.errors import UserError


def make_log(rows):
  log = interactions.LogBuilder()
  for user, item, time in rows:
    log.add(user, item, time)
  return log.build()


def random_rows(seed, num_rows=211, num_users=23, num_items=17, num_times=7):
  rng = np.random.default_rng(seed)
  columns = [rng.integers(size, size=num_rows) for size in (num_users, num_items, num_times)]
  return [(f"u{u}", f"i{i}", float(t)) for u, i, t in zip(*columns)]


def slow_k_core(rows, min_user, min_item):
  """Takes away one offending row at a time."""
  rows = list(rows)
  while True:
    users, items = [r[0] for r in rows], [r[1] for r in rows]
    for n, (user, item, _) in enumerate(rows):
      if users.count(user) < min_user or items.count(item) < min_item:
        del rows[n]
        break
    else:
      return rows


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("k", [1, 6, 7])
def test_filter_order_and_split_equal_the_slow_way(seed, k):
  rows = random_rows(seed)
  sequences = interactions.make_sequences(make_log(rows), "rows", k)
  kept = slow_k_core(rows, max(k, 3), k)
  assert k == 1 or 0 < len(kept) < len(rows)  # Something falls, and something stays.
  # Users and items by first appearance; Python's sort is stable, so ties keep the file's order.
  users = list(dict.fromkeys(r[0] for r in kept))
  items = list(dict.fromkeys(r[1] for r in kept))
  assert sequences.user_ids.tolist() == users
  assert sequences.item_ids.tolist() == items
  expected = [sorted((r for r in kept if r[0] == u), key=lambda r: r[2]) for u in users]
  for u, own in enumerate(expected):
    start, end = sequences.offsets[u : u + 2]
    assert [items[i] for i in sequences.items[start:end]] == [r[1] for r in own]
  dataset = make_dataset("rows", *sequences[:4], {}, np.full(len(items), ""))
  for split, held_out in (("valid", 2), ("test", 1)):
    history, target = histories(dataset, split, 5)
    for u, own in enumerate(expected):
      names = [r[1] for r in own]
      assert items[target[u]] == names[-held_out]
      before = names[:-held_out][-5:]
      assert [items[i] for i in history[u] if i >= 0] == before


def test_filtering_is_repeated_until_nothing_falls():
  # Item c falls, then user y, then item b: one round alone would leave the last two.
  rows = [("x", "a", n) for n in range(4)] + [("y", "a", 0), ("y", "b", 1), ("y", "b", 2)]
  rows += [("y", "c", 3)]
  sequences = interactions.make_sequences(make_log(rows), "rows", 4)
  assert sequences.user_ids.tolist() == ["x"]
  assert sequences.item_ids.tolist() == ["a"]


def test_ties_keep_the_order_of_the_file():
  rows = [("x", "b", 5), ("x", "a", 5), ("x", "c", 4), ("x", "a", 5), ("x", "b", 5)]
  sequences = interactions.make_sequences(make_log(rows), "rows", 1)
  assert sequences.item_ids[sequences.items].tolist() == ["c", "b", "a", "a", "b"]


def test_items_follow_the_table_and_those_it_lacks_come_last():
  rows = [("x", item, n) for n, item in enumerate(["n", "a", "m", "b", "a"])]
  sequences = interactions.make_sequences(make_log(rows), "rows", 1, ["b", "unused", "a"])
  assert sequences.item_ids.tolist() == ["b", "a", "n", "m"]
  assert sequences.rows.tolist() == [0, 2, -1, -1]
  assert sequences.item_ids[sequences.items].tolist() == ["n", "a", "m", "b", "a"]


def test_users_need_three_items_whatever_min_interactions_says():
  rows = [("x", "a", 0), ("x", "b", 1)] + [("y", "a", n) for n in range(3)]
  sequences = interactions.make_sequences(make_log(rows), "rows", 1)
  assert sequences.user_ids.tolist() == ["y"]


def test_nothing_left_is_an_error_that_says_so():
  with pytest.raises(UserError, match=r"rows.*none of the 2 interactions.*5-core"):
    interactions.make_sequences(make_log([("x", "a", 0), ("x", "b", 1)]), "rows", 5)


@pytest.mark.parametrize("value", ["noon", "nan", "inf", None, ""])
def test_times_that_are_no_numbers_are_refused(value):
  with pytest.raises(UserError, match="file:3: timestamp must be a number"):
    interactions.parse_time(value, "file:3")

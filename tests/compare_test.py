"""The comparison of two runs: users are aligned, numbers are right, mistakes get a sentence."""

import json

import numpy as np
import pytest
import scipy.stats

from bbqrec_jax import compare, metrics
from bbqrec_jax import ranks as ranks_lib
from bbqrec_jax.errors import UserError

USERS = 97


def write(folder, ranks, user_ids=None, **arrays):
  folder.mkdir(parents=True)
  arrays |= {} if user_ids is None else {"user_ids": user_ids}
  np.savez(folder / "ranks.npz", test=ranks, valid=np.ones_like(ranks), **arrays)
  return str(folder)


@pytest.fixture
def ranks():
  return np.random.default_rng(0).integers(1, 30, USERS).astype(np.int32)


@pytest.fixture
def user_ids():
  return np.array([f"u{i}" for i in range(USERS)])


def rows(text):
  """metric -> [A, B, B - A, p], and whether it is marked."""
  lines = [line.split() for line in text.splitlines() if "@" in line]
  return {line[0]: ([float(x) for x in line[1:5]], line[5:] == ["*"]) for line in lines}


def test_table_holds_the_metrics_and_marks_what_is_significant(tmp_path, ranks, user_ids, capsys):
  better = np.where(np.arange(USERS) % 3 == 0, 1, ranks).astype(np.int32)
  a = write(tmp_path / "sasrec" / "0", ranks, user_ids)
  b = write(tmp_path / "b", better, user_ids)
  assert compare.main([a, b]) == 0
  text = capsys.readouterr().out
  assert "A = sasrec/0, B = b; 97 users" in text
  found = rows(text)
  assert list(found) == ["recall@5", "recall@10", "ndcg@5", "ndcg@10"]
  for name, value in metrics.summary(ranks, (5, 10)).items():
    assert found[name][0][0] == pytest.approx(value, abs=5e-5)
  for name, value in metrics.summary(better, (5, 10)).items():
    assert found[name][0][1] == pytest.approx(value, abs=5e-5)
  assert all(marked and numbers[3] < 0.05 for numbers, marked in found.values())


def test_users_are_aligned_by_id(tmp_path, ranks, user_ids, capsys):
  better = np.maximum(1, ranks - 2)  # Of every user: in another order, far less significant.
  order = np.random.default_rng(1).permutation(USERS)
  a = write(tmp_path / "a", ranks, user_ids)
  in_order = write(tmp_path / "in_order", better, user_ids)
  shuffled = write(tmp_path / "shuffled", better[order], user_ids[order])
  assert compare.main([a, in_order]) == 0
  expected = rows(capsys.readouterr().out)
  assert compare.main([a, shuffled]) == 0
  assert rows(capsys.readouterr().out) == expected


def test_a_run_does_not_differ_from_itself(tmp_path, ranks, user_ids, capsys):
  a = write(tmp_path / "a", ranks, user_ids)
  assert compare.main([a, a]) == 0
  for numbers, marked in rows(capsys.readouterr().out).values():
    assert numbers[2:] == [0.0, 1.0] and not marked


def test_the_record_holds_what_the_table_shows(tmp_path, ranks, user_ids, capsys):
  a = write(tmp_path / "a", ranks, user_ids)
  b = write(tmp_path / "b", np.roll(ranks, 1), user_ids)
  assert compare.main([a, b, f"--out={tmp_path}/ab.json"]) == 0
  shown, record = rows(capsys.readouterr().out), json.loads((tmp_path / "ab.json").read_text())
  assert (record["a"], record["b"], record["split"], record["num_users"]) == (
    "a",
    "b",
    "test",
    USERS,
  )
  assert {"command", "commit", "date"} <= record["provenance"].keys()
  assert list(record["metrics"]) == list(shown)
  for name, (numbers, _) in shown.items():
    row = record["metrics"][name]
    np.testing.assert_allclose(
      [row["a"], row["b"], row["difference"], row["p"]], numbers, rtol=0.06, atol=5e-5
    )
  assert compare.main([a, b, f"--out={tmp_path}/gone/ab.json"]) == 1
  assert "there is no folder" in capsys.readouterr().err


def test_runs_without_ids_compare_in_order_and_split_is_chosen(tmp_path, ranks, capsys):
  a, b = write(tmp_path / "a", ranks), write(tmp_path / "b", ranks[::-1])
  assert compare.main([a, b, "--split=valid"]) == 0
  assert rows(capsys.readouterr().out)["recall@5"][0] == [1.0, 1.0, 0.0, 1.0]


def write_record(path, workdir):
  """What a table records of the run's ranks and data; the rest of a record is not read."""
  path.parent.mkdir(parents=True, exist_ok=True)
  run = ranks_lib.load(workdir, "test")
  data = dict(sequences=run.sequences) if run.sequences else {}
  path.write_text(json.dumps(dict(test_ranks=ranks_lib.of_record(run), data=data)))
  return str(path)


def test_a_record_compares_as_its_run_does(tmp_path, ranks, user_ids, capsys):
  far = np.where(ranks > 20, metrics.NOT_FOUND, ranks)
  a = write(tmp_path / "a", far, user_ids)
  b = write(tmp_path / "b", np.maximum(1, ranks - 2), user_ids)
  records = [
    write_record(tmp_path / "sasrec" / "3.json", a), write_record(tmp_path / "tiger.json", b)
  ]  # fmt: skip
  assert compare.main([a, b]) == 0
  expected = capsys.readouterr().out
  assert "A = a, B = b; 97 users" in expected
  for first, second in (records, (records[0], b), (a, records[1])):
    assert compare.main([first, second]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == expected.splitlines()[1:]
  assert compare.main(records) == 0
  assert "A = sasrec/3, B = tiger; 97 users" in capsys.readouterr().out
  write_record(tmp_path / "sasrec" / "0.json", b)
  assert compare.main([str(tmp_path / "sasrec"), records[1]]) == 0
  text = capsys.readouterr().out
  assert "A = sasrec/0,3, B = tiger; 97 users" in text
  half = np.mean([x <= 10 for x in (far, np.maximum(1, ranks - 2))])
  assert rows(text)["recall@10"][0][0] == pytest.approx(half, abs=5e-5)


def test_runs_on_other_sequences_are_not_compared(tmp_path, ranks, user_ids, capsys):
  one, same, other = (
    write(tmp_path / name, ranks, user_ids, sequences=np.array(name[0]))
    for name in ("a", "aa", "b")
  )
  unknown = write(tmp_path / "before", ranks, user_ids)
  for workdir in (same, unknown):
    assert compare.main([one, workdir]) == 0
  for workdir in (other, write_record(tmp_path / "b.json", other)):
    assert compare.main([one, workdir]) == 1
    assert "a and b are of different data" in capsys.readouterr().err


def test_a_record_that_cannot_be_compared_is_refused(tmp_path, ranks, user_ids, capsys):
  a = write(tmp_path / "a", ranks, user_ids)
  record = write_record(tmp_path / "a.json", a)
  shuffled = write(tmp_path / "b", ranks[::-1], user_ids[::-1])
  (tmp_path / "none.json").write_text("{}")
  (tmp_path / "half.json").write_text('{"test_ranks": {"packed": "AAAA"}}')
  (tmp_path / "damaged.json").write_text('{"test_ranks": {"packed": "AAAA", "users": "u"}}')
  for other, message in (
    (shuffled, "the same users, each once and in the same order"),
    (write(tmp_path / "unnamed", ranks), "unnamed has no user_ids"),
    (tmp_path / "none.json", "has no test_ranks"),
    (tmp_path / "half.json", "damaged"),
    (tmp_path / "damaged.json", "damaged"),
    (tmp_path / "gone.json", "does not exist"),
  ):
    assert compare.main([record, str(other)]) == 1
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1 and captured.out == ""
  assert compare.main([record, record, "--split=valid"]) == 1
  assert "of the test split alone" in capsys.readouterr().err
  assert compare.main([record, record, "--split=test_unseen"]) == 1
  assert "has no test_unseen_ranks" in capsys.readouterr().err


def test_a_folder_of_seeds_is_the_mean_of_its_users_and_its_seeds_are_tested_too(
  tmp_path, ranks, user_ids, capsys
):
  rng = np.random.default_rng(1)
  seeds = {
    "a": [ranks, np.maximum(1, rng.permutation(ranks) - 2)],
    "b": [np.maximum(1, ranks - n) for n in (1, 9, 4)],
  }
  for name, of_seeds in seeds.items():
    for seed, found in enumerate(of_seeds):
      order = rng.permutation(USERS)  # A run may have its users in any order.
      write(tmp_path / name / f"{seed + 9}", found[order], user_ids[order])
      (tmp_path / name / f"{seed + 9}.log").write_text("")  # A table's runs have one beside them.
  assert compare.main([str(tmp_path / "a"), str(tmp_path / "b"), f"--out={tmp_path}/ab.json"]) == 0
  shown, record = capsys.readouterr().out, json.loads((tmp_path / "ab.json").read_text())
  assert "A = a/9,10, B = b/9,10,11; 97 users" in shown and "p, seeds" in shown
  hits = {name: np.array([x <= 10 for x in of_seeds], float) for name, of_seeds in seeds.items()}
  of_users = scipy.stats.ttest_rel(hits["a"].mean(axis=0), hits["b"].mean(axis=0))
  of_seeds = scipy.stats.ttest_ind(hits["a"].mean(axis=1), hits["b"].mean(axis=1), equal_var=False)
  row = record["metrics"]["recall@10"]
  assert row["a"] == pytest.approx(hits["a"].mean()) and row["b"] == pytest.approx(hits["b"].mean())
  assert row["p"] == pytest.approx(of_users.pvalue)
  assert row["p_seeds"] == pytest.approx(of_seeds.pvalue)
  assert (
    compare.main([str(tmp_path / "a"), str(tmp_path / "b" / "9"), f"--out={tmp_path}/ab.json"]) == 0
  )
  assert "seeds" not in capsys.readouterr().out
  record = json.loads((tmp_path / "ab.json").read_text())
  assert record["b"] == "b/9" and record["metrics"]["recall@10"]["p_seeds"] is None


def test_ranks_survive_packing_as_far_as_metrics_see_them(ranks):
  before = np.array([1, 10, 11, 300, metrics.NOT_FOUND, 5], np.int32)
  far = metrics.NOT_FOUND
  unpacked = ranks_lib.unpack(ranks_lib.pack(before))
  np.testing.assert_array_equal(unpacked, [1, 10, far, far, far, 5])
  assert len(ranks_lib.pack(ranks)) < USERS
  for text in ("", "no base64!", "AAAA", None):
    with pytest.raises(UserError, match="test_ranks of a record is damaged"):
      ranks_lib.unpack(text)


def test_mistakes_are_told_in_one_line(tmp_path, ranks, user_ids, capsys):
  good = write(tmp_path / "good", ranks, user_ids)
  fewer = write(tmp_path / "fewer", ranks[1:], user_ids[1:])
  others = write(tmp_path / "others", ranks, np.char.add(user_ids, "x"))
  unnamed = write(tmp_path / "unnamed", ranks)
  broken = write(tmp_path / "broken", ranks, user_ids)
  (tmp_path / "broken" / "ranks.npz").write_bytes(b"not a zip file")
  pickled = write(tmp_path / "pickled", np.array([None] * USERS))
  zero = write(tmp_path / "zero", ranks * 0, user_ids)
  (tmp_path / "empty").mkdir()
  cases = [
    (fewer, "ranks 97 users and fewer 96"),
    (others, "do not hold the same users"),
    (unnamed, "unnamed has no user_ids"),
    (broken, "cannot be read"),
    (pickled, "cannot be read"),
    (zero, "ranks from 1"),
    (str(tmp_path / "empty"), "does not exist"),
  ]
  for run, message in cases:
    assert compare.main([good, run]) == 1
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1 and captured.out == ""
  np.savez(tmp_path / "others" / "ranks.npz", test=ranks)
  assert compare.main([others, others, "--split=valid"]) == 1
  assert "no ranks of the valid split" in capsys.readouterr().err

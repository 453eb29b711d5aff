"""The benchmarks' harness, what they count and compare, and that the cheap ones run."""

import json
import os
import pathlib
import runpy
import statistics
import sys
import time

import chex
import numpy as np
import pytest

from bbqrec_jax.decoding import beam, generate, trie
from bbqrec_jax.errors import UserError
from tests import smoke_run

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def hf_t5(load):
  """Hugging Face's side; without the extra [bench] these tests are skipped."""
  for package in ("torch", "transformers"):
    pytest.importorskip(package)
  module = load("lib.hf_t5")
  module.use_all_cpus()
  return module


class _Pending:
  """A result that, like a JAX array, is not ready when the call returns."""

  def block_until_ready(self):
    time.sleep(0.02)
    return self


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.py")))
def test_every_file_is_a_command_that_tells_what_it_measures(load, name, monkeypatch, capsys):
  """README says so. No extra is needed for it; report.py alone writes no record."""
  lib = load("lib")
  for package in ("torch", "transformers", "recbole", "matplotlib", "lib.hf_t5"):
    monkeypatch.setitem(sys.modules, package, None)  # As if it were not installed.
  monkeypatch.delattr(lib, "hf_t5", raising=False)  # Where another test has imported it.
  path = FOLDER / f"{name}.py"
  monkeypatch.setattr(sys, "argv", [str(path), "--help"])
  with pytest.raises(SystemExit) as ended:
    runpy.run_path(str(path), run_name="__main__")
  assert ended.value.code == 0
  told = capsys.readouterr().out
  assert f"python benchmarks/{name}.py" in told
  assert ("--out" in told) == (name != "report")


def test_rounds_are_interleaved_warmed_up_and_waited_for(load):
  harness, calls = load("lib.harness"), []
  candidates = {
    "at_once": lambda: calls.append("at_once"),
    "later": lambda: calls.append("later") or [_Pending()],
  }
  seconds = harness.rounds(candidates, 3)
  # One call of each compiles; then each is timed behind a call that is not.
  assert calls == ["at_once", "later"] + ["at_once", "at_once", "later", "later"] * 3
  assert [len(s) for s in seconds.values()] == [3, 3]
  assert min(seconds["later"]) >= 0.02 > max(seconds["at_once"])
  with pytest.raises(ValueError, match="num_rounds"):
    harness.rounds(candidates, 0)


def test_a_ratio_is_taken_within_each_round(load):
  harness, slow, fast = load("lib.harness"), [2.0, 30.0, 4.0], [1.0, 10.0, 1.0]
  assert harness.ratio(slow, fast) == 3.0 != statistics.median(slow) / statistics.median(fast)
  assert harness.summary({"slow": slow}) == {"slow": dict(median_s=4.0, min_s=2.0, num_rounds=3)}
  for wrong in (slow[:2], []):
    with pytest.raises(ValueError, match="rounds"):
      harness.ratio(wrong, [] if not wrong else fast)


def test_a_record_has_ratios_details_and_provenance(load, tmp_path, capsys):
  harness, out = load("lib.harness"), tmp_path / "x.json"
  run = lambda args: dict(ratios=dict(a_vs_b=np.float32(args.scale)), details=dict(sizes=(2, 3)))
  add_options = lambda parser: parser.add_argument("--scale", type=float)
  argv = [f"--out={out}", "--scale=1.5", "--quick"]
  assert harness.main(run, "doc", add_options, argv) == 0
  assert capsys.readouterr().out.split() == ["a_vs_b", "1.5"]
  record = json.loads(out.read_text())
  assert [path.name for path in tmp_path.iterdir()] == ["x.json"]
  assert record["ratios"] == dict(a_vs_b=1.5) and record["details"] == dict(sizes=[2, 3])
  assert record["quick"] is True
  made_by = record["provenance"]
  assert made_by["command"].startswith("python ") and made_by["command"].endswith(" ".join(argv))
  assert 1 <= made_by["num_cpus"] <= os.cpu_count()
  assert {"commit", "dirty", "versions", "device_kind", "date", "environment"} <= set(made_by)


def test_without_out_the_figures_are_only_printed(load, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  run = lambda args: dict(ratios=dict(a_vs_b=1.5), details={})
  assert load("lib.harness").main(run, "doc", argv=[]) == 0
  assert capsys.readouterr().out.split() == ["a_vs_b", "1.5"]
  assert list(tmp_path.iterdir()) == []


def test_what_a_user_can_mend_is_one_sentence_and_writes_nothing(load, tmp_path, capsys):
  harness, calls = load("lib.harness"), []

  def error_of(error, out):
    def run(args):
      calls.append(args)
      raise error

    assert harness.main(run, "doc", argv=[f"--out={out}"]) == 1
    assert list(tmp_path.iterdir()) == []
    (line,) = capsys.readouterr().err.splitlines()
    return line

  assert "no folder" in error_of(RuntimeError(), tmp_path / "absent" / "x.json")
  assert not calls  # Told before the long work.
  assert "[bench]" in error_of(ModuleNotFoundError(name="torch"), tmp_path / "x.json")
  assert error_of(UserError("Give more."), tmp_path / "x.json") == "Error: Give more."
  with pytest.raises(ModuleNotFoundError):  # Not of the extra: a mistake of ours.
    error_of(ModuleNotFoundError(name="harnes"), tmp_path / "x.json")


def test_quantize_compares_equal_codes(load, tmp_path):
  quantize = load("quantize")
  points, codebooks = quantize.make_data(points=31, levels=3, codes=7, width=5)
  residual, expected = np.asarray(points, np.float64), []
  for codebook in np.asarray(codebooks, np.float64):
    expected.append(((residual[:, None] - codebook) ** 2).sum(-1).argmin(-1))
    residual = residual - codebook[expected[-1]]
  for nearest_fn in (quantize.naive_nearest, quantize.quantizer.nearest):
    np.testing.assert_array_equal(quantize.assign(nearest_fn, points, codebooks), expected)
  out = tmp_path / "quantize.json"
  argv = [f"--out={out}", "--quick", "--rounds=2"]
  assert load("lib.harness").main(quantize.run, "doc", quantize.add_options, argv) == 0
  record = json.loads(out.read_text())
  assert record["ratios"]["assign_vs_naive"] > 0 and record["details"]["differing_codes"] == 0


def test_steps_of_the_workload_train(load):
  workload = load("lib.workload")
  model = workload.make_model(workload.QUICK, similarity=False, dropout_rate=0.0)
  catalogue = workload.make_catalogue(workload.QUICK)
  params = workload.init_params(model, catalogue, workload.QUICK.max_history)
  history = workload.make_histories(workload.QUICK, 2 * 3)
  assert history.max() < workload.QUICK.num_items and (history[:, 0] >= 0).all()
  groups = workload.make_batches(history, num_targets=1, batch_size=3).epoch(0)
  take_steps = workload.generator_steps(model, params, catalogue, groups, num_steps=2)
  losses = [np.asarray(take_steps()["loss"])[:2] for _ in range(20)]
  chance = 9 * np.log(workload.QUICK.codebook_size)  # Three levels of three signals.
  assert 0.8 * chance < losses[0].mean() < 1.5 * chance
  assert losses[-1].mean() < losses[0].mean() - 0.1  # The same batch over and over.


def test_invalid_and_repeated_results_are_counted(load):
  decode = load("decode")
  items = np.array([[4, 0, 3], [-1, 2, 2], [5, 1, 9]], np.int32)
  found = beam.Beams(items, *([np.zeros((3, 3), np.float32)] * (len(beam.Beams._fields) - 1)))
  assert decode.num_invalid_items(found, num_items=6) == 0 + 2 + 1
  tokens = np.array([[1, 5], [2, 5], [1, 6]])
  call = np.array([[[1, 5], [2, 5]], [[1, 6], [1, 6]], [[2, 6], [1, 5]]])
  assert decode.num_invalid_tokens([call, call[:1]], tokens) == 0 + 1 + 1 + 0


def test_the_trie_of_hugging_faces_side_allows_what_the_catalogue_continues(hf_t5):
  rng = np.random.default_rng(0)
  sequences = rng.integers(0, 3, (11, 4)).tolist()
  trie = hf_t5.Trie(sequences)
  for prefix in ([], [1], [2, 0], sequences[5][:3], [7], [0, 9]):
    expected = {s[len(prefix)] for s in sequences if s[: len(prefix)] == prefix}
    assert sorted(trie.get(prefix)) == sorted(expected)


def test_hugging_faces_side_trains_and_its_wide_beam_ranks_every_item(load, hf_t5):
  workload, torch = load("lib.workload"), hf_t5.torch
  shape = workload.QUICK._replace(num_items=13)
  codes = np.asarray(workload.make_catalogue(shape).codes)
  inputs = hf_t5.encoder_inputs(shape, codes, workload.make_histories(shape, 3))
  chex.assert_shape(list(inputs.values()), (3, shape.max_history * shape.num_levels))
  assert ((inputs["input_ids"] > hf_t5.PAD) == inputs["attention_mask"].bool()).all()
  for num_signals in (1, shape.num_signals):
    tokens = hf_t5.item_tokens(shape, codes, num_signals)
    model = hf_t5.make_model(shape, num_signals=num_signals, dropout_rate=0.0)
    assert tokens.min() > hf_t5.PAD and tokens.max() < model.config.vocab_size
    position = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    np.testing.assert_array_equal((tokens - 1) // shape.codebook_size, position)
    take_steps = hf_t5.train_steps(model, inputs, torch.from_numpy(tokens[:3]), num_steps=5)
    assert take_steps() > take_steps()
    generate_fn = hf_t5.make_generate(model, tokens, num_beams=13, num_results=13)
    found = generate_fn(inputs)
    for user in range(3):
      alone = {name: x[user : user + 1].repeat(13, 1) for name, x in inputs.items()}
      with torch.inference_mode():
        logits = model(**alone, labels=torch.from_numpy(tokens)).logits
      scores = torch.log_softmax(logits, -1).gather(-1, torch.from_numpy(tokens)[..., None])
      order = scores.sum((1, 2)).argsort(descending=True)
      np.testing.assert_array_equal(found[user], tokens[order])


@pytest.mark.parametrize("name", [pytest.param("train_step", marks=pytest.mark.slow), "decode"])
def test_comparisons_with_hugging_face_run(load, hf_t5, name, tmp_path):
  benchmark, out = load(name), tmp_path / "out.json"
  argv = [f"--out={out}", "--quick", "--rounds=1"]
  assert load("lib.harness").main(benchmark.run, "doc", benchmark.add_options, argv) == 0
  record = json.loads(out.read_text())
  assert record["ratios"] and all(value > 0 for value in record["ratios"].values())
  assert record["provenance"]["versions"]["torch"]
  for counts in record["details"].get("invalid_or_repeated", {}).values():
    assert set(counts.values()) == {0}


def test_what_a_beam_misses_is_counted_against_the_true_best(load):
  exact_search, workload = load("exact_search"), load("lib.workload")
  shape = workload.QUICK._replace(num_items=7, num_levels=2, num_signals=1)
  model = workload.make_model(shape, similarity=False, dropout_rate=0.0)
  catalogue = workload.make_catalogue(shape)
  params = workload.init_params(model, catalogue, shape.max_history)
  index = trie.build(np.asarray(catalogue.codes), shape.codebook_size, np.ones(shape.num_items))
  histories = workload.make_histories(shape, 5)
  items = {}
  for num_beams in (2, 7):  # The wider one has room for every item.
    search = generate.make_generate(model, num_beams=num_beams, num_results=3)
    items[num_beams] = np.asarray(search(params, catalogue, index, histories).items)
  missed = [len(set(true) - set(found)) for found, true in zip(items[2].tolist(), items[7])]
  assert 0 < sum(missed) < 15
  found = exact_search.compare(model, params, catalogue, index, histories, 2, 3)
  assert found["missed_items_per_user"] == pytest.approx(np.mean(missed))
  assert found["share_with_other_items"] == pytest.approx(np.mean(np.array(missed) > 0))
  differs = items[2][:, 0] != items[7][:, 0]
  assert found["share_with_another_first_item"] == pytest.approx(np.mean(differs))
  assert found["num_users"] == 5 and found["share_proven_by_the_beam"] <= 1 - np.mean(differs)
  assert 2 <= found["median_beams_of_the_proof"] <= found["max_beams_of_the_proof"] <= 7


@pytest.mark.slow
def test_exact_search_reads_a_trained_run(load, tmp_path):
  exact_search, out, trained = load("exact_search"), tmp_path / "x.json", smoke_run.finished()
  argv = [f"--workdir={trained.workdir}", f"--out={out}", "--quick"]
  assert load("lib.harness").main(exact_search.run, "doc", exact_search.add_options, argv) == 0
  details = json.loads(out.read_text())["details"]
  assert details["num_users"] == 16
  assert details["num_beams"] == trained.config.generator.num_beams
  assert 0 <= details["share_with_other_items"] <= 1
  with pytest.raises(UserError, match="--workdir"):
    exact_search.load_config(tmp_path)


def test_padded_and_grouped_epochs_hold_the_same_examples(load, tmp_path):
  end_to_end = load("end_to_end")
  config = load("lib.workload").load_config("atomic", "smoke")
  dataset = end_to_end.synthetic.load(num_users=40, num_items=60)
  epochs = [
    end_to_end.make_batches(config, dataset, config.generator, "prefixes", grouped).epoch(0)
    for grouped in (True, False)
  ]
  examples = [
    sorted(
      (*(item for item in history if item >= 0), target)
      for group in groups
      for history, (target,) in zip(
        group["history"].reshape(-1, group["history"].shape[-1]).tolist(),
        group["targets"].reshape(-1, 1).tolist(),
      )
      if target >= 0
    )
    for groups in epochs
  ]
  assert examples[0] == examples[1] != []
  grouped, padded = map(end_to_end.padded_items, epochs)
  assert grouped["real"] == padded["real"] == sum(len(example) - 1 for example in examples[0])
  assert grouped["computed"] < padded["computed"]
  for names in ((), ("a.inter", "b.inter")):
    for name in names:
      (tmp_path / name).touch()
    with pytest.raises(UserError, match=f"not {len(names)}"):
      end_to_end.load_folder(tmp_path)


def test_a_case_of_the_memory_benchmark_has_its_own_process(load, tmp_path):
  memory = load("memory")
  assert load("lib.workload").in_own_process(os.getpid) != os.getpid()
  case = dict(stage="index_build", num_items=97, batch_size=0)
  held = load("lib.workload").in_own_process(
    memory.measure, **case, cache=str(tmp_path), quick=True
  )
  assert 0 < held["data_mb"] <= held["peak_mb"]


def test_the_second_start_finds_what_the_first_compiled(load, tmp_path, monkeypatch):
  startup = load("startup")
  monkeypatch.setenv("PYTHONPATH", str(tmp_path))
  (tmp_path / "tiny.py").write_text(
    "import sys, jax, jax.numpy as jnp\n"
    "assert sys.argv[1:] == ['--scale=2']\n"
    "print(jax.jit(lambda x: 2.0 * jnp.sort(x) + 1.0)(jnp.arange(5.0)))\n"
  )
  first, second = (startup.start("tiny", ["--scale=2"], tmp_path / "cache") for _ in range(2))
  assert any((tmp_path / "cache").iterdir())  # Not another cache.
  assert first["num_misses"] == second["num_hits"] > 0
  assert first["num_hits"] == second["num_misses"] == 0
  assert 0 < second["compile_s"] < first["compile_s"] < first["seconds"]
  with pytest.raises(UserError, match="AssertionError"):
    startup.start("tiny", [], tmp_path / "cache")


def test_the_first_line_of_each_stage_is_its_first_steps(load, tmp_path):
  lines = [("tokenizer", 1, 10.5), ("tokenizer", 2, 11.0), ("generator", 1, 30.25)]
  path = tmp_path / "metrics.jsonl"
  path.write_text(
    "".join(json.dumps(dict(stage=s, step=n, time=t, metrics={})) + "\n" for s, n, t in lines)
  )
  assert load("startup").first_lines(path) == dict(tokenizer=10.5, generator=30.25)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["end_to_end", "memory", "startup"])
def test_slow_benchmarks_run(load, name, tmp_path):
  benchmark, out = load(name), tmp_path / "out.json"
  add_options = getattr(benchmark, "add_options", lambda parser: None)
  rounds = [] if name == "memory" else ["--rounds=1"]
  argv = [f"--out={out}", "--quick", *rounds]
  assert load("lib.harness").main(benchmark.run, "doc", add_options, argv) == 0
  assert all(value > 0 for value in json.loads(out.read_text())["ratios"].values())

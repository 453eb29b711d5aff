"""Runs the stages of a config, in order, in one workdir; the same command goes on or says done.

python -m bbqrec_jax.main --config=configs/quickstart.py --workdir=runs/quickstart
"""

import contextlib
import functools
import logging
import os
import pathlib
import re
import signal
import sys

import jax
import jax.numpy as jnp
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_dict, config_flags

from bbqrec_jax import (
  compile_cache,
  fields,
  metrics,
  partition,
  plugins,
  recommend,
  report,
  run_record,
  signals,
  stage_cache,
  validate,
)
from bbqrec_jax.data import semantic_ids, statistics
from bbqrec_jax.data.dataset import Dataset, sequence_fingerprint
from bbqrec_jax.errors import Stopped, UserError
from bbqrec_jax.evaluators import ranking
from bbqrec_jax.metric_writer import MetricWriter
from bbqrec_jax.models import popularity

_NOTHING_LOST = "Stopped: nothing was lost. The same command goes on."

RESULTS_FILE = "results.json"
# What the records of the stages must hold, beside what they all do.
_OF_STAGE = dict(
  tokenizer=("codebook",),
  rqvae=("codebook",),
  generator=("valid", "test"),
  ranker=("valid", "test"),
  counts=("valid", "test"),
)


def load_dataset(config) -> Dataset:
  """The dataset of a config's `data` section: bbqrec_jax/data/<source>.py reads it."""
  arguments = config.data.to_dict()
  return plugins.load("data", arguments.pop("source"), "data.source", "load").load(**arguments)


def run(
  config: config_dict.FrozenConfigDict, workdir: pathlib.Path, cache_folder: str = ""
) -> dict:
  """Runs what is not done yet, and returns the content of results.json.

  Args:
    cache_folder: where stages are kept for other runs, and taken from; "": nowhere.

  Raises:
    UserError: what is wrong with the config, the data or the workdir. Before anything is computed,
      where that can be seen then; the workdir is not made for a run that cannot start.
  """
  validate.check_config(config.to_dict())
  made_by = run_record.provenance()  # Of the sources as they are now; they may change meanwhile.
  print(f"Devices: {', '.join(str(device) for device in jax.devices())}", flush=True)
  partition.Partition(**config.parallel)  # Says early what does not fit.
  dataset = load_dataset(config)
  print(statistics.table1(dataset), flush=True)
  validate.check_data(config, dataset)
  if "generator" in config.stages and not set(fields.WRITERS_OF_IDS) & set(config.stages):
    semantic_ids.load(workdir)  # Somebody else's, then; or there is no run.
  run_record.claim_workdir(workdir, config.to_dict(), dataset.fingerprint)
  with contextlib.ExitStack() as stack:
    cache = None
    if partition.is_main() and not (workdir / RESULTS_FILE).exists():
      stack.enter_context(run_record.held(workdir))
      run_record.resume(workdir)
      if cache_folder:
        cache = stage_cache.StageCache(cache_folder, config.to_dict(), dataset.fingerprint)
        # Of many processes none waits: the others would hang in the barrier meanwhile.
        stack.enter_context(cache).restore(workdir, waits=partition.is_alone())
    partition.barrier("workdir")  # What process 0 finds done below, the others find too.
    return _run_stages(config, dataset, workdir, cache, made_by)


def _run_stages(
  config,
  dataset: Dataset,
  workdir: pathlib.Path,
  cache: stage_cache.StageCache | None,
  made_by: dict,
) -> dict:
  results_path = workdir / RESULTS_FILE
  if results_path.exists():
    results = run_record.read_json(results_path, ("stages", "provenance"))
    _check_whole(results, results_path)
    print(f"All stages are done; {results_path} stands as it is.", flush=True)
    return results
  records = {}
  (workdir / "stages").mkdir(exist_ok=True)
  with MetricWriter(workdir) as writer:
    for stage in config.stages:
      path = workdir / "stages" / f"{stage}.json"
      if path.exists():
        print(f"{stage}: done before.", flush=True)
      else:
        trainer = plugins.load("trainers", stage, "stages", "train")
        record = trainer.train(config, dataset, workdir, writer)
        if partition.is_main():
          run_record.write_json(path, record)
        if cache:
          writer.close()  # Events of this stage are all in their file.
          cache.keep(workdir, stage)
        partition.barrier(stage)
      needed = ("seconds", "peak_memory_mb", *_OF_STAGE.get(stage, ()))
      records[stage] = run_record.read_json(path, needed)

  last = records[config.stages[-1]]
  results = {split: last[split] for split in ranking.SPLITS if split in last}
  for record in records.values():
    if "codebook" in record:
      results["codebook"] = record.pop("codebook")
  results |= dict(
    popularity=popularity_baseline(dataset),
    seconds={stage: record["seconds"] for stage, record in records.items()},
    peak_memory_mb={stage: record["peak_memory_mb"] for stage, record in records.items()},
    stages=records,
    data=dict(
      name=dataset.name,
      fingerprint=dataset.fingerprint,
      sequences=sequence_fingerprint(dataset),
      table1=statistics.statistics(dataset)._asdict(),
    ),
    provenance=made_by | dict(date=run_record.now()),
  )
  _check_whole(results, workdir / "stages")
  if partition.is_main():
    run_record.write_json(results_path, results)
  return results


def _check_whole(results: dict, path: pathlib.Path) -> None:
  """Raises UserError if the results, read from the path, cannot be shown."""
  try:
    report.format_results(results)
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise UserError(
      f"{path} is damaged ({error!r}); remove it, and the same command makes it again."
    ) from error


def popularity_baseline(dataset: Dataset) -> dict[str, dict[str, float]]:
  """Recall and NDCG of ranking every item by its training count: split -> metrics."""
  places = jnp.asarray(popularity.ranks(dataset))

  @jax.vmap
  def rank_fn(history, seen, targets):
    del history
    ranks = places[targets]
    is_before = places[jnp.maximum(seen, 0)] < ranks[:, None]
    return ranking.Ranks(ranks, metrics.without_seen(ranks, is_before, targets, seen))

  make_evaluator = functools.partial(ranking.Evaluator, dataset, max_history=1, batch_size=4096)
  results, _ = ranking.evaluate_splits(make_evaluator, rank_fn)
  return {split: results[split] for split in ranking.SPLITS}


def main(argv: list[str], flag_values: flags.FlagValues) -> int:
  """The command; returns its exit status."""
  absl_logging.get_absl_handler().setFormatter(None)  # What the data have to say, without prefix.
  for chatty in ("jax", "tensorboardX"):
    logging.getLogger(chatty).setLevel(logging.WARNING)
  compile_cache.enable()
  workdir = pathlib.Path(os.path.expanduser(flag_values.workdir))
  config = config_dict.FrozenConfigDict(flag_values.config)
  try:
    if not flag_values.workdir:  # An unset variable of a shell; it would be the current folder.
      raise UserError("--workdir is empty; give a folder.")
    if argv[1:]:
      raise UserError(f"{argv[1]!r} is no flag; flags begin with --, as --config.seed=3 does.")
    if flag_values.distributed or flag_values.coordinator:
      partition.initialize(
        coordinator=flag_values.coordinator,
        num_processes=flag_values.num_processes,
        process_id=flag_values.process_id,
      )
    elif flag_values.num_processes is not None or flag_values.process_id is not None:
      raise UserError("--num_processes and --process_id need --coordinator, or --distributed.")
    with contextlib.ExitStack() as stack:
      stack.enter_context(_ended_by_signals())
      if not partition.is_main():  # One process reports; what goes wrong all tell.
        quiet = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
        stack.enter_context(contextlib.redirect_stdout(quiet))
      results = run(config, workdir, flag_values.stage_cache)
      print(report.format_results(results))
      # Reading checkpoints waits for every process.
      if "generator" in config.stages and partition.is_alone():
        recommender = recommend.Recommender.load(workdir)
        print(report.format_examples(recommender, load_dataset(config), config.max_history))
  except UserError as error:
    print(f"Error: {error}", file=sys.stderr)
    return 1
  except OSError as error:  # A full disk, a mount that is gone: readers tell theirs themselves.
    where = f"{error.filename}: " if error.filename else ""
    print(
      f"Error: {where}{error.strerror or error}. What is finished is kept; the same command goes "
      "on.",
      file=sys.stderr,
    )
    return 1
  except jax.errors.JaxRuntimeError as error:
    if partition.is_alone():
      raise
    print(
      f"Error: the connection to another process is lost ({str(error).splitlines()[0]}). Start all "
      "of them again; the same command goes on from the last checkpoint.",
      file=sys.stderr,
      flush=True,
    )
    os._exit(1)  # An orderly end would wait for the process that is gone.
  except Stopped as stopped:
    print(f"\nStopped: {stopped}. The same command goes on.", file=sys.stderr)
    return stopped.status
  except KeyboardInterrupt:
    print(f"\n{_NOTHING_LOST}", file=sys.stderr)
    return Stopped("", signal.SIGINT).status
  return 0


@contextlib.contextmanager
def _ended_by_signals():
  """Outside of training, which saves first, nothing has to be saved: signals end it at once."""
  previous = signals.end_at_once(_NOTHING_LOST)
  try:
    yield
  finally:
    for signum, handler in previous.items():
      signal.signal(signum, handler)


def define_flags(flag_values: flags.FlagValues) -> None:
  """--config and --workdir; and which of many processes this is."""
  config_flags.DEFINE_config_file(
    "config", None, "A file of configs/, with :arguments.", flag_values=flag_values
  )
  flags.DEFINE_string(
    "workdir", None, "Where everything of this run is kept.", flag_values=flag_values
  )
  flags.DEFINE_string(
    "stage_cache",
    "",
    "Folder of stages that runs have done: one that begins as another did takes them from there.",
    flag_values=flag_values,
  )
  flags.DEFINE_bool(
    "distributed",
    False,
    "One of many processes; which one is asked of SLURM, the TPU pod or Kubernetes.",
    flag_values=flag_values,
  )
  flags.DEFINE_string(
    "coordinator",
    None,
    "HOST:PORT of process 0, for one of many processes.",
    flag_values=flag_values,
  )
  flags.DEFINE_integer(
    "num_processes", None, "How many processes there are.", flag_values=flag_values
  )
  flags.DEFINE_integer("process_id", None, "Which of them this one is.", flag_values=flag_values)
  flags.mark_flags_as_required(["config", "workdir"], flag_values)


def parse_flags(argv: list[str], flag_values: flags.FlagValues = flags.FLAGS) -> list[str]:
  """absl's flags from the command line; what is wrong with them in one sentence, then exit 1."""
  try:
    rest = flag_values(argv)
    flag_values.config.is_locked  # noqa: B018  A file that cannot be read raises only when used.
    return rest
  except SyntaxError as error:
    print(f"Error: {error.filename}:{error.lineno}: {error.msg}.", file=sys.stderr)
    sys.exit(1)
  except (
    flags.Error, AttributeError, ImportError, LookupError, OSError, TypeError, ValueError
  ) as error:  # fmt: skip
    print(f"Error: {_flag_error(error)}", file=sys.stderr)
    sys.exit(1)


def _flag_error(error: Exception) -> str:
  """What the user has to know, out of messages that wrap each other and whole tracebacks."""
  text = str(error.args[0])
  if missing := re.search(r"Flag (--\w+) must have a value other than None", text):
    return f"{missing[1]} is missing; see --help."
  # Of an override, --config.x.y=value: the two ways in which a ConfigDict says it has no y.
  near = re.search(r'Did you mean "(.+?)" instead of "(.+?)"', text)
  if near:
    return f"--config has no key {near[2]!r}; did you mean {near[1]!r}?"
  if key := re.fullmatch(r"\W*(\w+)\W*", text):
    return f"--config has no key {key[1]!r}."
  return text.strip().splitlines()[-1].strip().removeprefix("ValueError: ")


if __name__ == "__main__":
  # Configs import each other from the repository's root, wherever the command is run.
  sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
  define_flags(flags.FLAGS)
  app.run(functools.partial(main, flag_values=flags.FLAGS), flags_parser=parse_flags)

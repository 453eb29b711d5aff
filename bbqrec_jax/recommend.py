"""Recommendations from a trained workdir: a Python API and a command.

python -m bbqrec_jax.recommend --workdir=runs/beauty --history=B004756YJA,B004ZT0SSG --k=10
python -m bbqrec_jax.recommend --workdir=runs/beauty --input=histories.csv --output=recs.csv
"""

import argparse
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

from bbqrec_jax import signals

if __name__ == "__main__":  # In front of the other imports, which take a while.
  signals.end_at_once("Stopped.")

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from ml_collections import config_dict

from bbqrec_jax import checkpoint, compile_cache, inputs, paths, run_record
from bbqrec_jax.data import semantic_ids, table
from bbqrec_jax.decoding import exact
from bbqrec_jax.decoding import generate as generate_lib
from bbqrec_jax.decoding import trie as trie_lib
from bbqrec_jax.errors import UserError, exit_status
from bbqrec_jax.new_items import FrozenTokenizer
from bbqrec_jax.rules import Whole
from bbqrec_jax.trainers import generator as generator_trainer

_BATCH_SIZES = (1, 8, 64)  # Histories are padded up to one of these: few programs to compile.
SEARCHES = ("beam", "exact")


class Recommended(NamedTuple):
  """What one history gets, best first."""

  item_ids: list[str]
  titles: list[str]  # "" where unknown.
  scores: list[float]  # Log-probability of the item's semantic ID, nats.
  unknown: list[str]  # Ids of the history that the catalogue does not have, so not used.


class Recommender:
  """Histories of original item ids in, original item ids out.

  recommender = Recommender.load("runs/beauty")
  recommender.recommend([["B004756YJA", "B004ZT0SSG"]], k=10)[0].item_ids
  """

  def __init__(self, config, ids: semantic_ids.SemanticIds, params, workdir: pathlib.Path):
    """Use Recommender.load()."""
    self._config, self._ids, self._params, self._workdir = config, ids, params, workdir
    self._model = generator_trainer.make_model(config.generator, ids)
    self._trained, self._tokenizer = ids, None  # Stage one is read when it is first needed.
    self._set_catalogue(ids)

  @classmethod
  def load(cls, workdir: str | os.PathLike, num_beams: int = 0) -> "Recommender":
    """Loads the selected parameters of a finished run; of one that goes on, with a warning.

    Args:
      num_beams: W of the beam search; 0 for the run's own.

    Raises UserError if the workdir does not hold one, or a damaged one.
    """
    workdir = pathlib.Path(os.path.expanduser(workdir))
    if not os.path.exists(workdir / "checkpoints" / generator_trainer.STAGE):
      _check_has_generator(workdir)
    for path in (workdir / "checkpoints" / generator_trainer.STAGE, workdir / "config.json"):
      if not os.path.exists(path):  # Unlike pathlib's, False also for what can be no name.
        if os.path.exists(workdir / "results.json"):
          raise UserError(
            f"{path} has been removed from a finished run, which cannot recommend without it; put "
            "it back, or train again in another --workdir."
          )
        raise UserError(f"{path} does not exist; give the --workdir of a finished run.")
    stored = run_record.read_json(path, ("config",))["config"]
    ids = semantic_ids.load(workdir)
    try:
      if num_beams:
        stored["generator"]["num_beams"] = num_beams
      config = config_dict.FrozenConfigDict(stored)
      if not Whole(1).allows(config.generator.num_beams):
        raise ValueError(f"generator.num_beams={config.generator.num_beams!r}")
      model = generator_trainer.make_model(config.generator, ids)
      template = jax.eval_shape(
        lambda codes, vectors: generator_trainer.init_params(
          model, jax.random.key(0), generate_lib.Catalogue(codes, vectors), config.max_history
        ),
        ids.codes,
        ids.vectors,
      )
    except UserError:
      raise
    except Exception as error:  # Flax and JAX raise kinds of their own.
      reason = " ".join(f"{type(error).__name__}: {error}".split())
      raise UserError(
        f"{path} is damaged or another run's, no generator can be made of it ({reason}); give the "
        "--workdir of a finished run."
      ) from error
    params = checkpoint.best_params(workdir, generator_trainer.STAGE, template)
    if not os.path.exists(workdir / "results.json"):
      logging.warning("%s: the run has not ended; this is its best epoch so far.", workdir)
    return cls(config, ids, params, workdir)

  @property
  def item_ids(self) -> np.ndarray:
    """[I] str, everything that can be recommended."""
    return self._ids.item_ids

  @property
  def max_history(self) -> int:
    """T: of a longer history, the latest items are used."""
    return self._config.max_history

  @property
  def codes(self) -> np.ndarray:
    """[I, L, M] int32, the semantic IDs of item_ids."""
    return self._ids.codes

  def recommend(
    self,
    histories: Sequence[Sequence[str]],
    k: int = 10,
    *,
    filter_seen: bool = False,
    search: str = "beam",
  ) -> list[Recommended]:
    """The k most probable next items of each history.

    Args:
      histories: original item ids, oldest first; the last max_history known ones are used.
      k: how many items to return; fewer where the beams do not reach so many.
      filter_seen: whether items of the history are left out.
      search: "beam", or "exact" for the true best items of the whole catalogue, with proof: users
        for whom the beams do not prove it are searched again with more of them.

    Returns:
      One Recommended for each history. A history without any known item gets no items.

    Raises:
      UserError: k is no whole number from 1, the histories are no lists of strings, or the search
        is unknown.
    """
    inputs.check_whole("k", k, 1)
    histories = inputs.histories(histories)
    if search not in SEARCHES:
      raise UserError(f"search must be one of {', '.join(SEARCHES)}, got {search!r}.")
    max_history = self._config.max_history
    known = [[self._index[i] for i in history if i in self._index] for history in histories]
    rows = [n for n, items in enumerate(known) if items]
    array = np.full((len(histories), max_history), -1, np.int32)
    for n in rows:
      latest = known[n][-max_history:]
      array[n, : len(latest)] = latest
    num_seen = max((len(set(items)) for items in known), default=0) if filter_seen else 0
    items, scores = self._decode(array[rows], self._num_results(k, num_seen), search)
    results = [
      Recommended([], [], [], [i for i in history if i not in self._index]) for history in histories
    ]
    for n, row_items, row_scores in zip(rows, items, scores, strict=True):
      drop = np.isin(row_items, known[n]) if filter_seen else np.zeros(row_items.shape, bool)
      keep = np.flatnonzero((row_items >= 0) & ~drop)[:k]
      chosen = row_items[keep]
      results[n].item_ids.extend(self._ids.item_ids[chosen].tolist())
      results[n].titles.extend(self._ids.titles[chosen].tolist())
      results[n].scores.extend(row_scores[keep].tolist())
    return results

  def add_items(
    self,
    item_ids: Sequence[str],
    *,
    text: np.ndarray | None = None,
    image: np.ndarray | None = None,
    titles: Sequence[str] | None = None,
  ) -> np.ndarray:
    """Gives unseen items semantic IDs with the frozen tokenizer; they can be recommended at once.

    Args:
      item_ids: original ids that the catalogue does not have.
      text, image: [n, F] feature vectors as those of the training data; None, or a row of zeros,
        where missing.
      titles: what a person recognises the items by.

    Returns:
      [n, L, M] int32 semantic IDs.

    Raises:
      UserError: an id is none or known already, features are missing or of a wrong shape, or there
        is no running number left for the items of one semantic ID.
    """
    item_ids, titles = inputs.new_items(item_ids, titles, self._index)
    if not item_ids and not any(np.size(x) for x in (text, image) if x is not None):
      return np.zeros((0, *self._ids.codes.shape[1:]), np.int32)  # What is compiled stays so.
    if self._tokenizer is None:
      self._tokenizer = FrozenTokenizer.load(self._workdir, self._config, self._trained)
    codes, vectors = self._tokenizer.encode(len(item_ids), dict(text=text, image=image))
    ids = self._ids
    if ids.has_numbers:
      numbers = semantic_ids.running_numbers(codes, ids.codes[:, :-1])
      if len(numbers) and numbers.max() >= self._model.codebook_size:
        raise UserError(
          f"{numbers.max() + 1} items would share one semantic ID, and this run's generator tells "
          f"{self._model.codebook_size} apart; train again with all of them."
        )
      codes = np.concatenate([codes, numbers[:, None, None]], axis=1)
    self._set_catalogue(
      semantic_ids.SemanticIds(
        codes=np.concatenate([ids.codes, codes]),
        vectors=np.concatenate([ids.vectors, vectors]),
        item_ids=np.concatenate([ids.item_ids, np.array(item_ids, str)]),
        titles=np.concatenate([ids.titles, np.array(titles, str)]),
        popularity=np.concatenate([ids.popularity, np.zeros(len(item_ids), np.int64)]),
        signals=ids.signals,
        codebooks=ids.codebooks,
      )
    )
    return codes

  def _set_catalogue(self, ids: semantic_ids.SemanticIds) -> None:
    self._ids = ids
    self._programs = {}  # (batch size or "exact", number of results) -> decoding of this catalogue.
    self._index = {item: n for n, item in enumerate(ids.item_ids.tolist())}
    self._catalogue = generate_lib.Catalogue(jnp.asarray(ids.codes), jnp.asarray(ids.vectors))
    self._trie = trie_lib.build(ids.codes, ids.codebook_size, ids.popularity)

  def compile(self, k: int = 10, *, max_seen: int = 0) -> None:
    """Compiles, or reads from disk, the programs that recommend(histories, k) needs.

    There is one for each of a few batch sizes. Otherwise each is compiled when it is first needed:
    a server calls this before its first request, and after add_items().

    Args:
      k: as recommend() has it.
      max_seen: for requests with filter_seen, the most different items that a history holds; 0 for
        requests without.

    Raises UserError if k is no whole number from 1, or max_seen none from 0.
    """
    inputs.check_whole("k", k, 1)
    inputs.check_whole("max_seen", max_seen, 0)
    most = min(max_seen, len(self._ids.item_ids))
    num_seen = range(1, most + 1, self._config.max_history) or (0,)
    for num_results in sorted({self._num_results(k, seen) for seen in num_seen}):
      for batch_size in _BATCH_SIZES:
        self._program(batch_size, num_results)

  def _num_results(self, k: int, num_seen: int) -> int:
    """How many items to search for, so that k are left without so many that the user has seen.

    Those may hold all the first places. They count in multiples of max_history, so that few
    programs are compiled.
    """
    max_history = self._config.max_history
    num_seen = -(-num_seen // max_history) * max_history
    return min(k + num_seen, len(self._ids.item_ids))  # There are no more to find.

  def _program(self, batch_size: int, num_results: int):
    """The compiled decoding of so many histories at a time."""
    if (batch_size, num_results) not in self._programs:
      generate = generate_lib.make_generate(self._model, **self._widths(num_results))
      history = jax.ShapeDtypeStruct((batch_size, self._config.max_history), jnp.int32)
      lowered = generate.lower(self._params, self._catalogue, self._trie, history)
      self._programs[batch_size, num_results] = lowered.compile()
    return self._programs[batch_size, num_results]

  def _widths(self, num_results: int) -> dict[str, int]:
    num_beams = max(self._config.generator.num_beams, num_results)
    return dict(num_beams=num_beams, num_results=num_results)

  def _exact_search(self, num_results: int):
    if ("exact", num_results) not in self._programs:
      search = exact.make_exact(self._model, **self._widths(num_results))
      self._programs["exact", num_results] = search
    return self._programs["exact", num_results]

  def _decode(
    self, histories: np.ndarray, num_results: int, search: str
  ) -> tuple[np.ndarray, np.ndarray]:
    """Items and scores, [n, num_results] each, of histories [n, T]."""
    items = np.full((len(histories), num_results), -1, np.int32)
    scores = np.full((len(histories), num_results), -np.inf, np.float32)
    for start in range(0, len(histories), _BATCH_SIZES[-1]):
      chunk = histories[start : start + _BATCH_SIZES[-1]]
      size = next(size for size in _BATCH_SIZES if size >= len(chunk))
      padded = np.pad(chunk, ((0, size - len(chunk)), (0, 0)), mode="edge")
      if search == "exact":
        generate = self._exact_search(num_results)
      else:
        generate = self._program(size, num_results)
      beams = generate(self._params, self._catalogue, self._trie, padded)
      rows = slice(start, start + len(chunk))
      items[rows] = np.asarray(beams.items)[: len(chunk)]
      scores[rows] = np.asarray(beams.scores)[: len(chunk)]
    return items, scores


def _check_has_generator(workdir: pathlib.Path) -> None:
  """Raises UserError if the workdir is of a run that was never to have a generator."""
  path = workdir / "config.json"
  if not os.path.exists(path):
    return
  stored = run_record.read_json(path, ("config",))["config"]
  stages = stored.get("stages") if isinstance(stored, dict) else None
  if isinstance(stages, list) and generator_trainer.STAGE not in stages:
    raise UserError(
      f"{workdir} is a run of {', '.join(map(str, stages))}; recommendations come from a run with "
      "a generator."
    )


def _recommend_table(recommender: Recommender, args) -> None:
  """Reads histories from a table, and writes user_id, rank, item_id, score and title."""
  log = table.read_interactions(os.fspath(args.input))
  order = np.lexsort((log.times, log.users))  # Stable: ties keep the order of the file.
  bounds = np.cumsum(np.bincount(log.users))[:-1]
  histories = [[log.item_ids[i] for i in items] for items in np.split(log.items[order], bounds)]
  results = recommender.recommend(
    histories, args.k, filter_seen=args.filter_seen, search=args.search
  )
  unknown = {item for result in results for item in result.unknown}
  empty = [user for user, result in zip(log.user_ids, results) if not result.item_ids]
  if len(empty) == len(log.user_ids):  # Also of a table without rows.
    raise UserError(f"{args.input}: no history holds an item of the catalogue.")
  _report_unknown(sorted(unknown))
  if empty:
    print(f"{len(empty)} users without any known item get nothing: {_some(empty)}", file=sys.stderr)
  columns = dict(user_id=[], rank=[], item_id=[], score=[], title=[])
  for user, result in zip(log.user_ids, results):
    columns["user_id"] += [user] * len(result.item_ids)
    columns["rank"] += range(1, len(result.item_ids) + 1)
    columns["item_id"] += result.item_ids
    columns["score"] += result.scores
    columns["title"] += result.titles
  table.write(os.fspath(args.output), columns)
  print(
    f"{len(columns['rank'])} recommendations for {len(results) - len(empty)} users are in "
    f"{args.output}."
  )


def _report_unknown(unknown: Sequence[str]) -> None:
  if unknown:
    print(f"{len(unknown)} unknown items were not used: {_some(unknown)}", file=sys.stderr)


def _some(names: Sequence[str]) -> str:
  return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")


def main(argv: Sequence[str] | None = None) -> int:
  """The command; returns its exit status."""
  parser = argparse.ArgumentParser(
    prog="python -m bbqrec_jax.recommend",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--workdir", type=paths.folder, required=True, help="of a finished run")
  source = parser.add_mutually_exclusive_group(required=True)
  source.add_argument("--history", help="item ids, oldest first, with commas between them")
  source.add_argument(
    "--input", type=paths.file, help="table with user_id, item_id, timestamp (.csv, .parquet)"
  )
  parser.add_argument(
    "--output", type=paths.file, help="where --input's recommendations go (.csv, .parquet)"
  )
  parser.add_argument("--k", type=int, default=10, help="how many items (default: 10)")
  parser.add_argument("--filter_seen", action="store_true", help="leave out items of the history")
  parser.add_argument(
    "--search", choices=SEARCHES, default="beam", help="exact: proven, over the whole catalogue"
  )
  args = parser.parse_args(argv)
  if args.input and not args.output:
    parser.error("--input needs --output=FILE, a .csv or .parquet file")
  if args.output and not args.input:
    parser.error("--output is for --input; what --history asks for is printed")
  return exit_status(lambda: _run(args))


def _run(args: argparse.Namespace) -> None:
  compile_cache.enable()
  if args.output:
    table.check_writable(os.fspath(args.output))
    paths.check_apart("--input", args.input, "--output", args.output)
  recommender = Recommender.load(args.workdir)
  if args.input:
    _recommend_table(recommender, args)
    return
  history = [item.strip() for item in args.history.split(",") if item.strip()]
  result = recommender.recommend(
    [history], args.k, filter_seen=args.filter_seen, search=args.search
  )[0]
  if not result.item_ids:
    raise UserError("The history holds no item of the catalogue; give at least one known id.")
  _report_unknown(result.unknown)
  for rank, (item, score, title) in enumerate(
    zip(result.item_ids, result.scores, result.titles), start=1
  ):
    print(f"{rank:>3}  {item}  {score:8.3f}  {title}")


if __name__ == "__main__":
  sys.exit(main())

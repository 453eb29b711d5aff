"""SASRec, GRU4Rec and BERT4Rec beside RecBole 1.2.1's, on one atomic file: metrics and speed.

Both sides read the same .inter file with the same filter, hold out the last two items of each user,
see 20 items of history, rank all items with those of the history among them, and select by
validation NDCG@10 with a patience of 10 epochs. Before anything is trained, digests of each split's
targets with the 20 items before them are compared; they differ where a user has interactions of
equal times, since RecBole keeps times as float32 and no order among equal ones. Sizes, dropout,
learning rate and the number of targets in a step are the same. RecBole makes an example of every
prefix where ours learns from all positions of a sequence at once, which is what most of an epoch's
seconds come from; of users with more than 21 training items ours cuts windows (data/batches.py), so
that some targets have fewer items before them than RecBole's; and of BERT4Rec an epoch is not the
same, since RecBole masks a fifth of every prefix, ours each sequence once.

`*_recall10` and `*_ndcg10` are ours / RecBole's on the test split, of one seed. `*_epoch` is
RecBole's seconds of an epoch / ours, in rounds that alternate, each a part of an epoch on the same
number of threads. Finished trainings are kept in --workdir and not repeated.

RecBole has an environment of its own, which needs no JAX:

  python3.11 -m venv ENV
  ENV/bin/pip install torch==2.13.0+cpu --index-url https://download.pytorch.org/whl/cpu
  ENV/bin/pip install recbole==1.2.1 numpy==1.26.4 pandas==2.2.3 scipy==1.13.1 scikit-learn==1.5.2
  python benchmarks/recbole_parity.py --recbole_python=ENV/bin/python --root=DIR --name=beauty \\
    --workdir=runs/parity --out=results/benchmarks/recbole_parity.json
"""

import argparse
import contextlib
import hashlib
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
from lib import harness, workload
from ml_collections import config_dict

from bbqrec_jax import main as main_lib
from bbqrec_jax import run_record
from bbqrec_jax.data import synthetic
from bbqrec_jax.data.dataset import HELD_OUT, Dataset
from bbqrec_jax.errors import UserError
from bbqrec_jax.tables import runs, systems

DRIVER = pathlib.Path(__file__).resolve().parent / "lib" / "recbole_driver.py"
MAX_HISTORY, MIN_INTERACTIONS, PATIENCE = 20, 5, 10
TARGETS_OF_A_STEP = 2048  # RecBole's default.
METRICS = ("recall@5", "recall@10", "ndcg@5", "ndcg@10")

_TRANSFORMER = dict(n_layers=2, n_heads=2, inner_size=256)
# What both sides have by other names: (RecBole's settings, ours).
MODELS = dict(
  sasrec=(
    dict(model="SASRec", hidden_dropout_prob=0.5, attn_dropout_prob=0.5, **_TRANSFORMER),
    dict(num_layers=2, num_heads=2, mlp_dim=256, dropout_rate=0.5),
  ),
  gru4rec=(
    dict(model="GRU4Rec", num_layers=1, dropout_prob=0.3),
    dict(num_layers=1, dropout_rate=0.3),
  ),
  bert4rec=(
    dict(model="BERT4Rec", hidden_dropout_prob=0.2, attn_dropout_prob=0.2, **_TRANSFORMER),
    dict(num_layers=2, num_heads=2, mlp_dim=256, dropout_rate=0.2),
  ),
)


def add_options(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--recbole_python", required=True, help="of RecBole's environment")
  parser.add_argument(
    "--workdir", type=pathlib.Path, required=True, help="where trainings are kept"
  )
  parser.add_argument("--root", type=pathlib.Path, help="folder with NAME/NAME.inter")
  parser.add_argument("--name", default="beauty", help="NAME (default: beauty)")
  parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
  parser.add_argument("--epochs", type=int, default=200, help="at most (default: 200)")
  parser.add_argument(
    "--share", type=float, default=0.1, help="of an epoch, in each timed round (default: 0.1)"
  )
  harness.add_rounds(parser, default=5)


def run(args: argparse.Namespace) -> dict:
  if not 0 < args.share <= 1:
    raise UserError(f"--share={args.share} must be above 0 and at most 1.")
  args.workdir.mkdir(parents=True, exist_ok=True)
  root, name, epochs = args.root, args.name, args.epochs
  if args.quick:
    root, name, epochs = args.workdir, "embedded", 1
    write_atomic(synthetic.load(num_users=300, num_items=150), root / name, name)
  elif root is None:
    raise UserError("--root is missing; give the folder that holds NAME/NAME.inter.")
  ratios, details = {}, {}
  for model in args.models:
    found = compare(args, model, root, name, epochs, width=16 if args.quick else 128)
    details[model] = found
    ours, theirs = found["ours"], found["recbole"]
    ratios |= {
      f"{model}_recall10": ours["test"]["recall@10"] / theirs["test"]["recall@10"],
      f"{model}_ndcg10": ours["test"]["ndcg@10"] / theirs["test"]["ndcg@10"],
      f"{model}_epoch": found["epoch_ratio"],
    }
    print(format_comparison(model, found), flush=True)
  return dict(ratios=ratios, details=dict(name=name, models=details))


def compare(args, model: str, root: pathlib.Path, name: str, epochs: int, width: int) -> dict:
  """Trains both sides of a model, then times parts of an epoch of both in turns."""
  fields = our_fields(model, epochs, width)
  flags = runs.data_of(name, root)
  workdir = args.workdir / "ours" / model
  command = runs.main_command(
    systems.SYSTEMS[model], flags, systems.as_text(fields), (), 0, workdir
  )
  config = our_config(model, flags, fields)
  dataset = main_lib.load_dataset(config)
  threads = run_record.num_cpus()
  settings = recbole_settings(model, root, name, epochs, width)
  folder = args.workdir / "recbole" / model
  folder.mkdir(parents=True, exist_ok=True)
  with Recbole(args.recbole_python, settings, threads, folder) as recbole:
    check_same(dataset, recbole.about)
    fields["ranker.batch_size"] = batch_size(dataset)
    theirs = kept(folder / "fit.json", settings, lambda: recbole.ask(do="fit"))
  command = (*command, f"--config.ranker.batch_size={fields['ranker.batch_size']}")
  outcome = next(runs.execute([runs.Job(model, (command,), args.workdir / f"{model}.log")], 1))
  if outcome.status:
    raise UserError(f"{model}: {outcome.said} (all of it: {outcome.job.log})")
  results = run_record.read_json(workdir / "results.json", ("valid", "test", "stages"))
  stage = results["stages"]["ranker"]
  ours = dict(
    valid=results["valid"],
    test=results["test"],
    epochs=stage["epochs"],
    seconds_per_epoch=stage["train_seconds"] / stage["epochs"],
    seconds=stage["seconds"],
  )
  config = our_config(model, flags, fields)
  take_steps, num_steps, steps_per_epoch = workload.ranker_steps(config, dataset, args.share)
  with Recbole(args.recbole_python, settings, threads, folder) as recbole:
    about = recbole.about
    count = max(round(args.share * about["steps_per_epoch"]), 1)
    taken = harness.rounds(
      {"ours": take_steps, "recbole": lambda: recbole.ask(do="steps", count=count)}, args.rounds
    )
  epoch = dict(
    ours=np.multiply(taken["ours"], steps_per_epoch / num_steps).tolist(),
    recbole=np.multiply(taken["recbole"], about["steps_per_epoch"] / count).tolist(),
  )
  return dict(
    ours=ours,
    recbole=theirs,
    epoch_ratio=harness.ratio(epoch["recbole"], epoch["ours"]),
    seconds_per_epoch_in_turns=harness.summary(epoch),
    steps_per_epoch=dict(ours=steps_per_epoch, recbole=about["steps_per_epoch"]),
    threads=threads,
    data=dict(fingerprint=dataset.fingerprint, **about),
    our_fields=fields,
    recbole_settings={key: value for key, value in settings.items() if key != "data_path"},
  )


def our_fields(model: str, epochs: int, width: int) -> dict:
  """Overrides of configs/<model>.py, without the batch size."""
  of_model = dict(width=width) | MODELS[model][1]
  if model == "gru4rec":
    of_model["hidden_dim"] = width
  return {
    "max_history": MAX_HISTORY,
    "data.min_interactions": MIN_INTERACTIONS,
    "ranker.num_epochs": epochs,
    "ranker.patience": PATIENCE,
    "ranker.optimizer.learning_rate": 1e-3,
    **{f"ranker.model.{key}": value for key, value in of_model.items()},
  }


def our_config(model: str, flags, fields: dict) -> config_dict.FrozenConfigDict:
  """The config that the command makes of these flags and fields."""
  config = config_dict.ConfigDict(systems.load_config(model, systems.arg_of(flags[0], ())))
  given = dict(flag.split("=", 1) for flag in flags[1:])
  config.update_from_flattened_dict(given | fields)
  return config_dict.FrozenConfigDict(config)


def recbole_settings(model: str, root: pathlib.Path, name: str, epochs: int, width: int) -> dict:
  """RecBole's configuration of the same training."""
  settings = MODELS[model][0] | dict(hidden_size=width)
  if model == "gru4rec":
    settings["embedding_size"] = width
  return settings | dict(
    dataset=name,
    data_path=str(root.resolve()),
    load_col=dict(inter=["user_id", "item_id", "timestamp"]),
    USER_ID_FIELD="user_id",
    ITEM_ID_FIELD="item_id",
    TIME_FIELD="timestamp",
    MAX_ITEM_LIST_LENGTH=MAX_HISTORY,
    user_inter_num_interval=f"[{MIN_INTERACTIONS},inf)",
    item_inter_num_interval=f"[{MIN_INTERACTIONS},inf)",
    eval_args=dict(split={"LS": "valid_and_test"}, order="TO", group_by="user", mode="full"),
    train_neg_sample_args=None,
    loss_type="CE",
    learning_rate=1e-3,
    train_batch_size=TARGETS_OF_A_STEP,
    epochs=epochs,
    stopping_step=PATIENCE,
    metrics=["Recall", "NDCG"],
    topk=[5, 10],
    valid_metric="NDCG@10",
    metric_decimal_place=8,
    show_progress=False,
    use_gpu=False,
    gpu_id="",
    seed=0,
  )


def batch_size(dataset: Dataset) -> int:
  """Sequences of ours that hold as many targets as a step of RecBole's, on average."""
  targets = np.maximum(np.diff(dataset.offsets) - HELD_OUT["train"] - 1, 0)
  pieces = -(-targets // MAX_HISTORY)
  return max(round(TARGETS_OF_A_STEP * pieces.sum() / targets.sum()), 1)


def check_same(dataset: Dataset, about: dict) -> None:
  """Raises UserError if RecBole's data, splits or candidates are not ours."""
  ours = dict(
    users=dataset.num_users,
    items=dataset.num_items,
    interactions=len(dataset.items),
    hides_history=False,
    digests={split: digest(dataset, split) for split in ("train", "valid", "test")},
  )
  for key, value in ours.items():
    if about[key] != value:
      raise UserError(f"The sides do not compare: {key} is {value} here, RecBole's {about[key]}.")


def digest(dataset: Dataset, split: str) -> str:
  """sha256 over the sorted lines `user, history, target` (tab-separated ids) of a split's prefixes.

  Training has an example for each item but a user's first; a history has at most MAX_HISTORY items.
  """
  lines = []
  for user, user_id in enumerate(dataset.user_ids.tolist()):
    items = dataset.item_ids[dataset.sequence(user)].tolist()
    places = {"valid": [len(items) - 2], "test": [len(items) - 1]}.get(
      split, range(1, len(items) - HELD_OUT["train"])
    )
    for n in places:
      lines.append("\t".join([user_id, *items[max(0, n - MAX_HISTORY) : n], items[n]]))
  return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


class Recbole:
  """A process of recbole_driver.py."""

  def __init__(self, python: str, settings: dict, threads: int, folder: pathlib.Path):
    """Starts it; raises UserError if that fails. Its files go into the folder."""
    self._log = folder / "recbole.log"
    environment = os.environ | dict(OMP_NUM_THREADS=str(threads))
    try:
      with open(self._log, "a", encoding="utf-8") as log:
        self._process = subprocess.Popen(
          [os.path.abspath(python), str(DRIVER)], cwd=folder, env=environment, text=True,
          stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
        )  # fmt: skip
    except OSError as error:
      raise UserError(f"--recbole_python={python} cannot be run ({error.strerror}).") from error
    self.about = self._say(dict(settings=settings, threads=threads))

  def __enter__(self):
    return self

  def __exit__(self, *exc_info):
    self._process.kill()
    self._process.wait()
    self._process.stdout.close()
    with contextlib.suppress(BrokenPipeError):  # Of a request that it did not live to read.
      self._process.stdin.close()

  def ask(self, **request) -> dict:
    """The answer to a request; raises UserError where RecBole fails."""
    return self._say(request)

  def _say(self, message: dict) -> dict:
    try:
      self._process.stdin.write(json.dumps(message) + "\n")
      self._process.stdin.flush()
    except BrokenPipeError:
      pass  # It says why in its log.
    line = self._process.stdout.readline()
    if not line:
      self._process.wait()  # So that its log is whole.
      lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
      raise UserError(f"RecBole failed: {lines[-1] if lines else '?'} (all of it: {self._log})")
    return json.loads(line)


def kept(path: pathlib.Path, settings: dict, make) -> dict:
  """What make() gave with these settings: from the file, or made and written there now."""
  settings = run_record.to_jsonable(settings)
  if path.exists():
    stored = run_record.read_json(path, ("settings", "found"))
    if stored["settings"] == settings:
      return stored["found"]
  found = make()
  run_record.write_json(path, dict(settings=settings, found=found))
  return found


def write_atomic(dataset: Dataset, folder: pathlib.Path, name: str) -> None:
  """Writes the interactions as folder/name.inter, and the ids as name.item."""
  folder.mkdir(parents=True, exist_ok=True)
  lines = ["user_id:token\titem_id:token\ttimestamp:float"]
  for user, user_id in enumerate(dataset.user_ids.tolist()):
    for time, item in enumerate(dataset.item_ids[dataset.sequence(user)].tolist()):
      lines.append(f"{user_id}\t{item}\t{time}")
  (folder / f"{name}.inter").write_text("\n".join(lines) + "\n", encoding="utf-8")
  ids = ["item_id:token", *dataset.item_ids.tolist()]
  (folder / f"{name}.item").write_text("\n".join(ids) + "\n", encoding="utf-8")


def format_comparison(model: str, found: dict) -> str:
  """Both sides of a model as text."""
  lines = [
    f"{model:10}" + "".join(f"{name:>11}" for name in METRICS) + f"{'epochs':>9}{'s/epoch':>9}"
  ]
  for side in ("ours", "recbole"):
    row = found[side]
    lines.append(
      f"{side:>10}"
      + "".join(f"{row['test'][name]:11.4f}" for name in METRICS)
      + f"{row['epochs']:9.0f}{found['seconds_per_epoch_in_turns'][side]['median_s']:9.1f}"
    )
  return "\n".join(lines)


if __name__ == "__main__":
  sys.exit(harness.main(run, __doc__, add_options))

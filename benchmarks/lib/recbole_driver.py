"""RecBole's side of recbole_parity.py; run by RecBole's own Python, which need not have JAX.

Reads JSON lines on stdin and answers each with one on stdout; what RecBole says goes to stderr.
  {"settings": {...}, "threads": n}  first: data and model are made -> sizes, digests of the splits
  {"do": "steps", "count": n}        the first n steps of an epoch -> {"seconds": ...}
  {"do": "fit"}                      training to early stopping, then both splits -> metrics
"""

import functools
import hashlib
import itertools
import json
import os
import sys
import time


def main():
  answers = os.fdopen(os.dup(1), "w", buffering=1)
  os.dup2(2, 1)  # RecBole and its libraries print.
  requests = (json.loads(line) for line in sys.stdin)
  side = Side(**next(requests))
  answers.write(json.dumps(side.about) + "\n")
  for request in requests:
    answers.write(json.dumps(getattr(side, request.pop("do"))(**request)) + "\n")


class Side:
  """RecBole's data, model and trainer."""

  def __init__(self, settings, threads):
    import torch

    torch.set_num_threads(threads)
    # RecBole 1.2.1 keeps its config in checkpoints, which PyTorch by now refuses to read.
    torch.load = functools.partial(torch.load, weights_only=False)
    import recbole
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import get_model, get_trainer, init_logger, init_seed

    settings = dict(settings)
    config = Config(
      model=settings.pop("model"), dataset=settings.pop("dataset"), config_dict=settings
    )
    init_seed(config["seed"], config["reproducibility"])
    init_logger(config)
    dataset = create_dataset(config)
    self._loaders = dict(zip(("train", "valid", "test"), data_preparation(config, dataset)))
    init_seed(config["seed"], config["reproducibility"])
    model = get_model(config["model"])(config, self._loaders["train"]._dataset)
    self._trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    self._epochs = []  # Seconds of training.
    self._train_epoch = self._trainer._train_epoch
    self._trainer._train_epoch = self._timed_epoch
    history_index = next(iter(self._loaders["test"]))[1]
    self.about = dict(
      users=dataset.user_num - 1,  # Number 0 is padding.
      items=dataset.item_num - 1,
      # Examples have a target each; a user's first item is none.
      interactions=sum(len(loader._dataset) for loader in self._loaders.values())
      + dataset.user_num
      - 1,
      hides_history=history_index is not None,
      steps_per_epoch=len(self._loaders["train"]),
      examples={split: len(loader._dataset) for split, loader in self._loaders.items()},
      digests={split: digest(loader._dataset) for split, loader in self._loaders.items()},
      versions=dict(recbole=recbole.__version__, torch=torch.__version__),
      threads=torch.get_num_threads(),
    )

  def _timed_epoch(self, *args, **kwargs):
    started = time.perf_counter()
    loss = self._train_epoch(*args, **kwargs)
    self._epochs.append(time.perf_counter() - started)
    return loss

  def steps(self, count):
    self._trainer._train_epoch(First(self._loaders["train"], count), 0)
    return dict(seconds=self._epochs[-1])

  def fit(self):
    started = time.perf_counter()
    _, valid = self._trainer.fit(self._loaders["train"], self._loaders["valid"], verbose=True)
    test = self._trainer.evaluate(self._loaders["test"], load_best_model=True)
    return dict(
      valid=dict(valid),
      test=dict(test),
      epochs=len(self._epochs),
      seconds_per_epoch=sum(self._epochs) / len(self._epochs),
      seconds=time.perf_counter() - started,
    )


class First:
  """The first batches of a loader."""

  def __init__(self, loader, count):
    self._loader, self._count = loader, count

  def __iter__(self):
    return itertools.islice(iter(self._loader), self._count)


def digest(dataset):
  """sha256 over the examples of a split, in any order: see recbole_parity.digest()."""
  users = dataset.id2token(dataset.uid_field, dataset.inter_feat[dataset.uid_field].numpy())
  targets = dataset.id2token(dataset.iid_field, dataset.inter_feat[dataset.iid_field].numpy())
  lengths = dataset.inter_feat[dataset.item_list_length_field].numpy()
  histories = dataset.inter_feat[dataset.item_id_list_field].numpy()
  tokens = dataset.field2id_token[dataset.iid_field]
  lines = [
    "\t".join([user, *tokens[history[:length]], target])
    for user, history, length, target in zip(users, histories, lengths, targets)
  ]
  return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


if __name__ == "__main__":
  main()

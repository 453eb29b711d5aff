"""Which device holds what: the mesh, the shardings, and the two ways to run steps on them.

This file alone counts devices and processes. A program is written for the whole batch and the whole
catalogue; here it is told how they are shared:

* mode "jit": one program for a mesh with the axes `data` and `model`. Rows of a batch are shared
  over `data`; tables with a row for every item (id embeddings and their optimizer state, features,
  vectors, semantic IDs) over `model`. XLA puts in the communication.
* mode "pmap": every device runs a copy on its part of the rows, and what compares rows is gathered
  over the axis `data` (`axis_name` in losses.py). No table is shared.

Both compute the loss of the whole batch. Dropout masks of "pmap" are others, since each device
draws its own.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from bbqrec_jax.errors import UserError
from bbqrec_jax.models.layers import TABLE_MULTIPLE

MODES = ("jit", "pmap")
DATA, MODEL = "data", "model"  # The axes of the mesh.
TABLES = ("id_embedding",)  # Parameters with a row for every item.


_HEARTBEAT_SECONDS = 30  # A process that was silent for so long counts as lost.


def initialize(
  *,
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  timeout_seconds: int = 300,
) -> None:
  """Joins the other processes of a run; before anything else uses a device.

  What is None is asked of SLURM, Open MPI, the TPU pod or Kubernetes, whichever there is.

  Args:
    coordinator: HOST:PORT of process 0.
    num_processes: of all hosts.
    process_id: 0 .. num_processes - 1, another for each.
    timeout_seconds: how long to wait for the others.

  Raises:
    UserError: the processes do not find each other, or it is not known which one this is.
  """
  # JAX's own service would take SIGTERM, which is the loop's to answer.
  jax.config.update("jax_enable_preemption_service", False)
  try:
    jax.distributed.initialize(
      coordinator,
      num_processes,
      process_id,
      initialization_timeout=timeout_seconds,
      heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
    )
  except (RuntimeError, ValueError, TypeError) as error:
    raise UserError(
      f"This process cannot join the others ({str(error).strip().splitlines()[0]}); give "
      "--coordinator=HOST:PORT, --num_processes and --process_id, and start all processes within "
      f"{timeout_seconds} seconds."
    ) from error
  if jax.default_backend() == "cpu":
    # A CPU program that was kept on disk comes back without the order of its collectives: each
    # process takes them as they get ready, and Gloo aborts where two processes differ.
    jax.config.update("jax_enable_compilation_cache", False)


class Partition:
  """How the devices of all processes share batches and tables."""

  def __init__(self, mode: str = "jit", model: int = 1, num_devices: int = 0):
    """Lays the devices out.

    Args:
      mode: one of MODES.
      model: how many devices share a table; as many groups of them share a batch.
      num_devices: how many to use; 0 for all, of all processes.

    Raises:
      UserError: the mode is unknown, or the devices cannot be laid out so.
    """
    devices = jax.devices()[: num_devices or None]
    if num_devices < 0 or (num_devices and num_devices != len(devices)):
      raise UserError(
        f"parallel.num_devices={num_devices}: there are {len(jax.devices())}; 0 takes all of them."
      )
    if {device.process_index for device in devices} != set(range(jax.process_count())):
      raise UserError(f"parallel.num_devices={num_devices} leaves a process without a device.")
    if mode not in MODES:
      raise UserError(f"parallel.mode={mode!r} must be one of {', '.join(MODES)}.")
    if model < 1 or len(devices) % model or TABLE_MULTIPLE % model:
      raise UserError(
        f"parallel.model={model} must divide {TABLE_MULTIPLE} and the number of devices, "
        f"{len(devices)}."
      )
    if mode == "pmap" and model > 1:
      raise UserError(f"parallel.mode='pmap' shares no tables; parallel.model={model} must be 1.")
    self._mode = mode
    axes = (AxisType.Auto, AxisType.Auto)
    shape = (len(devices) // model, model)
    self._mesh = jax.make_mesh(shape, (DATA, MODEL), axes, devices=devices)
    self.replicated = NamedSharding(self._mesh, PartitionSpec())

  @property
  def axis_name(self) -> str | None:
    """What losses that compare rows gather over; None if XLA sees to it."""
    return DATA if self._mode == "pmap" else None

  @property
  def row_multiple(self) -> int:
    """What the number of rows must be a multiple of: how many parts they are shared in."""
    return self._mesh.shape[DATA]

  @property
  def share(self) -> tuple[int, int]:
    """(index, count): this process holds part `index` of the `count` equal parts of all rows."""
    own = [
      row
      for (row, _), device in np.ndenumerate(self._mesh.devices)
      if device.process_index == jax.process_index()
    ]
    size = len(set(own))
    if max(own) - min(own) + 1 != size or min(own) % size or self.row_multiple % size:
      raise UserError(
        f"parallel.model={self._mesh.shape[MODEL]} gives this process rows {sorted(set(own))} of "
        "the mesh, which are no equal part; let it divide the number of devices of a process."
      )
    return min(own) // size, self.row_multiple // size

  def place_epoch(self, epoch: Any) -> Any:
    """An epoch of batches on the devices: arrays [steps, n, R, ...], of R this process's share."""
    sharding = NamedSharding(self._mesh, PartitionSpec(None, None, DATA))
    if self._mode == "jit":
      return jax.tree.map(lambda x: self._from_share(x, sharding, 2), epoch)
    local = NamedSharding(self._mesh.local_mesh, PartitionSpec(None, None, DATA))
    parts = self._mesh.local_mesh.shape[DATA]
    split = lambda x: x.reshape(*x.shape[:2], parts, -1, *x.shape[3:])
    return jax.tree.map(lambda x: jax.device_put(split(x), local), epoch)

  def place_rows(self, x: np.ndarray, axis: int) -> jax.Array:
    """An array that every process has whole, shared by its rows along an axis."""
    sharding = NamedSharding(self._mesh, PartitionSpec(*[None] * axis, DATA))
    return _place(x, sharding)

  def place_tables(self, tree: Any) -> Any:
    """Arrays [I, ...] of all items, which every process has whole, shared over `model`.

    They may get further rows, of zeros, so that all parts are equal.
    """
    parts = self._mesh.shape[MODEL]

    def place(x):
      fill = -len(x) % parts
      x = np.pad(x, [(0, fill)] + [(0, 0)] * (x.ndim - 1)) if fill else x
      return _place(x, NamedSharding(self._mesh, PartitionSpec(MODEL)))

    return jax.tree.map(place, tree)

  def replicate(self, tree: Any) -> Any:
    """Arrays that every process has whole, on every device."""

    def place(x):
      if isinstance(x, jax.Array) and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(place(jax.random.key_data(x)), impl=jax.random.key_impl(x))
      return _place(np.asarray(x), self.replicated)

    return jax.tree.map(place, tree)

  def shardings(self, tree: Any) -> Any:
    """Of a state, or a part of one: what is named in TABLES is shared over `model`."""

    def sharding(path, leaf):
      is_table = any(getattr(key, "key", None) in TABLES for key in path) and leaf.ndim
      return NamedSharding(self._mesh, PartitionSpec(*[MODEL] * bool(is_table)))

    return jax.tree_util.tree_map_with_path(sharding, tree)

  def init(self, fn: Callable, *args) -> Any:
    """fn(*args), compiled, its result laid out as shardings() has it: no device holds it whole."""
    return jax.jit(fn, out_shardings=self.shardings(jax.eval_shape(fn, *args)))(*args)

  def compile_chunk(self, train_chunk: Callable, state: Any) -> Callable:
    """Compiles what train_state.make_train_chunk() gives; the state is donated.

    Args:
      state: one of those that will be given, or its shapes.
    """
    if self._mode == "jit":
      out = (self.shardings(state), self.replicated)
      return jax.jit(train_chunk, donate_argnums=0, out_shardings=out)
    mapped = jax.pmap(
      train_chunk,
      DATA,
      in_axes=(None, 2, None, None, None, None),
      out_axes=None,
      devices=list(self._mesh.devices.flat),
      donate_argnums=0,
    )

    def chunk(state, epoch, *rest):
      state, rest = self._local((state, rest))
      state, metrics = mapped(state, epoch, *rest)
      return self._global(state), metrics

    return chunk

  def _from_share(self, x: np.ndarray, sharding: NamedSharding, axis: int) -> jax.Array:
    shape = list(x.shape)
    shape[axis] *= self.share[1]
    return jax.make_array_from_process_local_data(sharding, x, tuple(shape))

  def _local(self, tree: Any) -> Any:
    """For pmap, which wants of each process what its own devices hold."""
    return _rewrap(tree, NamedSharding(self._mesh.local_mesh, PartitionSpec()))

  def _global(self, tree: Any) -> Any:
    return _rewrap(tree, self.replicated)


def fetch(tree: Any) -> Any:
  """Arrays of the devices, whole, as NumPy's; every process must ask."""

  def get(x):
    if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
      return np.asarray(x)
    return multihost_utils.process_allgather(x, tiled=True)

  return jax.tree.map(get, tree)


def agree(signum: int, steps: int) -> tuple[int, int]:
  """What all processes do next: stop for a signal that came to any; else the fewest steps wished.

  Args:
    signum: of the signal that came to this process, 0 for none.
    steps: how many steps this process would take.
  """
  if jax.process_count() == 1:
    return signum, steps
  wishes = multihost_utils.process_allgather(np.array([signum, steps], np.int32))
  return int(wishes[:, 0].max()), int(wishes[:, 1].min())


def is_alone() -> bool:
  """Whether there is no other process."""
  return jax.process_count() == 1


def is_main() -> bool:
  """Whether this is the process that writes files and reports."""
  return jax.process_index() == 0


def barrier(name: str) -> None:
  """Returns when every process has come here."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def _place(x: np.ndarray, sharding: NamedSharding) -> jax.Array:
  # Not jax.device_put, which compares what the processes give, array by array.
  return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def _rewrap(tree: Any, sharding: NamedSharding) -> Any:
  """Replicated arrays as arrays of another mesh, of which this process has the same devices."""
  if jax.process_count() == 1:  # The meshes are one.
    return tree

  def rewrap(x):
    if not isinstance(x, jax.Array):
      return x
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
      data = rewrap(jax.random.key_data(x))
      return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    shards = [shard.data for shard in x.addressable_shards]
    return jax.make_array_from_single_device_arrays(x.shape, sharding, shards)

  return jax.tree.map(rewrap, tree)

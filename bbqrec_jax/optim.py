"""Optimizer and learning-rate schedule from a config's `optimizer` section."""

from collections.abc import Mapping

import jax
import optax

SCHEDULES = ("constant", "cosine")


def make_optimizer(
  *,
  num_steps: int,
  learning_rate: float,
  schedule: str = "constant",
  warmup_steps: int = 0,
  weight_decay: float = 0.0,
  clip_norm: float = 0.0,
  scales: Mapping[str, float] | None = None,
) -> optax.GradientTransformation:
  """AdamW with linear warm-up, then a constant or a cosine schedule down to zero.

  Args:
    num_steps: length of the whole training, where the cosine ends.
    warmup_steps: cut to a tenth of num_steps, so that a short training still learns.
    weight_decay: on matrices named `kernel` only: not on embeddings, codebooks, norms and biases.
    clip_norm: largest global gradient norm; 0 for no clipping. What `scales` names has a norm of
      its own: it is another objective's, whose gradients must not shrink the rest's.
    scales: top-level parameter name -> factor on the learning rate of what is below it.

  Raises:
    ValueError: on an unknown schedule.
  """
  if schedule not in SCHEDULES:
    raise ValueError(f"optimizer.schedule must be one of {SCHEDULES}, got {schedule!r}.")
  warmup_steps = min(warmup_steps, num_steps // 10)
  if schedule == "cosine":
    after = optax.cosine_decay_schedule(learning_rate, max(num_steps - warmup_steps, 1))
  else:
    after = optax.constant_schedule(learning_rate)
  rate = after
  if warmup_steps:
    warmup = optax.linear_schedule(0.0, learning_rate, warmup_steps)
    rate = optax.join_schedules([warmup, after], [warmup_steps])
  parts = [_clip(clip_norm, scales or {})] if clip_norm else []
  parts.append(optax.adamw(rate, weight_decay=weight_decay, mask=_kernels))
  if scales:
    parts.append(optax.stateless(lambda updates, _: _scale(updates, scales)))
  return optax.chain(*parts)


def _clip(max_norm: float, apart: Mapping[str, float]) -> optax.GradientTransformation:
  """Clips by the global norm of what `apart` names, and by that of all the rest."""
  clip = optax.clip_by_global_norm(max_norm)
  is_apart = lambda params: jax.tree_util.tree_map_with_path(
    lambda path, _: path[0].key in apart, params
  )
  return optax.partition({True: clip, False: clip}, is_apart)


def _kernels(params):
  return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def _scale(updates, scales):
  unknown = set(scales) - set(updates)
  if unknown:
    raise ValueError(f"optimizer.scales names {sorted(unknown)}; parameters: {sorted(updates)}.")
  factors = {name: scales.get(name, 1.0) for name in updates}
  return {name: optax.tree.scale(factors[name], branch) for name, branch in updates.items()}

"""Health of a catalogue's semantic IDs: how codes are used, and how many items collide."""

from collections.abc import Sequence

import numpy as np

from bbqrec_jax import metrics


def report(codes: np.ndarray, codebook_size: int, signals: Sequence[str], shared: bool) -> dict:
  """Describes the semantic IDs of a catalogue, ready for JSON.

  Args:
    codes: [I, L, M] int in [0, N).
    codebook_size: N.
    signals: M names, in the order of the codes.
    shared: whether one codebook for each level serves all signals.

  Returns:
    num_items, num_levels, codebook_size, signals: I, L, N and the names.
    usage: a list of records, for each signal and level: signal, level (from 1), used (distinct
      codes), coverage, perplexity, dead. If shared and M > 1, signal "all" follows: the use of a
      level's codebook by all signals together.
    num_first_tokens: distinct tokens at level 1.
    num_semantic_ids: distinct semantic IDs.
    num_colliding_items: items that share all L x M codes with another item.
    num_surplus_items: items less semantic IDs. BBQRec Table 5 counts collisions in a way that
      can be 1, as this can and num_colliding_items cannot.
    largest_group: the most items with one semantic ID.

  A report that has `running_numbers` too is of the levels before them, one that has
  `num_surplus_repaired` of what the quantizer gave before trainers/repair.py: trainers/rqvae.py.
  """
  codes = np.asarray(codes)
  if codes.ndim != 3 or codes.shape[2] != len(signals):
    raise ValueError(f"codes must be [I, L, {len(signals)}], got {codes.shape}.")
  num_items, num_levels, num_signals = codes.shape
  histograms = [(name, codes[:, :, m]) for m, name in enumerate(signals)]  # Each [I, L, ...].
  if shared and num_signals > 1:
    histograms.append(("all", codes))
  usage = []
  for name, signal_codes in histograms:
    for level in range(num_levels):
      use = metrics.code_usage(signal_codes[:, level], codebook_size)
      used = codebook_size - use.dead
      usage.append(dict(signal=name, level=level + 1, used=used, **use._asdict()))
  _, group_sizes = np.unique(codes.reshape(num_items, -1), axis=0, return_counts=True)
  return dict(
    num_items=num_items,
    num_levels=num_levels,
    codebook_size=codebook_size,
    signals=list(signals),
    usage=usage,
    num_first_tokens=len(np.unique(codes[:, 0], axis=0)),
    num_semantic_ids=len(group_sizes),
    num_colliding_items=int(group_sizes[group_sizes > 1].sum()),
    num_surplus_items=num_items - len(group_sizes),
    largest_group=int(group_sizes.max()),
  )


def format_report(report: dict) -> str:
  """A `report` as text: a table of code usage, then the collisions."""
  lines = [
    f"{report['num_items']} items, {report['num_levels']} levels, "
    f"{report['codebook_size']} codes in a codebook",
    f"{'signal':8}{'level':>6}{'used':>7}{'dead':>7}{'coverage':>10}{'perplexity':>12}",
  ]
  for row in report["usage"]:
    lines.append(
      f"{row['signal']:8}{row['level']:6d}{row['used']:7d}{row['dead']:7d}"
      f"{row['coverage']:10.3f}{row['perplexity']:12.1f}"
    )
  lines += [
    f"distinct tokens at level 1: {report['num_first_tokens']}",
    f"distinct semantic IDs: {report['num_semantic_ids']}",
    f"items that share theirs with another: {report['num_colliding_items']} "
    f"(items less semantic IDs: {report['num_surplus_items']}; "
    f"largest group: {report['largest_group']})",
  ]
  if "num_surplus_repaired" in report:
    lines.append(f"items less semantic IDs once repaired: {report['num_surplus_repaired']}")
  if "running_numbers" in report:
    lines.append(f"running numbers that then tell them apart: {report['running_numbers']}")
  return "\n".join(lines)

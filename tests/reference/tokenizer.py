"""Stage one the slow and obvious way, in NumPy with loops."""

import itertools

import numpy as np


def residual_quantize(z, codebooks):
  """One vector z [D] through codebooks [L, N, D]: codes, residuals and code vectors by level."""
  codes, residuals, embeds = [], [], []
  residual = z.astype(np.float64)
  for codebook in codebooks:
    code = int(np.argmin([np.sum((residual - vector) ** 2) for vector in codebook]))
    codes.append(code)
    residuals.append(residual)
    embeds.append(codebook[code])
    residual = residual - codebook[code]
  return np.array(codes), np.array(residuals), np.array(embeds)


def gaussian_log_density(x, mean, log_variance):
  """log N(x; mean, diag(exp(log_variance))) of one vector, [D] each."""
  variance = np.exp(log_variance)
  return -0.5 * np.sum((x - mean) ** 2 / variance + np.log(2 * np.pi * variance))


def club_upper_bound(mean, log_variance, z_bar):
  """BBQRec Eq. (3) over all pairs: [B, D] each; mean_i and log_variance_i are those of z_i."""
  rows = range(len(z_bar))
  positive = [gaussian_log_density(z_bar[i], mean[i], log_variance[i]) for i in rows]
  pairs = [[gaussian_log_density(z_bar[j], mean[i], log_variance[i]) for j in rows] for i in rows]
  return np.mean(positive) - np.mean(pairs)


def info_nce(h, v, targets, item_weights, temperature, q=None):
  """BBQRec Eq. (12), history by history: h [R, E], v [P, E], targets [R].

  With q [P], the probability that an item is there, each counts 1 / q times.
  """
  q = np.ones(len(v)) if q is None else q

  def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

  values = []
  for r in range(len(targets)):
    if targets[r] < 0:
      continue
    positive = np.exp(cosine(h[r], v[targets[r]]) / temperature) / q[targets[r]]
    negative = sum(
      np.exp(cosine(h[r], v[p]) / temperature) / q[p]
      for p in range(len(v))
      if p != targets[r] and item_weights[p] > 0
    )
    values.append(-np.log(positive / (positive + negative)))
  return np.mean(values)


def srgnn(params, vectors, items):
  """SR-GNN of one whole sequence: vectors [T, E], items [T] without padding; returns [out].

  Wu et al. 2019 (arXiv:1811.00855), Eqs. (1)-(7), graph first, then node by node.
  """

  def sigmoid(x):
    return 1 / (1 + np.exp(-x))

  def kernel(name):
    return np.asarray(params[name]["kernel"], np.float64)

  def bias(name):
    return np.asarray(params[name]["bias"], np.float64)

  nodes = list(dict.fromkeys(items))
  edges = list(itertools.pairwise(items))
  x = {item: vectors[items.index(item)] @ kernel("in") + bias("in") for item in nodes}
  width = len(bias("in"))

  def message(item):
    total = np.zeros(3 * width)
    for other in nodes:
      leaving = [edge for edge in edges if edge[0] == item]
      arriving = [edge for edge in edges if edge[1] == item]
      if leaving:
        share = leaving.count((item, other)) / len(leaving)
        total += share * x[other] @ kernel("out_edges")
      if arriving:
        share = arriving.count((other, item)) / len(arriving)
        total += share * x[other] @ kernel("in_edges")
    return np.split(total, 3)

  states = {}
  for item in nodes:
    a_update, a_reset, a_candidate = message(item)
    own_update, own_reset = np.split(x[item] @ kernel("gates") + bias("gates"), 2)
    update, reset = sigmoid(a_update + own_update), sigmoid(a_reset + own_reset)
    own = (reset * x[item]) @ kernel("candidate") + bias("candidate")
    states[item] = (1 - update) * x[item] + update * np.tanh(a_candidate + own)

  last = states[items[-1]]
  session = np.zeros(width)
  for item in items:  # Positions: an item that comes twice counts twice.
    gate = sigmoid(last @ kernel("last") + bias("last") + states[item] @ kernel("node"))
    session += (gate @ kernel("alpha"))[0] * states[item]
  return np.concatenate([last, session]) @ kernel("out") + bias("out")


def sinkhorn_codes(points, codebook, temperature, num_iters=50):
  """[P] codes of points [P, D], as LETTER's program assigns its last level, in double precision.

  Of codes in which a point has the same share, within 1 %, the nearest.
  """
  distances = ((points[:, None].astype(np.float64) - codebook[None]) ** 2).sum(-1)  # [P, N]
  middle = (distances.max() + distances.min()) / 2
  plan = np.exp((middle - distances) / (distances.max() - middle + 1e-5) / temperature)
  for _ in range(num_iters):
    plan /= plan.sum(axis=1, keepdims=True)  # Points weigh the same,
    plan /= plan.sum(axis=0, keepdims=True)  # and so do codes.
  assert np.all(np.isfinite(plan))
  return np.where(plan >= 0.99 * plan.max(axis=1, keepdims=True), distances, np.inf).argmin(axis=1)


def separate(codes, residuals, codebook, temperature, num_rounds):
  """[I, L] codes of which items with the same ones have got others of the last level."""
  codes = codes.copy()
  for _ in range(num_rounds):
    groups = {}
    for item, code in enumerate(codes.tolist()):
      groups.setdefault(tuple(code), []).append(item)
    for items in groups.values():
      if len(items) > 1:
        codes[items, -1] = sinkhorn_codes(residuals[items], codebook, temperature)
  return codes

"""Systems that score every item the slow and obvious way, in NumPy, history by history."""

import math

import numpy as np


def _weights(tree, *path):
  for name in path:
    tree = tree[name]
  return np.asarray(tree, np.float64)


def dense(x, params):
  y = x @ _weights(params, "kernel")
  return y + _weights(params, "bias") if "bias" in params else y


def norm(x, params):
  """Layer normalisation; params has a scale, and perhaps a bias."""
  y = (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-6)
  y = y * _weights(params, "scale")
  return y + _weights(params, "bias") if "bias" in params else y


def gelu(x):
  """The approximation by tanh."""
  return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def softmax(x):
  e = np.exp(x - x.max())
  return e / e.sum()


def attention(query, value, params, causal=False, key=None):
  """Query [q, E], value [n, E]; keys are of key [n, E], or else of the query's rows, n = q then.

  One head and one position at a time.
  """
  key = query if key is None else key
  _, num_heads, head_dim = params["query"]["kernel"].shape
  mixed = np.zeros((len(query), num_heads, head_dim))
  for head in range(num_heads):
    queries = _project(query, params["query"], head)
    keys, values = _project(key, params["key"], head), _project(value, params["value"], head)
    for t in range(len(query)):
      last = t + 1 if causal else len(value)
      scores = np.array([queries[t] @ keys[s] for s in range(last)]) / math.sqrt(head_dim)
      mixed[t, head] = softmax(scores) @ values[:last]
  flat = _weights(params, "out", "kernel").reshape(num_heads * head_dim, -1)
  return mixed.reshape(len(query), -1) @ flat + _weights(params, "out", "bias")


def _project(x, params, head):
  return x @ _weights(params, "kernel")[:, head] + _weights(params, "bias")[head]


def transformer(params, v, causal=True, side=0.0):
  """Encoder of models/sasrec_encoder.py without projections: v [n, E] -> [n, E]."""
  x = norm(v + _weights(params, "positions")[: len(v)], params["in_norm"])
  for layer in range(sum(name.startswith("mlp_in_") for name in params)):
    y = norm(x, params[f"attention_norm_{layer}"])
    x = x + attention(y + side, y, params[f"attention_{layer}"], causal)
    y = gelu(dense(norm(x, params[f"mlp_norm_{layer}"]), params[f"mlp_in_{layer}"]))
    x = x + dense(y, params[f"mlp_out_{layer}"])
  return norm(x, params["out_norm"])


def missrec_block(params, x, context=None):
  """Block of models/missrec.py: x [n, E], context [m, E] -> [n, E]."""
  x = norm(x + attention(x, x, params["self_attention"]), params["self_norm"])
  if context is not None:
    y = attention(x, context, params["context_attention"], key=context)
    x = norm(x + y, params["context_norm"])
  y = dense(gelu(dense(x, params["mlp_in"])), params["mlp_out"])
  return norm(x + y, params["mlp_norm"])


def gru(cell, x):
  """Gated recurrent unit: inputs [n, E] -> states [n, H]."""
  sigmoid = lambda x: 1 / (1 + np.exp(-x))
  state = np.zeros(cell["hn"]["kernel"].shape[0])
  states = []
  for row in x:
    reset = sigmoid(dense(row, cell["ir"]) + dense(state, cell["hr"]))
    update = sigmoid(dense(row, cell["iz"]) + dense(state, cell["hz"]))
    new = np.tanh(dense(row, cell["in"]) + reset * dense(state, cell["hn"]))
    state = (1 - update) * new + update * state
    states.append(state)
  return np.array(states)


def masked_transformer(params, sequence, masked, side=None):
  """BERT4Rec of one sequence of items: what it scores by at every position, [n, E].

  Args:
    masked: which positions are hidden.
    side: item -> [E], what queries and keys see of it.
  """
  table, mask = _weights(params, "id_embedding"), _weights(params, "mask_embedding")
  hidden = [position in masked for position in range(len(sequence))]
  v = np.array([mask if h else table[item] for item, h in zip(sequence, hidden)])
  extra = np.zeros(v.shape)
  if side is not None:
    extra = np.array([np.zeros(len(mask)) if h else side(i) for i, h in zip(sequence, hidden)])
  x = transformer(params["encoder"], v, causal=False, side=extra)
  return norm(gelu(dense(x, params["head"])), params["head_norm"])


def fuse(params, ids, features, present):
  """Fusion of one item: ids [E], features and present by modality."""
  parts = [ids]
  for name, x in features.items():
    parts.append(x if present[name] else _weights(params, f"missing_{name}"))
  return dense(np.concatenate(parts), params["out"])

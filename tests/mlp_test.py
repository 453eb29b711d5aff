"""The multilayer perceptron against NumPy."""

import jax
import numpy as np

from bbqrec_jax.models import mlp


def test_equals_matrix_products_with_relu_between():
  x = jax.random.normal(jax.random.key(0), (3, 5))
  model = mlp.MLP((7, 11), out_dim=2)
  variables = model.init(jax.random.key(1), x)
  layers = [jax.tree.map(np.asarray, variables["params"][f"Dense_{i}"]) for i in range(3)]
  hidden = np.asarray(x)
  for layer in layers[:-1]:
    hidden = np.maximum(hidden @ layer["kernel"] + layer["bias"], 0)
  expected = hidden @ layers[-1]["kernel"] + layers[-1]["bias"]
  np.testing.assert_allclose(model.apply(variables, x), expected, atol=1e-5)
  assert np.any(expected < 0)  # The last layer is linear.


def test_shifted_outputs_are_larger_by_the_offset():
  x, offset = jax.random.normal(jax.random.key(0), (3, 5)), np.array([0.5, -2.0], np.float32)
  model = mlp.MLP((7, 11), out_dim=2)
  params = model.init(jax.random.key(1), x)["params"]
  shifted = model.apply({"params": mlp.shift(params, offset)}, x)
  np.testing.assert_allclose(shifted - model.apply({"params": params}, x), [offset] * 3, atol=1e-6)

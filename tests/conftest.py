"""Settings of every test: two fake CPU devices, and no silent broadcasting between ranks."""

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def key():
  """The run's one key; fold a number into it where several are needed."""
  return jax.random.key(0)

"""Modules by the names in a config."""

import pytest

from bbqrec_jax import plugins
from bbqrec_jax.data import synthetic
from bbqrec_jax.errors import UserError


def test_a_name_loads_its_module():
  assert plugins.load("data", "synthetic", "data.source") is synthetic


def test_a_wrong_name_is_refused_with_the_nearest_right_one():
  with pytest.raises(UserError, match=r"data\.source='sinthetic'.*did you mean 'synthetic'"):
    plugins.load("data", "sinthetic", "data.source")


def test_a_name_like_no_other_lists_what_there_is():
  with pytest.raises(UserError, match=r"generator, .*tokenizer"):
    plugins.load("trainers", "xyz", "stages")

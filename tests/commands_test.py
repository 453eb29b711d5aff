"""What the help of every command shows."""

import importlib

import pytest


@pytest.mark.parametrize("name", ["compare", "latency", "recommend", "record", "table"])
def test_help_is_the_docstring_line_by_line(capsys, name):
  module = importlib.import_module(f"bbqrec_jax.{name}")
  with pytest.raises(SystemExit) as exit_:
    module.main(["--help"])
  said = capsys.readouterr().out
  assert exit_.value.code == 0
  assert module.__doc__.strip() in said and f"\npython -m bbqrec_jax.{name} " in said

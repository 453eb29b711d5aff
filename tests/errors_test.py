"""How commands end: what a caller sees of each kind of end."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest

from bbqrec_jax.errors import UserError, exit_status

ROOT = pathlib.Path(__file__).resolve().parents[1]


def test_what_goes_well_is_0_and_says_nothing_more(capsys):
  assert exit_status(lambda: print("done")) == 0
  assert capsys.readouterr() == ("done\n", "")


def test_a_user_error_is_one_sentence_and_1(capsys):
  def command():
    raise UserError("x.json is damaged; make it again.")

  assert exit_status(command) == 1
  assert capsys.readouterr() == ("", "Error: x.json is damaged; make it again.\n")


@pytest.mark.parametrize("error", [ValueError, OSError])
def test_what_is_no_user_error_is_not_hidden(error):
  def command():
    raise error("a bug")

  with pytest.raises(error, match="a bug"):
    exit_status(command)


@pytest.mark.parametrize(("told", "expected"), [((), "Stopped."), (("Go on.",), "Go on.")])
def test_ctrl_c_is_one_sentence_and_the_status_of_a_shell(told, expected, capsys):
  def command():
    raise KeyboardInterrupt

  assert exit_status(command, *told) == 128 + signal.SIGINT
  assert capsys.readouterr() == ("", f"\n{expected}\n")


@pytest.mark.parametrize("options", [(), ("-u",)], ids=["buffered", "unbuffered"])
def test_a_reader_that_has_enough_ends_it_quietly(options):
  reader, writer = os.pipe()
  os.close(reader)
  code = "import sys; from bbqrec_jax import errors; sys.exit(errors.exit_status(lambda: print(1)))"
  env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
  done = subprocess.run(
    (sys.executable, *options, "-c", code), cwd=ROOT, env=env, stdout=writer,
    stderr=subprocess.PIPE, text=True,
  )  # fmt: skip
  os.close(writer)
  assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")

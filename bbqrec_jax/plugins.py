"""Loads a module that a config names: the module's name is the registry."""

import difflib
import importlib
import pkgutil
from types import ModuleType

from bbqrec_jax.errors import UserError


def load(package: str, name: str, key: str) -> ModuleType:
  """Imports bbqrec_jax.<package>.<name>.

  Args:
    key: the config's field that holds the name, for the message.

  Raises:
    UserError: there is no such module; names the nearest one there is.
  """
  folder = importlib.import_module(f"bbqrec_jax.{package}")
  known = sorted(module.name for module in pkgutil.iter_modules(folder.__path__))
  if name not in known:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"it holds {', '.join(known)}."
    raise UserError(f"{key}={name!r} names no module of bbqrec_jax/{package}/; {hint}")
  return importlib.import_module(f"bbqrec_jax.{package}.{name}")

"""Loads a module that a config names: the module's name is the registry."""

import difflib
import importlib
import pkgutil
from types import ModuleType

from bbqrec_jax.errors import UserError


def load(package: str, name: str, key: str, needs: str | None = None) -> ModuleType:
  """Imports bbqrec_jax.<package>.<name>.

  Args:
    key: the config's field that holds the name, for the message.
    needs: what the module must have to serve, such as "Model".

  Raises:
    UserError: there is no such module, and the sentence names the nearest one there is; or it does
      not have what it needs.
  """
  folder = importlib.import_module(f"bbqrec_jax.{package}")
  known = sorted(module.name for module in pkgutil.iter_modules(folder.__path__))
  if name not in known:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"it holds {', '.join(known)}."
    raise UserError(f"{key}={name!r} names no module of bbqrec_jax/{package}/; {hint}")
  module = importlib.import_module(f"bbqrec_jax.{package}.{name}")
  if needs and not hasattr(module, needs):
    raise UserError(f"{key}={name!r}: bbqrec_jax/{package}/{name}.py has no {needs}.")
  return module

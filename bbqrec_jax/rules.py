"""What values of a config may be: kinds with bounds, checked with one sentence about the field."""

import collections.abc
import difflib
import inspect
import math
import numbers
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from bbqrec_jax.errors import UserError

INT_MAX = 2**31 - 1  # Counts go into int32 arrays.


class Whole(NamedTuple):
  """A whole number; True and False are none."""

  low: int = 0
  high: int = INT_MAX

  def allows(self, value: Any) -> bool:
    is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return is_whole and self.low <= value <= self.high

  def __str__(self) -> str:
    return f"a whole number, at least {self.low:,} and at most {self.high:,}"


class Real(NamedTuple):
  """A finite number, whole or not; True and False are none."""

  low: float = 0.0
  high: float = 1e9  # More is a slip, and a few such factors leave float32.
  above: bool = False  # Whether low itself is left out.
  below: bool = False  # Whether high itself is left out.

  def allows(self, value: Any) -> bool:
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
      return False
    if value == self.low or value == self.high:
      return not (self.above if value == self.low else self.below)
    return self.low < value < self.high  # False for NaN.

  def __str__(self) -> str:
    lower, upper = "above" if self.above else "at least", "below" if self.below else "at most"
    return f"a number, {lower} {self.low:g} and {upper} {self.high:g}"


class OneOf(NamedTuple):
  """One of a few values, of the same type: 1 is not True."""

  values: tuple

  def allows(self, value: Any) -> bool:
    return any(type(value) is type(known) and value == known for known in self.values)

  def __str__(self) -> str:
    return f"one of {', '.join(map(str, self.values))}"


class Text(NamedTuple):
  """Text that is not empty, unless it may be."""

  may_be_empty: bool = False

  def allows(self, value: Any) -> bool:
    filled = self.may_be_empty or bool(value)
    return isinstance(value, str) and filled and "\0" not in value

  def __str__(self) -> str:
    return "text" if self.may_be_empty else "text that is not empty"


class Many(NamedTuple):
  """A list or tuple, perhaps empty."""

  rule: Any

  def allows(self, value: Any) -> bool:
    return isinstance(value, list | tuple) and all(map(self.rule.allows, value))

  def __str__(self) -> str:
    return f"a list, each entry {self.rule}"


class Named(NamedTuple):
  """A mapping with any names."""

  rule: Any

  def allows(self, value: Any) -> bool:
    return isinstance(value, Mapping) and all(map(self.rule.allows, value.values()))

  def __str__(self) -> str:
    return f"a section, each entry {self.rule}"


class Optional(NamedTuple):
  """None, or what the rule allows."""

  rule: Any

  def allows(self, value: Any) -> bool:
    return value is None or self.rule.allows(value)

  def __str__(self) -> str:
    return f"None, or {self.rule}"


class Anything:
  """No rule."""

  def allows(self, value: Any) -> bool:
    return True


FLAG = OneOf((True, False))


class Section(NamedTuple):
  """A mapping whose keys are known.

  Attributes:
    rules: key -> its rule. All of them are needed, unless `callee` says otherwise.
    callee: config -> what takes the section as its keyword arguments. The keys are then those
      arguments' names, needed where they have no default; `rules` only bounds some of them, and
      the rest follow their annotations.
    given: arguments that the callee gets from elsewhere.
    own: keys, of `rules`, that are not passed on; the callee may depend on them.
  """

  rules: Mapping[str, Any]
  callee: Callable[[Mapping], Callable] | None = None
  given: Sequence[str] = ()
  own: Sequence[str] = ()


def check(config: Mapping, rule: Section) -> None:
  """Raises UserError, with the field's dotted name, for the first field that is not as it must be.

  Fields are taken in the order of the rules, so that a callee may depend on those before it.
  """
  _check(config, config, rule, "")


def _check(config: Mapping, value: Any, rule: Any, name: str) -> None:
  if isinstance(rule, Optional) and value is not None:
    rule = rule.rule
  if isinstance(rule, Named) and isinstance(value, Mapping):
    for key, entry in value.items():
      _check(config, entry, rule.rule, f"{name}.{key}")
    return
  if not isinstance(rule, Section):
    if not rule.allows(value):
      raise UserError(f"{name}={value!r} must be {rule}.")
    return
  if not isinstance(value, Mapping):
    raise UserError(f"{name}={value!r} must be a section, with fields of its own.")
  prefix = f"{name}." if name else ""
  for key in rule.own:  # First, since the callee may depend on them.
    _check_field(config, value, key, rule.rules[key], prefix)
  rules, needed = _fields(config, rule)
  for key in value:
    if key not in rules:
      near = difflib.get_close_matches(str(key), rules, n=1)
      hint = f"did you mean {near[0]!r}?" if near else f"it knows {', '.join(rules)}."
      raise UserError(f"{name or 'The config'} has no field {key!r}; {hint}")
  for key, field_rule in rules.items():
    if key in needed or key in value:
      _check_field(config, value, key, field_rule, prefix)


def _fields(config: Mapping, rule: Section) -> tuple[dict[str, Any], set[str]]:
  """The rules of all fields that the section may have, and the names of those that it must have."""
  if rule.callee is None:
    return dict(rule.rules), set(rule.rules)
  rules, needed = {key: rule.rules[key] for key in rule.own}, set(rule.own)
  for key, parameter in inspect.signature(rule.callee(config)).parameters.items():
    if key in rule.given:
      continue
    bounded = key in rule.rules
    rules[key] = rule.rules[key] if bounded else _of_annotation(parameter.annotation)
    if parameter.default is parameter.empty:
      needed.add(key)
  return rules, needed


def _check_field(config: Mapping, section: Mapping, key: str, rule: Any, prefix: str) -> None:
  if key not in section:
    raise UserError(f"{prefix}{key} is missing in the config.")
  _check(config, section[key], rule, prefix + key)


def _of_annotation(annotation: Any) -> Any:
  """The rule that an argument's annotation amounts to."""
  plain = {
    bool: FLAG,
    int: Whole(-INT_MAX),
    float: Real(-math.inf, math.inf, above=True, below=True),
    str: Text(),
  }
  if annotation in plain:
    return plain[annotation]
  origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
  if origin in (types.UnionType, typing.Union) and type(None) in arguments:
    others = [argument for argument in arguments if argument is not type(None)]
    return Optional(_of_annotation(others[0]) if len(others) == 1 else Anything())
  if origin is collections.abc.Sequence:
    return Many(_of_annotation(arguments[0]))
  if origin is collections.abc.Mapping:
    return Named(_of_annotation(arguments[1]))
  return Anything()

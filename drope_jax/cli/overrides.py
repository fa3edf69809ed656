"""Overrides of config fields on the command line: `--config.A.B=VALUE`.

VALUE is a literal (`3`, `1e-3`, `None`, `(1, 2)`), plain text for a string field, or a value by class name, with
fields: `Keep`, `PartialDrop(turns=2)`, `RoPE(scaling=YaRN(factor=8, original_context=1024))`. A user's class is
prefixed with its module if its name is ambiguous: `my_module.Spiral(rate=2)`. Nothing is evaluated. The result goes
through `serialization.from_dict`, and so through all checks.
"""

import ast
import dataclasses
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from drope_jax.cli.modules import owner
from drope_jax.errors import ConfigError, check
from drope_jax.serialization import alternatives, classes_of, from_dict, to_dict
from drope_jax.values import find, recorded_name

T = TypeVar("T")
Path = list[str | int]


def overridden(config: T, overrides: Iterable[tuple[str, str]]) -> T:
  """A copy of a config with some fields set, in the given order.

  Args:
    overrides: pairs of a dotted path ("model.positions.theta", "model.positions.layers[0].window") and a text.

  Raises:
    ConfigError: naming an unknown field, with those that exist, or an impossible value.
  """
  cls = type(config)
  data = to_dict(config)
  for path, text in overrides:
    data = _placed(cls, data, _steps(path), text, cls.__name__)
  return from_dict(cls, data)


STEP = r"\w+(\[\d+\])*"  # a field, and an index if it is a tuple


def _steps(path: str) -> Path:
  """ "layers[0].window" as ["layers", 0, "window"]."""
  fields = re.fullmatch(rf"{STEP}(\.{STEP})*", path) is not None
  check(fields, f"{path!r} is not a path of fields, such as model.positions or model.positions.layers[0].window")
  return [int(step[1:-1]) if step.startswith("[") else step for step in re.findall(r"\[\d+\]|\w+", path)]


def _placed(annotation: Any, data: Any, path: Path, text: str, where: str) -> Any:
  """The plain data of a field of this type, with the value of `text` at `path`."""
  if not path:
    return _read(annotation, text, where)
  step, rest = path[0], path[1:]
  if isinstance(step, int):
    item = _item(annotation)
    there = isinstance(data, list) and step < len(data)
    check(item is not None and there, f"{where} has no item {step}: it is {data!r}")
    return [*data[:step], _placed(item, data[step], rest, text, f"{where}[{step}]"), *data[step + 1 :]]
  cls = _class_at(annotation, data, where)
  _check_field(cls, step, where)
  fields = _defaults(cls) if data is None else data
  return fields | {step: _placed(get_type_hints(cls)[step], fields.get(step), rest, text, f"{where}.{step}")}


def _class_at(annotation: Any, data: Any, where: str) -> type[Any]:
  """The class of the current value, or, if there is none yet, the only class that the field may hold."""
  classes = classes_of(annotation)
  check(bool(classes), f"{where} is {data!r}, which has no fields")
  if isinstance(data, dict):
    return find(classes, data["type"], f"{where}.type")
  check(len(classes) == 1, f"{where} is {data}; set it as a whole: {', '.join(classes)}")
  return next(iter(classes.values()))


def _defaults(cls: type[Any]) -> dict[str, Any]:
  """The plain data of a class with all defaults; fields without a default are missing."""
  found: dict[str, Any] = {"type": recorded_name(cls)}
  for field in dataclasses.fields(cls):
    if field.default_factory is not dataclasses.MISSING:
      found[field.name] = to_dict(field.default_factory())
    elif field.default is not dataclasses.MISSING:
      found[field.name] = to_dict(field.default)
  return found


def _check_field(cls: type[Any], name: str, where: str) -> None:
  names = [field.name for field in dataclasses.fields(cls)]
  check(name in names, f"{where}.{name} is not a field; fields: {', '.join(names)}")


def _item(annotation: Any) -> Any:
  """The type of a tuple's items; None if the type is not a tuple."""
  return next((get_args(one)[0] for one in alternatives(annotation) if get_origin(one) is tuple), None)


def _read(annotation: Any, text: str, where: str) -> Any:
  """Parses a text for a field of this type into plain data; `from_dict` refuses wrong types later."""
  allowed = alternatives(annotation)
  if bool in allowed and text.lower() in ("true", "false"):
    return text.lower() == "true"
  quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
  if str in allowed and not quoted:
    return None if text == "None" else os.path.expanduser(text)
  try:
    node = ast.parse(_with_dots(text).strip(), mode="eval").body
  except (SyntaxError, ValueError):
    return text
  return _data(annotation, node, where)


def _with_dots(text: str) -> str:
  """Rewrites `module:Class`, as in config.json, to the expression `module.Class`; quoted text is unchanged."""
  return re.sub(r"('[^']*'|\"[^\"]*\")|\b([A-Za-z_][\w.]*):(?=[A-Za-z_])", lambda m: m[1] or f"{m[2]}.", text)


def _data(annotation: Any, node: ast.expr, where: str) -> Any:
  """The plain data of an expression; names are only looked up among the classes that this type allows."""
  classes = classes_of(annotation)
  if classes and isinstance(node, ast.Name | ast.Attribute | ast.Call):
    return _value(classes, node, where)
  item = _item(annotation)
  if item is not None:
    if isinstance(node, ast.Tuple | ast.List):
      return [_data(item, one, f"{where}[{i}]") for i, one in enumerate(node.elts)]
    if not (isinstance(node, ast.Constant) and node.value is None):
      return [_data(item, node, f"{where}[0]")]  # --config.extensions=4
  allowed = alternatives(annotation)
  if isinstance(node, ast.Name):
    if str in allowed:
      return node.id
    if float in allowed and node.id in ("inf", "nan"):
      return float(node.id)
  try:
    value = ast.literal_eval(node)
  except ValueError as error:
    kinds = ", ".join([*classes, *(one.__name__ for one in allowed if isinstance(one, type) and not classes)])
    raise ConfigError(f"{where} is {ast.unparse(node)}; allowed: {kinds.replace('NoneType', 'None')}") from error
  return list(value) if isinstance(value, tuple) else value


def _value(classes: Mapping[str, type[Any]], node: ast.expr, where: str) -> dict[str, Any]:
  """The plain data of `Class` or `Class(...)`."""
  call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
  cls = _named(classes, ast.unparse(call.func), where)
  positional = [field.name for field in dataclasses.fields(cls) if not field.kw_only]
  check(len(call.args) <= len(positional), f"{where}: {cls.__name__} takes {len(positional)} fields without a name")
  given = [*zip(positional, call.args, strict=False), *((keyword.arg, keyword.value) for keyword in call.keywords)]
  hints, data = get_type_hints(cls), {"type": recorded_name(cls)}
  for name, value in given:
    if name is None:
      raise ConfigError(f"{where} is {ast.unparse(node)}; give each field by its name, without **")
    _check_field(cls, name, where)
    check(name not in data, f"{where}.{name} is given twice")
    data[name] = _data(hints[name], value, f"{where}.{name}")
  return data


def _named(classes: Mapping[str, type[Any]], written: str, where: str) -> type[Any]:
  """The class with this name; a user's may be written without its module if the name is unambiguous."""
  module, _, name = written.rpartition(".")
  ends = [recorded for recorded in classes if recorded.rpartition(":")[2] == name] if not module else []
  home = module or ("" if ends or name in classes else owner(name))  # it may define a class of another kind
  recorded = f"{home}:{name}" if home else ends[0] if len(ends) == 1 else name
  return find(classes, recorded, f"{where}.type")

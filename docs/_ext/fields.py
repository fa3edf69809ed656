"""What a dataclass or NamedTuple says of its fields: types and defaults as written, and the comments beside them."""

import ast
import dataclasses
import functools
import inspect
import io
import textwrap
import tokenize
from typing import NamedTuple


class Field(NamedTuple):
  """One field."""

  name: str
  type: str
  default: str  # as it is written; empty where a value must be given
  meaning: str  # the comment behind it, and the lines of comment above it


def fields_of(cls: type) -> list[Field]:
  """The fields that its source names, in their order; a class that sets one again has the say."""
  written = {field.name: field for owner in reversed(cls.__mro__) for field in _written(owner)}
  names = [field.name for field in dataclasses.fields(cls) if field.init] if dataclasses.is_dataclass(cls) else written
  return [written[name] for name in names if name in written]


@functools.cache
def _written(cls: type) -> tuple[Field, ...]:
  if not {"__dataclass_fields__", "_fields"} & vars(cls).keys():
    return ()
  source = textwrap.dedent(inspect.getsource(cls))
  comments, alone = _comments(source)
  (definition,) = ast.parse(source).body
  assert isinstance(definition, ast.ClassDef)
  found = []
  for node in definition.body:
    if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
      continue
    behind = [comments[line] for line in range(node.lineno, (node.end_lineno or 0) + 1) if line in comments]
    above: list[str] = []
    line = node.lineno - 1
    while line in alone:
      above.insert(0, comments[line])
      line -= 1
    found.append(
      Field(node.target.id, ast.unparse(node.annotation), _default(node.value), _sentences(" ".join(above), *behind))
    )
  return tuple(found)


def _comments(source: str) -> tuple[dict[int, str], set[int]]:
  """Comments by line, and the lines that hold nothing else."""
  comments, alone = {}, set()
  for token in tokenize.generate_tokens(io.StringIO(source).readline):
    if token.type == tokenize.COMMENT:
      comments[token.start[0]] = token.string.lstrip("# ").removeprefix("type: ignore[override]").strip()
      if not token.line[: token.start[1]].strip():
        alone.add(token.start[0])
  return comments, alone


def _default(node: ast.expr | None) -> str:
  """The default of `= VALUE`, and of `= dataclasses.field(...)`."""
  if node is None:
    return ""
  if isinstance(node, ast.Call) and ast.unparse(node.func) in ("dataclasses.field", "field"):
    given = {keyword.arg: keyword.value for keyword in node.keywords}
    if "default" in given:
      return ast.unparse(given["default"])
    factory = given.get("default_factory")
    if isinstance(factory, ast.Lambda):
      return ast.unparse(factory.body)
    return "" if factory is None else f"{ast.unparse(factory)}()"
  return ast.unparse(node)


def _sentences(*parts: str) -> str:
  """The parts one behind the other, each a sentence if another follows."""
  said = [part for part in parts if part]
  return " ".join([*(part if part.endswith((".", ":", ";")) else f"{part}." for part in said[:-1]), *said[-1:]])

"""The docstrings of the library as reStructuredText: indented examples are code, Markdown's tables are tables, and
fields have their comments."""

import dataclasses
import itertools
import re
from typing import Any

from fields import fields_of
from sphinx.application import Sphinx
from sphinx.domains.python import PyObject


def with_code_blocks(lines: list[str]) -> list[str]:
  """An indented paragraph below unindented text is an example; Sphinx knows it by the line `::` before."""
  result: list[str] = []
  for index, line in enumerate(lines):
    blank_before = index > 0 and not lines[index - 1].strip()
    if blank_before and line.startswith(" ") and _is_text(result):
      result += ["::", ""]
    result.append(line)
  return result


def with_tables(lines: list[str]) -> list[str]:
  """Tables in Markdown as tables; their second line, of dashes, tells them from line blocks."""
  result: list[str] = []
  for _, group in itertools.groupby(lines, key=lambda line: line.startswith("|")):
    rows = list(group)
    if len(rows) < 3 or not re.fullmatch(r"[|\s:-]+", rows[1]):
      result += rows
      continue
    result += [".. list-table::", "  :header-rows: 1", ""]
    for row in (rows[0], *rows[2:]):
      first, *others = (cell.strip() for cell in row.strip().strip("|").split("|"))
      result += [f"  * - {first}", *(f"    - {cell}" for cell in others)]
    result.append("")
  return result


def with_returns(lines: list[str]) -> list[str]:
  """The section `Returns:` as a field: Napoleon would take what stands before its first colon for a type."""
  result: list[str] = []
  inside = False
  for line in lines:
    if line == "Returns:":
      inside, first = True, True
    elif inside and line.strip() and not line.startswith(" "):
      inside = False
      result += ["", line]
    elif inside and line.strip():
      result.append(f":returns: {line.strip()}" if first else f"  {line.strip()}")
      first = False
    else:
      result.append(line)
  return result


def _is_text(lines: list[str]) -> bool:
  """Whether the last paragraph is text at the margin, that no `::` ends."""
  last = next((line for line in reversed(lines) if line.strip()), "")
  return bool(last) and not last.startswith(" ") and not last.endswith("::")


def _process(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
  lines[:] = with_returns(with_tables(with_code_blocks(lines)))
  if what == "class":
    ours = [
      base for base in obj.__bases__ if base.__module__.startswith("drope_jax") and not base.__name__.startswith("_")
    ]
    if ours:
      named = ", ".join(f":py:class:`~{base.__module__}.{base.__qualname__}`" for base in ours)
      lines[:0] = [f"A subclass of {named}.", ""]
  has_fields = what == "class" and (dataclasses.is_dataclass(obj) or hasattr(obj, "_fields"))
  if has_fields and "Attributes:" not in lines and fields_of(obj):
    lines += ["", "Attributes:"]
    for field in fields_of(obj):
      default = f" Default: `{field.default}`." if field.default else ""
      meaning = f"{_escaped(field.meaning).rstrip('.')}." if field.meaning else ""
      lines.append(f"  {field.name} ({field.type}): {meaning}{default}")


def _escaped(text: str) -> str:
  """Asterisks are asterisks, but for those in code."""
  return re.sub(r"`[^`]*`|\*", lambda found: r"\*" if found[0] == "*" else found[0], text)


def _skip(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
  """Fields of a NamedTuple stand among its attributes; Python documents them as "Alias for field number 0"."""
  return True if (getattr(obj, "__doc__", None) or "").startswith("Alias for field number") else None


def setup(app: Sphinx) -> dict[str, Any]:
  for field_type in PyObject.doc_field_types:
    if field_type.name == "variable":
      field_type.label = "Fields"
  app.connect("autodoc-process-docstring", _process, priority=100)  # before napoleon, which reads the sections
  app.connect("autodoc-skip-member", _skip)
  return {"parallel_read_safe": True, "parallel_write_safe": True}

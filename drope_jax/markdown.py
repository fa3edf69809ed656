"""Text from files and folders (names, licences, labels) within Markdown and YAML, where it is text and nothing else."""

import json
import re

# What has a meaning within a line of Markdown, in CommonMark, GitHub's tables and its mathematics. An underscore within
# a word has none, and neither has an ampersand that begins no entity.
_MARKUP = re.compile(r"[\\`*\[\]<>|~$]|(?<!\w)_|_(?!\w)|&(?=#|\w+;)")
_LINE_START = re.compile(r"^([#+>-]|\d+(?=[.)]))")  # of a heading, an item, a quotation
_CONTROL = re.compile(r"[\x00-\x1f\x7f\u2028\u2029\ud800-\udfff]+")
# What needs no quotes in YAML: a word that is no number and no truth value.
_WORD = re.compile(r"(?!(?:true|false|yes|no|on|off|null|nan)\Z)[A-Za-z][\w.-]*", re.IGNORECASE)


def plain(text: str) -> str:
  """The text in one line, with what Markdown or HTML would take for markup escaped."""
  return _LINE_START.sub(r"\\\1", _MARKUP.sub(lambda found: f"\\{found[0]}", _one_line(text)))


def code(text: str) -> str:
  """The text as a code span, behind more backticks than it has."""
  line = _one_line(text)
  longest = max((len(run) for run in re.findall("`+", line)), default=0)
  fence, pad = "`" * (longest + 1), " " if longest else ""
  return f"{fence}{pad}{line}{pad}{fence}"


def block(text: str) -> str:
  """The text as a block of code, within a fence that is longer than any in it."""
  longest = max((len(run) for run in re.findall("`+", text)), default=0)
  fence = "`" * max(longest + 1, 3)
  return f"{fence}\n{text}\n{fence}"


def yaml(text: str) -> str:
  """The text as a value in YAML, quoted unless it is a plain word."""
  return text if _WORD.fullmatch(text) else json.dumps(text)


def _one_line(text: str) -> str:
  return _CONTROL.sub(" ", text).strip()

"""Escaping text from files and folders (names, licences, labels) for Markdown and YAML."""

import json
import re

# Characters with a meaning within a line of Markdown: in CommonMark, and in GitHub's tables and mathematics.
# Underscores within a word and ampersands that do not begin an entity have none.
_MARKUP = re.compile(r"[\\`*\[\]<>|~$]|(?<!\w)_|_(?!\w)|&(?=#|\w+;)")
_LINE_START = re.compile(r"^([#+>-]|\d+(?=[.)]))")  # begins a heading, a list item or a quotation
_CONTROL = re.compile(r"[\x00-\x1f\x7f\u2028\u2029\ud800-\udfff]+")
# A word that needs no quotes in YAML: neither a number nor a truth value.
_WORD = re.compile(r"(?!(?:true|false|yes|no|on|off|null|nan)\Z)[A-Za-z][\w.-]*", re.IGNORECASE)


def plain(text: str) -> str:
  """The text on one line, with everything escaped that Markdown or HTML would take for markup."""
  return _LINE_START.sub(r"\\\1", _MARKUP.sub(lambda found: f"\\{found[0]}", _one_line(text)))


def code(text: str) -> str:
  """The text as a code span, delimited by more backticks than it contains in a row."""
  line = _one_line(text)
  longest = max((len(run) for run in re.findall("`+", line)), default=0)
  fence, pad = "`" * (longest + 1), " " if longest else ""
  return f"{fence}{pad}{line}{pad}{fence}"


def block(text: str) -> str:
  """The text as a code block, within a fence that is longer than any in the text."""
  longest = max((len(run) for run in re.findall("`+", text)), default=0)
  fence = "`" * max(longest + 1, 3)
  return f"{fence}\n{text}\n{fence}"


def yaml(text: str) -> str:
  """The text as a YAML value, quoted unless it is a plain word."""
  return text if _WORD.fullmatch(text) else json.dumps(text)


def _one_line(text: str) -> str:
  return _CONTROL.sub(" ", text).strip()

"""The pages of the documentation for tests: code blocks with the comments that say how to run them, and links."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
# Pages whose code is run, as readers will type it. CONTRIBUTING.md explains the comments.
RUN = (
  ROOT / "README.md",
  *(path for path in [ROOT / "docs" / "tutorial.md"] if path.exists()),
  *sorted((ROOT / "docs" / "howto").glob("*.md")),
)
ALL = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md")))
PAGES = tuple(path for path in ALL if "_build" not in path.parts and path.exists())
WORDS = ("add", "file", "skip")
FIXTURES = ("text", "llama", "run", "quickstart")


class Block(NamedTuple):
  """A fenced block of code."""

  line: int  # of its fence
  language: str
  code: str
  says: dict[str, str]  # the words of the comment above it, with their values


def blocks_of(path: Path) -> list[Block]:
  """The fenced blocks of a page in order. Fails for a comment that is not understood."""
  found, text = [], path.read_text()
  pattern = re.compile(r"(?:<!-- test:(?P<says>.*?)-->\s*\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.S | re.M)
  for match in pattern.finditer(text):
    line = text.count("\n", 0, match.start("language")) + 1
    says = _says(match["says"] or "", f"{path.name}:{line}")
    found.append(Block(line, match["language"], match["code"], says))
  return found


def _says(comment: str, where: str) -> dict[str, str]:
  said = {}
  for part in filter(None, map(str.strip, comment.split(";"))):
    word, is_set, value = part.partition("=")
    known = word == "continues" if not is_set else word in (*WORDS, *FIXTURES)
    assert known, f"{where}: the comment says {part!r}; see CONTRIBUTING.md"
    said[word] = value
  return said


def commands_in(code: str) -> list[str]:
  """The lines of shell code, those that end in a backslash joined with the next."""
  joined = re.sub(r"\\\n\s*", " ", code)
  return [line.strip() for line in joined.splitlines() if line.strip() and not line.strip().startswith("#")]


def name_of(path: Path) -> str:
  return str(path.relative_to(ROOT))


class Link(NamedTuple):
  """A link of a page to something in the repository."""

  target: Path
  anchor: str


def links_of(path: Path) -> list[Link]:
  """The relative links of a page, including pictures, without those in code."""
  text = re.sub(r"^```.*?^```$|`[^`\n]*`", "", path.read_text(), flags=re.S | re.M)
  text = re.sub(r"\\\[", "", text)
  found = []
  for target in re.findall(r"\]\(<?([^)\s>]+)>?\)", text):
    if not re.match(r"[a-z]+:", target):
      file, _, anchor = target.partition("#")
      found.append(Link((path.parent / file).resolve() if file else path, anchor))
  for listed in re.findall(r"^```\{toctree\}\n(.*?)^```$", path.read_text(), re.S | re.M):
    names = [line for line in listed.splitlines() if line and not line.startswith(":")]
    found += [Link(path.parent / f"{name}.md", "") for name in names if (path.parent / f"{name}.md").exists()]
  return found


def anchors_of(path: Path) -> set[str]:
  """The anchors of a page's headings, as GitHub and MyST make them."""
  text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.S | re.M)
  titles = [re.sub(r"[`*]|\]\([^)]*\)|\[", "", title).strip() for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE)]
  return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}

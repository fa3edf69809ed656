"""A corpus that needs no download: the docstrings of the packages that this library depends on.

They are read with `ast`, so nothing is imported.
"""

import ast
import contextlib
import gc
import hashlib
import importlib.util
import pydoc_data.topics
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

PACKAGES = (
  "jax",
  "numpy",
  "scipy",
  "flax",
  "optax",
  "orbax",
  "grain",
  "tensorflow_datasets",
  "rich",
  "absl",
  "etils",
)
MIN_CHARACTERS = 200  # modules with shorter docstrings are skipped


def gather(packages: Iterable[str] = PACKAGES) -> list[str]:
  """The documents: one per module with docstrings, then Python's own help topics.

  A document is a title (the module's name) and the module's docstrings in source order, joined by blank lines. A
  docstring that several modules share is only kept in the first one. Tests are skipped.

  Returns:
    Documents of at least MIN_CHARACTERS characters, in the same order for the same installed versions.

  Raises:
    ModuleNotFoundError: naming a package that is not installed.
  """
  seen: set[str] = set()
  texts = []
  with _no_garbage_collection():
    for package in packages:
      for title, path in _modules(package):
        new = [docstring for docstring in dict.fromkeys(_docstrings(path)) if docstring not in seen]
        seen.update(new)
        texts.append((title, "\n\n".join(new)))
  texts += sorted(pydoc_data.topics.topics.items())
  return [f"{title}\n\n{text.strip()}" for title, text in texts if len(text) >= MIN_CHARACTERS]


def split_held_out(documents: Iterable[str], share: float = 0.1) -> tuple[list[str], list[str]]:
  """Splits documents into those for training and those held out, about `share` of all.

  The split of a document only depends on its text, so it does not change when others are added or removed.
  """
  train: list[str] = []
  held_out: list[str] = []
  for document in documents:
    digest = hashlib.sha256(document.encode()).digest()
    (held_out if int.from_bytes(digest[:8], "big") < share * 2**64 else train).append(document)
  return train, held_out


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
  """Turns garbage collection off: syntax trees have no cycles, and searching for them would double the time."""
  enabled = gc.isenabled()
  gc.disable()
  try:
    yield
  finally:
    if enabled:
      gc.enable()


def _modules(package: str) -> Iterator[tuple[str, Path]]:
  """Dotted names and files of a package's modules; a namespace package may lie in several places."""
  spec = importlib.util.find_spec(package)
  if spec is None or spec.submodule_search_locations is None:
    raise ModuleNotFoundError(f"no package {package!r} is installed; its docstrings were asked for", name=package)
  for location in spec.submodule_search_locations:
    for path in sorted(Path(location).rglob("*.py")):
      parts = (package, *path.relative_to(location).with_suffix("").parts)
      if "tests" not in parts and not parts[-1].endswith("_test"):
        yield ".".join(parts).removesuffix(".__init__"), path


def _docstrings(path: Path) -> list[str]:
  try:
    with warnings.catch_warnings(action="ignore", category=SyntaxWarning):  # invalid escapes, not ours to mend
      tree = ast.parse(path.read_bytes())
  except SyntaxError:  # a template, or a module for another version of Python
    return []
  return list(_walk(tree))


def _walk(node: ast.AST) -> Iterator[str]:
  """Docstrings below `node` in source order; only statements are searched, because expressions have none."""
  if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
    docstring = (ast.get_docstring(node) or "").strip()
    if docstring:
      yield docstring
  for block in ("body", "handlers", "orelse", "finalbody"):
    for statement in getattr(node, block, ()):
      yield from _walk(statement)

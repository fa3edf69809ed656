"""Documentation strings as documents."""

import sys

import pytest

from drope_jax.data.docstrings import MIN_CHARACTERS, gather, split_held_out

LONG = "It explains itself at length. " * 10


@pytest.fixture
def package(tmp_path, monkeypatch):
  """A package with a documented module, one that repeats it, a short one, a broken one and a test."""
  root = tmp_path / "sample_package"
  (root / "tests").mkdir(parents=True)
  (root / "__init__.py").write_text(f'"""Top. {LONG}"""\nraise ImportError("imported")\n')
  (root / "b.py").write_text(
    f'"""Module b.\n\n{LONG}"""\nif True:\n  class First:\n    """A class."""\n'
    f'    def f(self):\n      """Shared. {LONG}"""\n'
    'def last():\n  """The last."""\n'
  )
  (root / "c.py").write_text(f'"""Module c. {LONG}"""\ndef g():\n  """Shared. {LONG}"""\n')
  (root / "short.py").write_text('"""Short."""')
  (root / "broken.py").write_text("def {{ template }}")
  (root / "tests" / "d.py").write_text(f'"""{LONG}"""')
  monkeypatch.syspath_prepend(tmp_path)
  return "sample_package"


def test_a_document_for_each_module(package):
  documents = [document for document in gather([package]) if document.startswith(package)]
  titles = [document.split("\n\n")[0] for document in documents]
  assert titles == [package, f"{package}.b", f"{package}.c"]
  expected = [f"{package}.b", "Module b.", LONG.strip(), "A class.", f"Shared. {LONG.strip()}", "The last."]
  assert documents[1].split("\n\n") == expected
  assert "Shared" not in documents[2]
  assert package not in sys.modules


def test_namespace_package_and_help_topics():
  documents = gather(["orbax"])
  assert any(document.startswith("orbax.checkpoint.") for document in documents)
  assert any(document.startswith("assert\n\n") for document in documents)
  assert all(len(document) > MIN_CHARACTERS for document in documents)


def test_missing_package_is_an_error_naming_it():
  with pytest.raises(ModuleNotFoundError, match="'no_such_package'"):
    gather(["no_such_package"])


def test_held_out_share_and_stability():
  documents = [f"document {i}" for i in range(2000)]
  train, held_out = split_held_out(documents, 0.1)
  assert sorted(train + held_out) == sorted(documents)
  assert 150 < len(held_out) < 250
  assert set(split_held_out(documents[::3], 0.1)[1]) <= set(held_out)

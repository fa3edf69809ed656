"""`--import`: a user's code by module name or file. Each case runs in a process of its own."""

import json
import re

import jax
import pytest

from drope_jax.cli import modules
from drope_jax.errors import ConfigError

VALUE = """
import dataclasses
from drope_jax.transitions import Transition

@dataclasses.dataclass(unsafe_hash=True)
class Sink(Transition):
  depth: int = 1
"""
PROGRAM = "tests.support.flags_program"


def test_files_and_modules_are_one_class_by_one_name(command, tmp_path):
  (tmp_path / "sinks.py").write_text(VALUE)
  package = tmp_path / "elsewhere" / "mine"
  package.mkdir(parents=True)
  (package / "__init__.py").touch()
  (package / "deep.py").write_text("from mine import other\n" + VALUE)
  (package / "other.py").touch()
  ended = command(PROGRAM, *(f"--import={text}" for text in (tmp_path / "sinks.py", "sinks", package / "deep.py")))
  assert ended.status == 0, ended.stderr
  assert json.loads(ended.stdout)[-1] == ["sinks:Sink", "mine.deep:Sink"]


@pytest.mark.parametrize(
  ("name", "content", "named"),
  [
    ("absent.py", None, ["absent.py", "no such file"]),
    ("no_such_module", None, ["no_such_module"]),
    ("no_such_package.part", None, ["no_such_package.part"]),
    ("random.py", VALUE, ["random.py", "rename"]),
    ("broken.py", "x = 1\ny = x / 0\n", ["broken.py", "line 2", "ZeroDivisionError"]),
    ("wrong.py", "def f(:\n", ["wrong.py", "SyntaxError"]),
    ("needs.py", "import no_such_library\n", ["needs.py", "no_such_library"]),
  ],
)
def test_what_cannot_be_imported_is_one_line(command, tmp_path, name, content, named):
  if content is not None:
    (tmp_path / name).write_text(content)
  ended = command(PROGRAM, f"--import={tmp_path / name if name.endswith('.py') else name}")
  assert ended.status == 2
  assert all(part in ended.error() for part in ["--import", *named]), ended.stderr


MISTAKEN = """
import jax.numpy as jnp

def branches(x):
  if x.sum() > 0:
    return x

def adds(x):
  return x + jnp.ones(7)
"""


def test_a_mistake_in_a_users_code_is_one_line_with_its_place(tmp_path, monkeypatch):
  (tmp_path / "mistaken.py").write_text(MISTAKEN)
  user = modules.load(str(tmp_path / "mistaken.py"), "--import")
  for function, line, said in (
    (user.branches, 5, "TracerBoolConversionError: Attempted boolean conversion of traced array"),
    (user.adds, 9, r"\w+Error: .*shapes"),
  ):
    with pytest.raises(modules.FAULTS) as caught:
      jax.jit(function)(jax.numpy.ones(3))
    found = modules.blamed(caught.value)
    assert re.fullmatch(rf"{tmp_path}/mistaken.py, line {line}, in {function.__name__}: {said}.*TRACEBACKS=on.*", found)
    with monkeypatch.context() as patch:
      patch.setenv(modules.TRACEBACKS, "on")
      assert modules.blamed(caught.value) is None


def test_a_mistake_of_ours_keeps_its_traceback():
  with pytest.raises(ZeroDivisionError) as caught:
    _ = 1 / 0
  assert modules.blamed(caught.value) is None


WITHOUT = "def get_config():\n  return 1\n"


@pytest.mark.parametrize(
  ("content", "argument", "said"),
  [
    (WITHOUT, ":mini", r"has one config, without sizes or variants; leave out ':mini'$"),
    (WITHOUT, ":", "leave out ':'$"),
    ("def get_config(arg):\n  return len(1)\n", ":mini", r"line 2: TypeError: object of type 'int' has no len\(\)$"),
    ("def get_config():\n  return get_config(1)\n", "", r"line 2: TypeError: get_config\(\) takes 0 positional"),
    ("def get_config(arg):\n  return arg\n", "", r"TypeError: get_config\(\) missing 1 required"),
    ("def get_config(*, arg=1):\n  return arg\n", ":mini", "leave out ':mini'$"),
  ],
)
def test_an_argument_that_a_config_file_does_not_take_is_named(tmp_path, content, argument, said):
  file = tmp_path / f"{tmp_path.name}.py"  # a name of its own, since modules stay imported
  file.write_text(content)
  with pytest.raises(ConfigError, match=rf"^--config: {file}:? .*{said}"):
    modules.get_config(f"{file}{argument}", "--config")


@pytest.mark.parametrize("argument", ["", ":mini"])
def test_a_config_file_may_take_an_argument_or_not(tmp_path, argument):
  file = tmp_path / f"{tmp_path.name}.py"
  file.write_text("def get_config(arg='none'):\n  return arg\n")
  assert modules.get_config(f"{file}{argument}", "--config") == (argument[1:] or "none")

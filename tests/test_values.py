"""Values of a user's classes: found again by name, or refused with what to do."""

import pytest

from drope_jax.errors import ConfigError
from drope_jax.transitions import Transition
from drope_jax.values import check_found_again, find, is_recorded_name, members


class Undecorated(Transition):
  """No dataclass."""


@pytest.mark.parametrize("name", ["__main__:Sink", "mine:make.<locals>.Sink"])
def test_a_class_that_no_other_program_can_import_is_refused(name):
  config = {"type": "TrainConfig", "init": {"type": "InitConfig", "transitions": [{"type": name}]}}
  with pytest.raises(ConfigError, match=r"init.transitions\[0\] is of class .*Sink"):
    check_found_again(config)
  check_found_again({"type": "TrainConfig", "init": {"type": "mine:Sink"}})


@pytest.mark.parametrize("name", ["Undecorated", f"{__name__}:Undecorated"])
def test_a_class_that_is_no_dataclass_is_named_as_such(name):
  with pytest.raises(ConfigError, match="not a dataclass"):
    find(members(Transition), name, "transition")


class Stray:
  """It derives from no kind."""


def test_a_class_of_no_kind_is_told_what_to_derive_from():
  with pytest.raises(ConfigError, match=f"{__name__}:Stray', which does not derive from Transition"):
    find(members(Transition), f"{__name__}:Stray", "transition")


def test_an_unknown_name_may_be_a_class_that_is_not_imported():
  with pytest.raises(ConfigError, match=r"allowed: Keep, .*--import=PATH.py"):
    find(members(Transition), "Mine", "transition")


def test_a_class_that_is_not_imported_may_be_imported_by_module_or_file():
  with pytest.raises(ConfigError, match=r"--import=mine, or its file: --import=PATH.py"):
    find(members(Transition), "mine:Sink", "transition")


def test_what_is_a_recorded_name():
  assert is_recorded_name("mine:Sink")
  assert not any(map(is_recorded_name, (":", "mine:", ":Sink", "Sink", None, 3)))

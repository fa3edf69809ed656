"""All tasks by name: those of this package, and those of other modules that were imported."""

from collections.abc import Sequence

from drope_jax.errors import ConfigError
from drope_jax.evaluate.eval_data import EvalData
from drope_jax.evaluate.task import Task

# Imported so that they are members of Task.
from drope_jax.evaluate.tasks import (  # noqa: F401
  copying,
  longbench,
  loops,
  multiple_choice,
  needles,
  order,
  perplexity,
  ruler,
)
from drope_jax.values import find, is_recorded_name, members, recorded_name

DEFAULT = ("perplexity", "needles")


def task_classes() -> dict[str, list[type[Task]]]:
  """The classes that create a task, by its name; there should be one per name."""
  found: dict[str, list[type[Task]]] = {}
  for cls in members(Task).values():
    for name in cls.names():
      found.setdefault(name, []).append(cls)
  return found


def task_groups() -> dict[str, tuple[str, ...]]:
  """The names of groups, with the names of their tasks."""
  found: dict[str, tuple[str, ...]] = {}
  for cls in members(Task).values():
    for group, names in cls.groups().items():
      found[group] = (*found.get(group, ()), *names)
  return found


def allowed_names() -> str:
  """The groups, and the tasks without a group, for messages and help."""
  groups = task_groups()
  grouped = {name for names in groups.values() for name in names}
  alone = [name for name in task_classes() if name not in grouped]
  return ", ".join([*alone, *groups]) + ", or one of a group, as niah_single_1"


def make_tasks(names: Sequence[str], data: EvalData) -> list[Task]:
  """The tasks with these names, without duplicates.

  Args:
    names: of tasks or groups; `module:Class` stands for all tasks of a class, whose module has been imported.

  Raises:
    ConfigError: for an unknown or ambiguous name, or if data that a task needs is missing.
  """
  groups = task_groups()
  makers: dict[str, type[Task]] = {}
  for name in names:
    if is_recorded_name(name):
      makers |= _of_class(name)
    else:
      makers |= {single: _class_of(single) for single in groups.get(name, (name,))}
  return [cls.make(name, data) for name, cls in makers.items()]


def _of_class(recorded: str) -> dict[str, type[Task]]:
  """The tasks of the class `module:Class`."""
  cls: type[Task] = find(members(Task), recorded, "task")
  if not cls.names():
    raise ConfigError(f"task is {recorded!r}, whose class has no `name`")
  return dict.fromkeys(cls.names(), cls)


def _class_of(name: str) -> type[Task]:
  found = task_classes().get(name, [])
  if not found:
    raise ConfigError(f"task is {name!r}; allowed: {allowed_names()}")
  if len(found) > 1:
    raise ConfigError(
      f"task is {name!r}, which {' and '.join(map(recorded_name, found))} share: name it as module:Class"
    )
  return found[0]

"""The base class of tasks: something that can be measured for a model at a length.

A user's task is a dataclass that derives from `Task`, in a file of their own:

    @dataclasses.dataclass(frozen=True)
    class Parity(Task):
      name = "parity"

      def measure(self, subject, length):
        return [mean_figure("accuracy", ...)]

Once its module is imported, `--tasks=parity` or `--tasks=module:Parity` measures it, and reports show it.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

from drope_jax.errors import ConfigError
from drope_jax.evaluate.figures import Figure
from drope_jax.evaluate.subject import Subject
from drope_jax.values import Value

if TYPE_CHECKING:  # a circular import
  from drope_jax.evaluate.eval_data import EvalData


class Task(Value):
  """The base of every task; its members are dataclasses."""

  name: str  # as on the command line and in results.jsonl
  about: ClassVar[str] = ""  # for readers of a report: what is measured, and the chance level
  bounded: ClassVar[bool] = True  # whether sequences are as long as the length that is measured, see `measure`

  @classmethod
  def names(cls) -> tuple[str, ...]:
    """The names of the tasks that `make` creates: by default the class's own `name`."""
    name = getattr(cls, "name", None)
    return (name,) if isinstance(name, str) else ()

  @classmethod
  def groups(cls) -> Mapping[str, tuple[str, ...]]:
    """Names of groups, with the names of their tasks. A group may have tasks of several classes."""
    return {}

  @classmethod
  def make(cls, name: str, data: "EvalData") -> Self:
    """The task with one of `names`. Raises ConfigError if `data` lacks something that it needs."""
    return cls()

  def settings(self, length: int) -> dict[str, Any]:
    """What else the figures at `length` depend on, as JSON data: other settings are another measurement."""
    return {}

  def check(self, length: int, crop: int | None) -> None:
    """Raises ConfigError if it cannot be measured at `length` tokens, if the model only sees the last `crop`."""

  def measure(self, subject: Subject, length: int) -> list[Figure]:
    """The figures, the main one first.

    If `bounded`, no sequence is longer than `length` tokens, apart from a BOS and, after a prompt of `length` tokens,
    a short answer (`needles`).
    """
    raise NotImplementedError


def check_room(name: str, length: int, crop: int | None, needed: int) -> None:
  """Raises ConfigError unless more than `needed` tokens of a sequence are seen, also by a cropped model."""
  seen = min(length, crop or length)
  if seen <= needed:
    raise ConfigError(f"{name} at {length} tokens: {seen} of them are seen; it needs more than {needed}")

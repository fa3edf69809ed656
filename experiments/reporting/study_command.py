"""The study that a command runs: its name, which is that of its file, and its size."""

import re
from typing import NamedTuple

_PATTERNS = (
  r"experiments\.study\b.*?--config[= ]'?(?:\S*/)?(\w+)\.py(?::(\w+))?",
  r"one_gpu\.sh (\w+)(?::(\w+))?",
)


class StudyCommand(NamedTuple):
  """What a command runs; both are empty for a command that runs no study, `size` also for a study without sizes."""

  name: str
  size: str


def parse(command: str) -> StudyCommand:
  """Reads a command of `experiments.study` or of experiments/launch/one_gpu.sh."""
  for pattern in _PATTERNS:
    if found := re.search(pattern, command):
      return StudyCommand(found[1], found[2] or "")
  return StudyCommand("", "")

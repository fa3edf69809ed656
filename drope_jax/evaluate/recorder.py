"""Recording measured figures: in results.jsonl, and the answers to samples in a folder beside it."""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path

from drope_jax.evaluate import results
from drope_jax.evaluate.figures import Figure
from drope_jax.evaluate.results import Measurement, Result
from drope_jax.evaluate.samples import SampleLog, fingerprint


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recorder:
  """Appends figures to a results.jsonl, with what all records of one evaluation share."""

  path: Path  # of results.jsonl; answers to samples go into `samples/` beside it
  train_context: int  # tokens
  command: str = ""

  def write(self, measurement: Measurement, figures: Iterable[Figure]) -> None:
    """Appends the figures of one measurement."""
    shared = {**vars(measurement), "extension": measurement.context / self.train_context, "command": self.command}
    results.append(self.path, [Result(**shared, **figure._asdict()) for figure in figures])

  def log_of(self, one: Measurement) -> SampleLog:
    """The log of the answers of one measurement; its file name holds a fingerprint of the settings."""
    settings = fingerprint([json.dumps(one.settings, sort_keys=True)])
    name = ".".join(map(str, (one.run, one.method, one.task, one.context, one.seed, settings))).replace("/", "-")
    return SampleLog(self.path.parent / "samples" / f"{name}.jsonl")

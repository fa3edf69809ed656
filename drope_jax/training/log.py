"""The log of a run: its first lines, and the records of its steps."""

import logging
import math
import time
from collections.abc import Iterator
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh

from drope_jax import distributed, metrics
from drope_jax.data.pipeline import estimated_size
from drope_jax.data.tokenizers import Tokenizer
from drope_jax.model_config import compute_dtype
from drope_jax.optim import learning_rate
from drope_jax.parameters import count_parameters
from drope_jax.serialization import to_dict
from drope_jax.training.health import Ruined, check
from drope_jax.training.run import Run

logger = logging.getLogger(__name__)


def introduce(run: Run, tokenizer: Tokenizer, mesh: Mesh) -> None:
  """Logs one line each about the model, the devices and the data."""
  config, model = run.config, run.model
  axes = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1) or "one device"
  positions = f"positions {model.positions}"
  if config.init is not None and run.trained != model:
    positions += f", reached from {run.trained.positions} by {config.init.transition}"
  logger.info("model: %s parameters in %d layers, %s", f"{count_parameters(model):,}", model.num_layers, positions)
  logger.info("devices: %s; mesh: %s", distributed.describe(), axes)
  logger.info("data: %s", describe_data(run, tokenizer))


def describe_data(run: Run, tokenizer: Tokenizer) -> str:
  """The size of the data, estimated from some documents, and how many epochs the run reads."""
  data = run.config.data
  documents, tokens = estimated_size(data, tokenizer)
  read = run.config.steps * data.batch_size * data.context
  where = f"{data.directory} ({data.split})" if data.source is None else str(data.source)
  return (
    f"{documents:,} documents in {where}, about {tokens:,.0f} tokens; "
    f"{run.config.steps:,} steps read {read:,}, which is {read / tokens:.2g} epochs"
  )


def announce_compilation(run: Run, heldout: str | None) -> None:
  """Logs what is compiled next, which may take minutes."""
  config, compute = run.config, run.config.compute
  what = f"{config.data.batch_size // config.optim.accumulation} x {config.data.context} tokens"
  times = f" in {config.optim.accumulation} micro-batches" if config.optim.accumulation > 1 else ""
  logger.info(
    "compiling: the train step (%s%s, %s, attention %s, objective %s)%s",
    what,
    times,
    compute_dtype(compute),
    compute.attention,
    config.objective,
    f"; the held-out loss ({heldout})" if heldout else "",
  )


class TrainLog:
  """Writes the records of a run: metrics.jsonl, the trackers, and the progress line.

  Reports of steps stay on the devices until a record is written, so that the host does not wait for each step.
  """

  def __init__(self, run: Run, workdir: epath.Path, step: int, tokens: int, seconds: float, skipped: int = 0):
    """Args: the step that the run continues from, and its tokens, seconds and skipped updates so far."""
    config = run.config
    self._run = run
    self.tokens, self.skipped, self._clock = tokens, skipped, _Clock(seconds)
    self.reports: list[dict[str, Any]] = []  # of the steps of the last record, copied to this host
    self._schedule = learning_rate(config.optim, config.steps)
    self._pending: list[dict[str, Any]] = []
    self._waits: list[float] = []  # seconds, one per step that is not recorded yet
    self._trackers: list[metrics.Tracker] = []
    if jax.process_index() == 0:
      self._trackers = metrics.open_trackers(config.trackers, workdir, to_dict(config), step)

  @property
  def seconds(self) -> float:
    """Seconds of training, over all starts of the run."""
    return self._clock.total

  def wait_for(self, data: Iterator[Any]) -> Any:
    """The next batch of this host; the time waited for it goes into the next record."""
    start = time.monotonic()
    batch = next(data)
    self._waits.append(time.monotonic() - start)
    return batch

  def add(self, report: dict[str, Any]) -> None:
    """Adds the report of a dispatched step to the next record."""
    self._pending.append(report)

  def evaluated(self, records: list[dict[str, Any]], elapsed: float) -> None:
    """Writes records of the held-out loss, whose time does not count for the speed of training."""
    self._clock.leave_out(elapsed)
    tokens = self.tokens + round(sum(float(report["tokens"]) for report in self._pending))
    self._write([{"step": record["step"], "tokens": tokens, **record} for record in records])
    losses = "  ".join(f"{record['extension']}x {record['loss']:.3f}" for record in records)
    logger.info("step %d/%d  held-out loss  %s", records[0]["step"], self._run.config.steps, losses)

  def write(self, step: int) -> None:
    """Writes the record of the steps since the last record, up to `step`; losses are averaged over tokens.

    Raises:
      Ruined: if the loss or the gradient of a step is not finite (or far too large), and was not skipped.
    """
    self.reports, self._pending = jax.device_get(self._pending), []
    if not self.reports:
      return
    data_seconds = self._mean_wait(len(self.reports))
    self._check_steps(step)
    done = [report for report in self.reports if not report.get("skipped")]
    tokens = [float(report["tokens"]) for report in done]
    read = sum(float(report["tokens"]) for report in self.reports)
    self.tokens += round(read)
    elapsed = self._clock.lap()  # also without a record: the speed in the next one is that of its own steps
    if not done:
      return
    if not sum(tokens):  # only documents of one token, with a document mask: there is no loss
      logger.warning("the %d steps up to step %d had nothing to predict", len(done), step)
      return
    loss, grad_norm = _mean([report["loss"] for report in done], tokens), float(done[-1]["grad_norm"])
    # The first lap is mostly compilation: it counts as time, but says nothing about speed.
    speed = None if self._clock.laps == 1 else read / elapsed
    record = {
      "step": step,
      "tokens": self.tokens,
      "loss": loss,
      "grad_norm": grad_norm,
      "learning_rate": float(self._schedule(step - 1 - self.skipped)),  # skipped updates do not advance the schedule
      "tokens_per_second": speed,
      "mfu": None if speed is None else metrics.mfu(speed, self._flops_per_token(step, len(self.reports))),
      "seconds": self.seconds,
      "data_seconds": data_seconds,
    }
    if self._run.config.skip_updates:
      record["skipped_updates"] = self.skipped
    for name in done[0]["metrics"]:
      record[name] = _mean_where_computed([report["metrics"][name] for report in done], tokens)
    record |= {name: float(norm) for name, norm in done[-1]["norms"].items()}
    self._write([record])
    config = self._run.config
    eta = None if speed is None else (config.steps - step) * read / len(self.reports) / speed
    if jax.process_index() == 0:
      logger.info(metrics.progress_line(record, config.steps, eta))

  def _check_steps(self, step: int) -> None:
    """Counts and logs skipped updates. Raises Ruined at the first step that is ruined and was not skipped."""
    allowed = self._run.config.skip_updates
    for number, report in enumerate(self.reports, step - len(self.reports) + 1):
      loss, grad_norm = float(report["loss"]), float(report["grad_norm"])
      if report.get("skipped") and self.skipped < allowed:
        self.skipped += 1
        logger.warning(
          "the update of step %d is skipped: loss %.3g, gradient norm %.3g (%d of %d, TrainConfig.skip_updates)",
          *(number, loss, grad_norm, self.skipped, allowed),
        )
        continue
      # The loss is computed before the update, so it may be finite although the gradient is not.
      check("loss", loss, number)
      check("gradient norm", grad_norm, number)
      if report.get("skipped"):
        raise Ruined(f"the update of step {number} is not finite", number)

  def close(self) -> None:
    for tracker in self._trackers:
      tracker.close()

  def _mean_wait(self, count: int) -> float:
    """Seconds that this host waited for data, per step, over the next `count` steps to be recorded."""
    waits, self._waits = self._waits[:count], self._waits[count:]
    return sum(waits) / count

  def _flops_per_token(self, step: int, count: int) -> float:
    """The mean over the `count` steps up to `step`, including a teacher's forward passes."""
    run, config = self._run, self._run.config
    steps = range(step - count, step)
    return metrics.objective_flops_per_token(
      config.objective, run.model, run.teacher, config.data.context, steps, config.steps
    )

  def _write(self, records: list[dict[str, Any]]) -> None:
    for record in records:
      for tracker in self._trackers:
        tracker.write(record)


def _mean(values: list[Any], weights: list[float]) -> float:
  return sum(float(value) * weight for value, weight in zip(values, weights, strict=True)) / sum(weights)


def _mean_where_computed(values: list[Any], weights: list[float]) -> float | None:
  """The mean over the steps that computed this metric (it is NaN at others); None if no step did."""
  found = [(value, weight) for value, weight in zip(values, weights, strict=True) if not math.isnan(value)]
  return _mean(*map(list, zip(*found, strict=True))) if sum(weight for _, weight in found) else None


class _Clock:
  """Seconds of training, over all starts of the run, and since the last lap."""

  def __init__(self, before: float):
    self._before, self._start = before, time.monotonic()
    self._last, self.laps = self._start, 0

  @property
  def total(self) -> float:
    return self._before + time.monotonic() - self._start

  def leave_out(self, elapsed: float) -> None:
    """Excludes seconds of the current lap that were not training."""
    self._last += elapsed

  def lap(self) -> float:
    """Seconds since the last lap; starts the next one."""
    now = time.monotonic()
    elapsed, self._last = now - self._last, now
    self.laps += 1
    return elapsed

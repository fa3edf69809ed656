"""What a run reports: FLOPs and MFU, metrics.jsonl, optional trackers, and the line that a person reads."""

import contextlib
import datetime
import importlib.util
import json
import logging
import math
import os
import sys
import uuid
from collections.abc import Iterator
from typing import Any, Protocol

import jax
from etils import epath

from drope_jax.errors import ConfigError
from drope_jax.files import is_local, lines_of, replace_whole, writing
from drope_jax.model_config import ModelConfig
from drope_jax.objective import Objective
from drope_jax.parameters import map_specs
from drope_jax.platforms import PEAK_FLOPS

logger = logging.getLogger(__name__)


def flops_per_token(config: ModelConfig, context: int, convention: str = "palm") -> float:
  """FLOPs of forward and backward for one token in a row of `context` tokens.

  6 N + 12 * layers * H * h * T (PaLM, appendix B); "causal" halves the attention term, which is what a kernel that
  skips the masked half computes. N counts the matrices that multiply: the unembedding, but not the embedding lookup.
  """
  if convention not in ("palm", "causal"):
    raise ValueError(f"convention is {convention!r}; allowed: palm, causal")
  sizes = map_specs(lambda spec: math.prod(spec.shape) if spec.decay else 0, config)
  multiplied = sum(jax.tree.leaves(sizes)) - (0 if config.tie_embeddings else sizes["embedding"])
  attention = 12 * config.num_layers * config.num_heads * config.head_dim * context
  return 6 * multiplied + attention * (1 if convention == "palm" else 0.5)


def objective_flops_per_token(
  objective: Objective,
  model: ModelConfig,
  teacher: ModelConfig | None,
  context: int,
  steps: range,
  of: int,
  convention: str = "palm",
) -> float:
  """`flops_per_token` of training `model`, and of the objective's further forward passes: the mean of these steps.

  Args:
    teacher: whose forward passes they are; None: the model's own.
    steps: which steps, of the `of` steps of the run.
  """
  further = sum(objective.extra_forwards(step, of) for step in steps) / len(steps)
  own = flops_per_token(model, context, convention)
  return own + further * (own if teacher is None else flops_per_token(teacher, context, convention)) / 3


def mfu(tokens_per_second: float, flops: float) -> float | None:
  """Model FLOPs utilisation of all devices of the run, or None where the device's peak is not known (a CPU)."""
  peak = PEAK_FLOPS.get(jax.devices()[0].device_kind)
  return None if peak is None else tokens_per_second * flops / (peak * jax.device_count())


# `kind` of a record that is not of training steps: the held-out loss at one extension.
EVAL = "eval"


def is_training(record: dict[str, Any]) -> bool:
  """Whether a record of metrics.jsonl is of training steps; the others say in `kind` what they are."""
  return "kind" not in record


def _scalars(record: dict[str, Any]) -> dict[str, float]:
  """The numbers of a record by the names that trackers draw them under."""
  if is_training(record):
    return {name: value for name, value in record.items() if name != "step" and value is not None}
  return {f"{record['split']}/loss_{record['extension']}x": record["loss"]}


class Tracker(Protocol):
  """A sink of metric records."""

  def write(self, record: dict[str, Any]) -> None: ...

  def close(self) -> None: ...


class JsonLines:
  """One record per line. Records after `step` are dropped on opening: a resumed run writes them again.

  The file is then replaced whole, so that a crash leaves the old one. A line that is not the record of a step is
  dropped too, with a warning that names it.

  In a bucket, where nothing can be appended, the whole file is written again for every record: some 200 bytes of each
  logged step, in one request.

  Raises:
    FileError: naming the file that cannot be read or written, as on a full disk.
  """

  def __init__(self, path: epath.PathLike, step: int):
    self._path = epath.Path(path)
    # Before the first checkpoint nothing counts: the run evaluates its start again.
    self._lines = list(_lines_up_to(self._path, step)) if step and self._path.exists() else []
    with writing(self._path):
      if self._path.exists():
        replace_whole(self._path, "".join(self._lines))
      self._file = self._path.open("a") if is_local(path) else None

  def write(self, record: dict[str, Any]) -> None:
    line = json.dumps(record) + "\n"
    with writing(self._path):
      if self._file is None:
        self._lines.append(line)
        self._path.write_text("".join(self._lines))
      else:
        self._file.write(line)
        self._file.flush()

  def close(self) -> None:
    if self._file is not None:
      with writing(self._path):
        self._file.close()


def _lines_up_to(path: epath.Path, step: int) -> Iterator[str]:
  """The lines of metrics.jsonl that are records of steps up to `step`, as they are; others are named in a warning."""
  for line in lines_of(path):
    try:
      at = line.record()["step"]
      if isinstance(at, int) and not isinstance(at, bool) and at >= 0:
        if at <= step:
          yield line.content.decode() + "\n"
        continue
      said = f"its step is {at!r}"
    except (KeyError, TypeError, IndexError):
      said = "it is no object with a step"
    except ValueError as error:
      said = str(error)
    logger.warning("%s:%d: not the record of a step, and left out (%s)", path, line.number, said)


class TensorBoard:
  """Event files through tensorboardX, which itself writes to gs:// and s3:// where their client library is there.

  TensorBoard no longer shows what an interrupted run has written of the steps after `step`.
  """

  def __init__(self, directory: epath.Path, step: int):
    with _hidden("torch"):  # tensorboardX imports it where it is installed, for seconds, and scalars do not need it
      from tensorboardX import SummaryWriter  # optional

    # Before the first checkpoint not even the evaluation of the start counts.
    self._writer = SummaryWriter(str(directory), purge_step=step + 1 if step else 0)

  def write(self, record: dict[str, Any]) -> None:
    for name, value in _scalars(record).items():
      self._writer.add_scalar(name, value, record["step"])

  def close(self) -> None:
    self._writer.close()


@contextlib.contextmanager
def _hidden(module: str) -> Iterator[None]:
  """Importing `module` fails here, as if it were not installed, unless it is imported already."""
  if module in sys.modules:
    yield
    return
  sys.modules[module] = None  # type: ignore[assignment]  # Python's own way of saying so
  try:
    yield
  finally:
    del sys.modules[module]


class WandB:
  """A Weights & Biases run named after the workdir, which holds its id: later starts go on in the same run.

  W&B ignores the records of steps that it has already: what an interrupted run wrote after its last checkpoint stays.
  """

  def __init__(self, workdir: epath.Path, config: dict[str, Any]):
    import wandb  # optional

    known = workdir / "wandb_id"
    if not known.exists():
      known.write_text(uuid.uuid4().hex + "\n")
    local = str(workdir) if is_local(workdir) else None  # None: wandb's own choice
    self._run = wandb.init(
      dir=local, name=workdir.name, config=config, id=known.read_text().strip(), resume="allow", allow_val_change=True
    )

  def write(self, record: dict[str, Any]) -> None:
    self._run.log({"step": record["step"], **_scalars(record)}, step=record["step"])

  def close(self) -> None:
    self._run.finish()


# The library through which tensorboardX writes to a bucket, by the beginning of its address.
_BUCKET_CLIENTS = {"gs": "google.cloud.storage", "s3": "boto3"}


def _can_write_events(workdir: epath.Path) -> bool:
  if not importlib.util.find_spec("tensorboardX"):
    return False
  client = None if is_local(workdir) else _BUCKET_CLIENTS.get(os.fspath(workdir).split("://")[0])
  try:
    there = is_local(workdir) or (client is not None and importlib.util.find_spec(client) is not None)
  except ModuleNotFoundError:  # of the package that holds it
    there = False
  if not there:
    logger.info("no TensorBoard events: tensorboardX needs %s to write to %s", client or "a local path", workdir)
  return there


def check_trackers(names: tuple[str, ...]) -> None:
  """Raises ConfigError for W&B where it is not installed: all hosts ask, though one of them alone will write to it."""
  if "wandb" in names and not importlib.util.find_spec("wandb"):
    raise ConfigError("TrainConfig.trackers has 'wandb', which is not installed (pip install wandb)")
  if "wandb" in names and not _can_log_in():
    raise ConfigError(
      "TrainConfig.trackers has 'wandb', which has no key here: `wandb login`, or WANDB_API_KEY, or WANDB_MODE=offline"
    )


def _can_log_in() -> bool:
  """Whether W&B has a key, or needs none."""
  import wandb

  return os.environ.get("WANDB_MODE") in ("offline", "disabled") or wandb.login(prompt=False)


def open_trackers(names: tuple[str, ...], workdir: epath.Path, config: dict[str, Any], step: int) -> list[Tracker]:
  """metrics.jsonl, and the trackers asked for (see check_trackers); TensorBoard only where tensorboardX is installed.

  Args:
    step: the last one whose record counts; what an earlier start has written after it is superseded.
  """
  trackers: list[Tracker] = [JsonLines(workdir / "metrics.jsonl", step)]
  if "tensorboard" in names and _can_write_events(workdir):
    trackers.append(TensorBoard(workdir / "tensorboard", step))
  if "wandb" in names:
    trackers.append(WandB(workdir, config))
  return trackers


def progress_line(record: dict[str, Any], steps: int, eta_seconds: float | None) -> str:
  """`step 40/800  loss 3.214  grad 0.91  lr 1.0e-03  12.3k tok/s  ETA 0:01:02`."""
  parts = [f"step {record['step']}/{steps}", f"loss {record['loss']:.3f}", f"grad {record['grad_norm']:.2f}"]
  parts.append(f"lr {record['learning_rate']:.1e}")
  if record["tokens_per_second"] is not None:
    parts.append(f"{record['tokens_per_second'] / 1000:.1f}k tok/s")
  if record["mfu"] is not None:
    parts.append(f"MFU {record['mfu']:.1%} (PaLM)")
  if eta_seconds is not None:
    parts.append(f"ETA {datetime.timedelta(seconds=round(eta_seconds))}")
  return "  ".join(parts)

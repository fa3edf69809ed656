"""What a run reports: FLOPs and MFU, metrics.jsonl, optional trackers, and the progress line."""

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
  """FLOPs of the forward and backward pass, per token in rows of `context` tokens.

  6 N + 12 * layers * H * h * T (PaLM, appendix B). "causal" halves the attention term, as for a kernel that skips the
  masked half. N counts the parameters of matrix products: the unembedding, but not the embedding lookup.

  Raises:
    ValueError: for another `convention`.
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
  """`flops_per_token` of training `model`, plus the objective's extra forward passes, averaged over some steps.

  Args:
    teacher: the model of the extra forward passes; None: `model` itself.
    steps: the steps to average over, of the `of` steps of the run.
  """
  further = sum(objective.extra_forwards(step, of) for step in steps) / len(steps)
  own = flops_per_token(model, context, convention)
  return own + further * (own if teacher is None else flops_per_token(teacher, context, convention)) / 3


def mfu(tokens_per_second: float, flops: float) -> float | None:
  """Model FLOPs utilisation over all devices of the run; None if the device's peak is unknown (a CPU).

  Args:
    tokens_per_second: over all devices.
    flops: per token, see `flops_per_token`.
  """
  peak = PEAK_FLOPS.get(jax.devices()[0].device_kind)
  return None if peak is None else tokens_per_second * flops / (peak * jax.device_count())


# The `kind` of a record of the held-out loss at one extension; records of training steps have no `kind`.
EVAL = "eval"


def is_training(record: dict[str, Any]) -> bool:
  """Whether a record of metrics.jsonl is of training steps, and not of another `kind`."""
  return "kind" not in record


def _scalars(record: dict[str, Any]) -> dict[str, float]:
  """The numbers of a record, by their names in trackers."""
  if is_training(record):
    return {name: value for name, value in record.items() if name != "step" and value is not None}
  return {f"{record['split']}/loss_{record['extension']}x": record["loss"]}


class Tracker(Protocol):
  """A sink of metric records."""

  def write(self, record: dict[str, Any]) -> None: ...

  def close(self) -> None: ...


class JsonLines:
  """One record per line. Opening drops the records after `step`, because a resumed run writes them again.

  Lines that are not records of a step are dropped too, with a warning. The file is replaced atomically, so that a crash
  leaves the old one.

  In a bucket, where files cannot be appended to, the whole file is written again for every record: about 200 bytes per
  logged step, in one request.

  Raises:
    FileError: naming the file that cannot be read or written, as on a full disk.
  """

  def __init__(self, path: epath.PathLike, step: int):
    self._path = epath.Path(path)
    # Before the first checkpoint no record counts, not even the evaluation at the start, which is done again.
    self._lines = list(_lines_up_to(self._path, step)) if step and self._path.exists() else []
    with writing(self._path):
      if self._path.exists():
        replace_whole(self._path, "".join(self._lines))
      self._file = self._path.open("a") if is_local(path) else None

  def write(self, record: dict[str, Any]) -> None:
    line = json.dumps(_finite(record), allow_nan=False) + "\n"
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


def _finite(value: Any) -> Any:
  """A value of a record with null, None here, for numbers that JSON lacks: a held-out loss may not be finite."""
  if isinstance(value, dict):
    return {name: _finite(one) for name, one in value.items()}
  if isinstance(value, list):
    return list(map(_finite, value))
  return None if isinstance(value, float) and not math.isfinite(value) else value


def _lines_up_to(path: epath.Path, step: int) -> Iterator[str]:
  """The lines of metrics.jsonl that are records of steps up to `step`, verbatim; malformed ones cause a warning."""
  for line in lines_of(path):
    try:
      at = line.record()["step"]
      if isinstance(at, int) and not isinstance(at, bool) and at >= 0:
        if at <= step:
          yield line.content.decode() + "\n"
        continue
      said = f"its step is {at!r}"
    except (KeyError, TypeError, IndexError):
      said = "it is not an object with a step"
    except ValueError as error:
      said = str(error)
    logger.warning("%s:%d: not the record of a step; it is dropped (%s)", path, line.number, said)


class TensorBoard:
  """Event files written by tensorboardX, which also writes to gs:// and s3:// if their client library is installed.

  TensorBoard no longer shows what an interrupted run wrote about steps after `step`.
  """

  def __init__(self, directory: epath.Path, step: int):
    with _hidden("torch"):  # tensorboardX would import it, which takes seconds, and scalars do not need it
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
  sys.modules[module] = None  # type: ignore[assignment]  # import then raises ModuleNotFoundError
  try:
    yield
  finally:
    del sys.modules[module]


class WandB:
  """A Weights & Biases run, named after the workdir, where its id is stored so that later starts continue the same run.

  W&B ignores records of steps that it already has: what an interrupted run wrote after its last checkpoint stays.
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


# The library that tensorboardX needs to write to a bucket, by URL scheme.
_BUCKET_CLIENTS = {"gs": "google.cloud.storage", "s3": "boto3"}


def _can_write_events(workdir: epath.Path) -> bool:
  if not importlib.util.find_spec("tensorboardX"):
    return False
  client = None if is_local(workdir) else _BUCKET_CLIENTS.get(os.fspath(workdir).split("://")[0])
  try:
    there = is_local(workdir) or (client is not None and importlib.util.find_spec(client) is not None)
  except ModuleNotFoundError:  # the parent package is missing
    there = False
  if not there:
    logger.info("no TensorBoard events: tensorboardX needs %s to write to %s", client or "a local path", workdir)
  return there


def check_trackers(names: tuple[str, ...]) -> None:
  """Raises ConfigError if W&B is asked for but not usable; called on all hosts, although only one writes to it."""
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
  """metrics.jsonl and the trackers in `names` (see check_trackers); TensorBoard only if tensorboardX is installed.

  Args:
    step: the step that the run continues from; records of later steps by an earlier start are superseded.
  """
  trackers: list[Tracker] = [JsonLines(workdir / "metrics.jsonl", step)]
  if "tensorboard" in names and _can_write_events(workdir):
    trackers.append(TensorBoard(workdir / "tensorboard", step))
  if "wandb" in names:
    trackers.append(WandB(workdir, config))
  return trackers


def progress_line(record: dict[str, Any], steps: int, eta_seconds: float | None) -> str:
  """The line about a record for people: `step 40/800  loss 3.214  grad 0.91  lr 1.0e-03  12.3k tok/s  ETA 0:01:02`."""
  parts = [f"step {record['step']}/{steps}", f"loss {record['loss']:.3f}", f"grad {record['grad_norm']:.2f}"]
  parts.append(f"lr {record['learning_rate']:.1e}")
  if record["tokens_per_second"] is not None:
    parts.append(f"{record['tokens_per_second'] / 1000:.1f}k tok/s")
  if record["mfu"] is not None:
    parts.append(f"MFU {record['mfu']:.1%} (PaLM)")
  if eta_seconds is not None:
    parts.append(f"ETA {datetime.timedelta(seconds=round(eta_seconds))}")
  return "  ".join(parts)

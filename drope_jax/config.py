"""Every setting of a model and of a run, as dataclasses, and their way to and from JSON.

`ModelConfig` says which function a model is, `ComputeConfig` how it is computed; a recalibration takes the first from a
checkpoint and chooses the second anew. Context length is in neither: it belongs to data and to evaluation.

The classes are mutable because `ml_collections.config_flags` sets overrides in place; `checked` rebuilds a config after
that, so that every rule below is applied to what will really run.
"""

import dataclasses
import importlib.metadata
import json
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from drope_jax.positions import NTK, ALiBi, DynamicNTK, Layer, LayerPattern, Positions, RoPE, Scaling

T = TypeVar("T")


class ConfigError(ValueError):
  """A setting that cannot be: the message names the field, its value and what is allowed."""


def _check(holds: bool, message: str) -> None:
  if not holds:
    raise ConfigError(message)


def _check_choice(config: Any, field: str, allowed: tuple[str, ...]) -> None:
  value = getattr(config, field)
  _check(value in allowed, f"{type(config).__name__}.{field} is {value!r}; allowed: {', '.join(allowed)}")


def _check_at_least(config: Any, minimum: float, *fields: str) -> None:
  for field in fields:
    value = getattr(config, field)
    _check(value >= minimum, f"{type(config).__name__}.{field} is {value}; it must be at least {minimum}")


@dataclasses.dataclass(unsafe_hash=True)
class QKNorm:
  """RMS norm of queries and keys before the scores.

  scope "full" normalises the whole projection before the head split, as the paper does (weights of shape (H*h,) and
  (K*h,)); "head" normalises each head with one shared weight of shape (h,), as Qwen3 does.
  """

  scope: str = "full"
  queries: bool = True
  keys: bool = True

  def __post_init__(self) -> None:
    _check_choice(self, "scope", ("full", "head"))
    _check(self.queries or self.keys, "QKNorm normalises neither queries nor keys; use None for no norm")


def _check_positions(config: "ModelConfig") -> None:
  """Down to the leaves: attention takes whatever is not a RoPE or an ALiBi for the absence of an embedding."""
  positions, where = config.positions, "ModelConfig.positions"
  if not isinstance(positions, LayerPattern):
    _check_embedding(config, positions, where, "RoPE, ALiBi, LayerPattern of Layer, None (NoPE)")
    return
  for index, layer in enumerate(positions.layers):
    at = f"{where}.layers[{index}]"
    _check(isinstance(layer, Layer), f"{at} is {layer!r}; allowed: Layer")
    _check_embedding(config, layer.positions, f"{at}.positions", "RoPE, ALiBi, None (NoPE)")
    whole = isinstance(layer.window, int) and not isinstance(layer.window, bool)
    _check(layer.window is None or whole, f"{at}.window is {layer.window!r}; it must be a whole number, or None")


def _check_embedding(config: "ModelConfig", value: Any, where: str, allowed: str) -> None:
  _check(value is None or isinstance(value, RoPE | ALiBi), f"{where} is {value!r}; allowed: {allowed}")
  if not isinstance(value, RoPE):
    return
  scalings = ", ".join(item.__name__ for item in typing.get_args(Scaling))
  _check(
    value.scaling is None or isinstance(value.scaling, Scaling),
    f"{where}.scaling is {value.scaling!r}; allowed: {scalings}, None",
  )
  _check(config.head_dim % 2 == 0, f"ModelConfig.head_dim is {config.head_dim}; RoPE rotates pairs, so it must be even")
  _check(
    config.head_dim > 2 or not isinstance(value.scaling, NTK | DynamicNTK),
    f"ModelConfig.head_dim is {config.head_dim}; NTK scaling raises theta to h / (h - 2), so it must exceed 2",
  )


@dataclasses.dataclass(unsafe_hash=True, kw_only=True)
class ModelConfig:
  """A Llama-shaped decoder: RMSNorm, grouped-query attention, SwiGLU. The letters are those of model.py."""

  vocab_size: int  # V
  d_model: int  # D
  num_layers: int
  num_heads: int  # H
  num_kv_heads: int  # K
  head_dim: int  # h
  d_ff: int  # F
  positions: Positions = dataclasses.field(default_factory=RoPE)
  qk_norm: QKNorm | None = None
  qkv_bias: bool = False
  tie_embeddings: bool = True
  norm_eps: float = 1e-5
  init_std: float = 0.02

  def __post_init__(self) -> None:
    _check_at_least(self, 1, "vocab_size", "d_model", "num_layers", "num_heads", "num_kv_heads", "head_dim", "d_ff")
    _check(
      self.num_heads % self.num_kv_heads == 0,
      f"ModelConfig.num_heads is {self.num_heads}; it must be divisible by num_kv_heads ({self.num_kv_heads})",
    )
    _check_positions(self)
    _check(self.norm_eps > 0, f"ModelConfig.norm_eps is {self.norm_eps}; it must be positive")
    _check(self.init_std > 0, f"ModelConfig.init_std is {self.init_std}; it must be positive")


@dataclasses.dataclass(unsafe_hash=True, kw_only=True)
class ComputeConfig:
  """How a model is computed; nothing here changes which function it is."""

  dtype: str = "auto"  # of activations; "auto": bfloat16 on TPU and GPU, float32 on CPU. Parameters are float32
  attention: str = "auto"  # kernel, see attention.py
  scan_layers: bool = True  # one compiled layer run num_layers times, or all of them unrolled
  remat: str = "none"  # what the backward pass recomputes: nothing, all of a layer, all but its matrix products
  loss_chunk: int = 512  # positions whose logits exist at one time

  def __post_init__(self) -> None:
    _check_choice(self, "dtype", ("auto", "float32", "bfloat16"))
    _check_choice(self, "attention", ("auto", "reference", "blockwise", "unrolled", "splash", "cudnn"))
    _check_choice(self, "remat", ("none", "full", "dots"))
    _check_at_least(self, 1, "loss_chunk")


@dataclasses.dataclass(unsafe_hash=True, kw_only=True)
class DataConfig:
  """What a run trains on: a prepared TFDS dataset, cut into rows of `context` + 1 tokens."""

  directory: str  # of the prepared dataset (where its dataset_info.json lies)
  split: str = "train"
  tokenizer: str = "byte"  # "byte", the path of a tokenizer.json, or "init": that of the checkpoint of InitConfig
  context: int  # T, in tokens; the training context
  batch_size: int  # B, rows per optimizer step over all hosts
  document_mask: bool = False  # whether attention stops at document boundaries (the paper: it does not)
  num_workers: int = 0  # grain worker processes; 0 reads in the training process

  def __post_init__(self) -> None:
    _check_at_least(self, 1, "context", "batch_size")
    _check_at_least(self, 0, "num_workers")


@dataclasses.dataclass(unsafe_hash=True, kw_only=True)
class OptimConfig:
  """AdamW and its learning-rate schedule."""

  peak_lr: float
  schedule: str = "cosine"  # "cosine", "wsd" (warmup, stable, linear decay) or "constant"; all warm up linearly
  warmup_steps: int = 0
  decay_steps: int = 0  # wsd only: length of the final decay
  floor: float | None = None  # last learning rate as a share of the peak; None: 0.1. "constant" has none
  beta1: float = 0.9
  beta2: float = 0.95
  eps: float = 1e-8
  weight_decay: float = 0.1  # on matrices and the embedding; not on norms and biases
  clip_norm: float = 1.0  # global gradient norm
  z_loss: float = 0.0  # weight of the squared log-partition
  accumulation: int = 1  # micro-batches per optimizer step, weighted by their real tokens

  def __post_init__(self) -> None:
    _check_choice(self, "schedule", ("cosine", "wsd", "constant"))
    _check_at_least(self, 0, "peak_lr", "warmup_steps", "decay_steps", "weight_decay", "z_loss")
    _check_at_least(self, 1, "accumulation")
    for beta in ("beta1", "beta2"):
      value = getattr(self, beta)
      _check(0 <= value < 1, f"OptimConfig.{beta} is {value}; it must lie in [0, 1)")
    _check(self.eps > 0, f"OptimConfig.eps is {self.eps}; it must be positive")
    if self.floor is not None:
      _check(0 <= self.floor <= 1, f"OptimConfig.floor is {self.floor}; it must lie in [0, 1]")
      _check(
        self.schedule != "constant", f"OptimConfig.floor is {self.floor}; schedule 'constant' never falls: leave it out"
      )
    _check(self.clip_norm > 0, f"OptimConfig.clip_norm is {self.clip_norm}; it must be positive")
    _check(
      (self.decay_steps > 0) == (self.schedule == "wsd"),
      f"OptimConfig.decay_steps is {self.decay_steps}; schedule 'wsd' needs it positive, the others leave it 0",
    )


@dataclasses.dataclass(unsafe_hash=True, kw_only=True)
class MeshConfig:
  """Devices along each mesh axis of one slice; -1 for at most one axis: all that are left.

  Several slices, which only the data-centre network (DCN) joins, lengthen `data` or `fsdp` by their number: the axes
  that communicate once a step, or once a layer. sharding.PRESETS holds the usual ones, by name.
  """

  data: int = -1
  fsdp: int = 1
  tensor: int = 1
  context: int = 1
  dcn_data: int = 1  # slices along data
  dcn_fsdp: int = 1  # slices along fsdp

  def __post_init__(self) -> None:
    _check_at_least(self, 1, "dcn_data", "dcn_fsdp")
    sizes = {name: size for name, size in dataclasses.asdict(self).items() if not name.startswith("dcn_")}
    for axis, size in sizes.items():
      _check(size == -1 or size >= 1, f"MeshConfig.{axis} is {size}; it must be positive, or -1 for the rest")
    _check(list(sizes.values()).count(-1) <= 1, f"MeshConfig has more than one -1: {sizes}")


@dataclasses.dataclass(unsafe_hash=True, kw_only=True)
class InitConfig:
  """Weights from another run: the start of a recalibration, or of its control with the embedding kept."""

  checkpoint: str  # the other run's workdir
  model: ModelConfig | None = None  # what it is meant to hold, for `drope_jax.aot` before it is there; a run looks
  step: int | None = None  # None: its last complete step
  drop: bool = True  # drop the positional embedding of every layer
  qk_norm: QKNorm | None = None  # insert this norm, with weights of one
  keep_optimizer: bool = False  # carry Adam's moments over; the schedule starts anew either way


@dataclasses.dataclass(unsafe_hash=True, kw_only=True)
class TrainConfig:
  """One run: `model` alone starts from scratch; with `init` the model is the checkpoint's."""

  model: ModelConfig | None = None
  init: InitConfig | None = None
  data: DataConfig
  optim: OptimConfig
  mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
  compute: ComputeConfig = dataclasses.field(default_factory=ComputeConfig)
  steps: int
  seed: int = 0  # of the weights and of the order of the data
  log_every: int = 10
  checkpoint_every: int = 500
  keep_latest: int = 2  # checkpoints kept, beside those of keep_every
  keep_every: int | None = None  # steps whose checkpoints stay for good
  trackers: tuple[str, ...] = (
    "tensorboard",
  )  # beside metrics.jsonl: "tensorboard" (if tensorboardX is there), "wandb"

  def __post_init__(self) -> None:
    _check(
      self.model is not None or self.init is not None,
      "TrainConfig needs model (train from scratch) or init (start from a checkpoint's weights)",
    )
    _check(
      self.data.tokenizer != "init" or self.init is not None,
      "DataConfig.tokenizer is 'init', which needs TrainConfig.init; name a tokenizer.json, or 'byte'",
    )
    _check_at_least(self, 1, "steps", "log_every", "checkpoint_every", "keep_latest")
    if self.keep_every is not None:
      _check_at_least(self, 1, "keep_every")
    _check(
      self.data.batch_size % self.optim.accumulation == 0,
      f"OptimConfig.accumulation is {self.optim.accumulation}; "
      f"it must divide DataConfig.batch_size ({self.data.batch_size})",
    )
    _check(
      self.optim.warmup_steps + self.optim.decay_steps <= self.steps,
      f"OptimConfig.warmup_steps + decay_steps is {self.optim.warmup_steps + self.optim.decay_steps}; "
      f"it must not exceed TrainConfig.steps ({self.steps})",
    )
    for tracker in self.trackers:
      _check(tracker in ("tensorboard", "wandb"), f"TrainConfig.trackers has {tracker!r}; allowed: tensorboard, wandb")


# --- to and from plain data --------------------------------------------------------------------


def to_dict(config: Any) -> Any:
  """Plain data (dict, list, str, number, bool, None) of a config; each dataclass carries its class name as "type"."""
  if dataclasses.is_dataclass(config) and not isinstance(config, type):
    fields = {field.name: to_dict(getattr(config, field.name)) for field in dataclasses.fields(config)}
    return {"type": type(config).__name__, **fields}
  if isinstance(config, tuple | list):
    return [to_dict(item) for item in config]
  return config


def _alternatives(annotation: Any) -> tuple[Any, ...]:
  """The members of a union, flattened; the annotation itself if it is none."""
  if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
    return typing.get_args(annotation)
  return (annotation,)


def _read(annotation: Any, data: Any, path: str) -> Any:
  """`data` as a value of `annotation`; `path` names it in errors."""
  alternatives = _alternatives(annotation)
  if data is None:
    _check(type(None) in alternatives, f"{path} is missing a value")
    return None
  classes = [item for item in alternatives if isinstance(item, type) and dataclasses.is_dataclass(item)]
  if classes:
    _check(isinstance(data, dict), f"{path} is {data!r}; it must be an object")
    by_name = {item.__name__: item for item in classes}
    name = data.get("type", classes[0].__name__ if len(classes) == 1 else None)
    _check(name in by_name, f"{path}.type is {name!r}; allowed: {', '.join(by_name)}")
    return from_dict(by_name[name], data, path)
  expected = next(item for item in alternatives if item is not type(None))
  if typing.get_origin(expected) is tuple:
    _check(isinstance(data, list), f"{path} is {data!r}; it must be a list")
    return tuple(_read(typing.get_args(expected)[0], item, f"{path}[{i}]") for i, item in enumerate(data))
  if expected is float and isinstance(data, int) and not isinstance(data, bool):
    return float(data)
  matches = isinstance(data, expected) and isinstance(data, bool) == (expected is bool)
  _check(matches, f"{path} is {data!r}; it must be of type {expected.__name__}")
  return data


def from_dict(cls: type[T], data: dict[str, Any], path: str = "") -> T:
  """The inverse of `to_dict`. Raises ConfigError naming an unknown, missing or mistyped field."""
  path = path or cls.__name__
  _check(isinstance(data, dict), f"{path} is {data!r}; it must be an object")
  name = data.get("type", cls.__name__)
  _check(name == cls.__name__, f"{path}.type is {name!r}; it must be {cls.__name__!r}")
  hints = typing.get_type_hints(cls)
  names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
  unknown = sorted(set(data) - {"type", *names})
  _check(not unknown, f"{path}.{unknown[0] if unknown else ''} is not a field; fields: {', '.join(names)}")
  values = {name: _read(hints[name], data[name], f"{path}.{name}") for name in names if name in data}
  try:
    return cls(**values)
  except ConfigError:
    raise
  except (TypeError, ValueError) as error:  # a missing argument, or a positions value that checks itself
    raise ConfigError(f"{path}: {error}") from error


def checked(config: T) -> T:
  """The same config built anew, so that overrides set in place are checked; a copy that shares nothing."""
  return from_dict(type(config), to_dict(config))


def differences(old: Any, new: Any, path: str = "") -> list[str]:
  """Dotted paths where two `to_dict` results differ, each with both values."""
  if isinstance(old, dict) and isinstance(new, dict):
    keys = [*old, *(key for key in new if key not in old)]
    found = [differences(old.get(key), new.get(key), f"{path}.{key}" if path else key) for key in keys]
    return [line for lines in found for line in lines]
  return [] if old == new else [f"{path}: {old!r} there, {new!r} here"]


LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "numpy")


def library_versions() -> dict[str, str]:
  """Versions of the libraries whose behaviour a run depends on."""
  return {name: importlib.metadata.version(name) for name in LIBRARIES}


DRAFT = ".draft"  # behind the name of a file that is being written


def save_config(config: Any, path: Path) -> None:
  """Writes `config` as JSON, with the library versions; a file that is there keeps the versions it began with.

  The file is replaced whole, and only if it would change.
  """
  try:
    there = json.loads(path.read_text())
  except (OSError, json.JSONDecodeError):  # none yet, or one cut off
    there = {}
  data = {**to_dict(config), "versions": there.get("versions", library_versions())}
  if data != there:
    write_json(data, path)


def write_json(data: Any, path: Path) -> None:
  """Writes a file of JSON, or replaces it, whole: whoever reads it meanwhile reads the old one."""
  draft = path.with_name(path.name + DRAFT)
  draft.write_text(json.dumps(data, indent=2) + "\n")
  draft.replace(path)


def holds_something(directory: Path) -> bool:
  """Whether a directory is there and not empty; a draft that a crash has left does not count."""
  return directory.exists() and any(not path.name.endswith(DRAFT) for path in directory.iterdir())


def is_cut_off(path: Path, cls: type) -> bool:
  """Whether a file is the beginning of what `save_config` writes of a `cls`, and not all of it."""
  text, head = path.read_text(), f'{{\n  "type": "{cls.__name__}"'
  return text[: len(head)] == head[: len(text)] and not text.endswith("\n}\n")


def load_config(cls: type[T], path: Path) -> T:
  """Reads what `save_config` wrote. Raises ConfigError naming the file, and the field where there is one."""
  try:
    data = json.loads(path.read_text())
  except (OSError, json.JSONDecodeError) as error:
    raise ConfigError(f"{path}: not a readable config ({error})") from error
  if isinstance(data, dict):
    data.pop("versions", None)
  try:
    return from_dict(cls, data)
  except ConfigError as error:
    raise ConfigError(f"{path}: {error}") from error

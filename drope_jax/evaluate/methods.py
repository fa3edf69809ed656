"""Inference-time methods: how a trained model is changed to use it at a given length.

METHODS describes each. A number after a colon fixes a value that would otherwise be computed: `yarn:8` has factor 8 at
every length, also within the training context, and `drope:0.2` has c = 0.2. A number after a plus adds the temperature
to another method: `rope+0.1` and `yarn:8+0.1` are `rope` and `yarn:8` at beta = 1 + 0.1 ln s. Each of these is a
separate method in the records. Without an embedding, the method with the temperature is `drope`, so `nope` takes no
number; c is only fitted for `drope`.

The methods that a checkpoint allows depend on its embedding: the model as it was trained is a method named after its
embedding (also a user's), `crop` works for every model, and the scalings work for an embedding that can be `rescaled`
and is not scaled yet. A user's scaling with `factor` and `original_context` is a method named after its class. A
dropped model and one trained from scratch without embedding have the same methods, so that each can be measured with
and without the temperature. A RoPE checkpoint has no `nope`: dropping is done by `drope_jax.drop`, and needs
recalibration.

Up to the training context, a method without a number runs the model as it was trained; `dynamic_ntk`, `dynamic_yarn`
and `crop` depend on each sequence's own length, which may exceed that of the measurement (`longbench_whole`, multiple
choice). See the paper's section 4 and appendix C.2.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from drope_jax.drope import temperature
from drope_jax.errors import ConfigError
from drope_jax.model_config import ModelConfig
from drope_jax.positions import Embedding, layer_cycle
from drope_jax.scalings import NTK, PI, DynamicNTK, DynamicYaRN, Scaling, YaRN
from drope_jax.values import members

METHODS: Mapping[str, str] = {
  "rope": "as it was trained",
  "pi": "all rotations slowed down by the extension factor (positional interpolation)",
  "ntk": "slow rotations slowed down and fast ones nearly kept, by a smooth rule (NTK-aware scaling)",
  "yarn": "slow rotations slowed down, fast ones kept, and attention sharpened a little (YaRN)",
  "dynamic_ntk": "NTK-aware scaling for the length of each text",
  "dynamic_yarn": "YaRN for the length of each text",
  "alibi": "as it was trained",
  "pattern": "as it was trained, its layers being of several kinds",
  "nope": "as it was trained, without embedding",
  "drope": "the attention logits multiplied by the temperature β = 1 + c·ln s",
  "crop": "only the last tokens shown to it, as many as the training context holds",
}


class _Rescaling(NamedTuple):
  """How to create a scaling for an extension."""

  make: Callable[[float, int], Scaling]  # (factor, original context) -> the scaling
  fixable: bool  # whether its factor can be given as a number


_SCALINGS: Mapping[str, _Rescaling] = {
  "pi": _Rescaling(lambda factor, context: PI(factor), True),
  "ntk": _Rescaling(lambda factor, context: NTK(factor), True),
  "yarn": _Rescaling(lambda factor, context: YaRN(factor, context), True),
  "dynamic_ntk": _Rescaling(lambda factor, context: DynamicNTK(context), False),
  "dynamic_yarn": _Rescaling(lambda factor, context: DynamicYaRN(context), False),
}


@dataclasses.dataclass(frozen=True)
class Inference:
  """What to run: a model, the factor on its attention logits, and the number of last tokens it sees (None: all)."""

  config: ModelConfig
  logit_scale: float = 1.0
  crop: int | None = None

  def seen(self, prompt: np.ndarray, new_tokens: int) -> np.ndarray:
    """The part of a prompt that generation reads: all, or the last tokens that leave room for `new_tokens` in `crop`.

    Raises:
      ValueError: if there is no room.
    """
    if self.crop is None:
      return prompt
    if self.crop <= new_tokens:
      raise ValueError(f"crop is {self.crop}; an answer of {new_tokens} tokens leaves no room for its question")
    return prompt[-(self.crop - new_tokens) :]


class Method(NamedTuple):
  """A parsed method."""

  name: str
  factor: float | None  # if given as a number
  c: float | None  # of the temperature, if given as a number

  @classmethod
  def parse(cls, text: str) -> "Method":
    """Parses a method. Raises ConfigError for an unknown method, or a number that it does not accept."""
    head, plus, c = text.partition("+")
    name, colon, number = head.partition(":")
    known, fixable = _known(), [name for name, one in _scalings().items() if one.fixable] + ["drope"]
    if name not in known and name.lower() in known:
      raise ConfigError(f"method is {text!r}; methods are written in lower case: {name.lower()}")
    if name not in known:
      raise ConfigError(f"method is {text!r}; allowed: {', '.join(known)}")
    if colon and name not in fixable:
      raise ConfigError(f"method is {text!r}; a number can be given to {', '.join(fixable)}")
    if plus and name in ("nope", "drope"):
      raise ConfigError(f"method is {text!r}; without an embedding the temperature is method 'drope', as drope:0.1")
    if plus and name == "crop":
      raise ConfigError(f"method is {text!r}; a cropped model sees its training context, at which beta is 1")
    if name == "drope":
      return cls(name, None, _number(text, number, 0.0) if colon else None)
    return cls(name, _number(text, number, 1.0) if colon else None, _number(text, c, 0.0) if plus else None)

  @property
  def reads_c(self) -> bool:
    """Whether it needs a c that is not given in its text."""
    return self.name == "drope" and self.c is None


def is_as_trained(method: str) -> bool:
  """Whether a method, known here or not, runs the model unchanged."""
  return method.isidentifier() and method not in (*_scalings(), "drope", "crop")


def allowed_methods(trained: ModelConfig) -> tuple[str, ...]:
  """The methods that are possible for a checkpoint of this config; the first is the model as it was trained."""
  cycle = layer_cycle(trained.positions)
  if all(layer.positions is None for layer in cycle):  # a dropped pattern keeps its windows
    return ("nope", "drope", "crop")
  embedding = _embedding(trained)
  if embedding is None:
    return ("pattern", "crop")
  unscaled = embedding.rescaled(None) == embedding  # a second scaling would replace the one it was trained with
  return (_name(type(embedding)), *(_scalings() if unscaled else ()), "crop")


def inference(
  method: str,
  trained: ModelConfig,
  train_context: int,
  length: int,
  c: float | None = None,
  *,
  bounded: bool = False,
) -> Inference:
  """The inference of `method` for a checkpoint of config `trained` on sequences of `length` tokens.

  Args:
    method: one of `allowed_methods`, optionally with numbers.
    train_context: tokens; the context of pretraining and recalibration.
    length: tokens, prompt and answer together.
    c: of beta = 1 + c ln s, for `drope` without a number.
    bounded: whether no sequence is longer than `length`, see Task.measure. Within the training context, methods
      that depend on the sequence's length are then the model as it was trained.

  Raises:
    ConfigError: for an unknown method, one that the checkpoint's embedding rules out, `drope` without c, or a c that
      the method does not read.
  """
  parsed = Method.parse(method)
  allowed = allowed_methods(trained)
  if parsed.name not in allowed:
    raise ConfigError(
      f"method {method!r} is impossible for a checkpoint with positions {trained.positions}; "
      f"allowed: {', '.join(allowed)}"
    )
  if c is None and parsed.reads_c:
    raise ConfigError("method 'drope' needs c, the coefficient of beta = 1 + c ln s; beta 1 is method 'nope'")
  if c is not None and not parsed.reads_c:
    raise ConfigError(
      f"c is {c}, which method {method!r} does not read; see methods.py on how a method is given its own"
    )
  extension = length / train_context
  within = bounded and extension <= 1
  how = Inference(trained, logit_scale=temperature(extension, c or parsed.c or 0.0))
  if parsed.name == "crop":
    return how if within else dataclasses.replace(how, crop=train_context)
  embedding, scalings = _embedding(trained), _scalings()
  if embedding is None or parsed.name not in scalings:
    return how
  scaling = scalings[parsed.name].make(parsed.factor or max(extension, 1.0), train_context)
  if parsed.factor or extension > 1 or (scaling.dynamic and not within):
    config = dataclasses.replace(trained, positions=embedding.rescaled(scaling))
    return dataclasses.replace(how, config=config)
  return how


def _embedding(trained: ModelConfig) -> Embedding | None:
  """The embedding that all layers share; None if they differ or have a window."""
  first, *others = set(layer_cycle(trained.positions))
  return None if others or first.window is not None else first.positions


def _name(cls: type[Embedding]) -> str:
  """The name of the method that runs a model with this embedding as it was trained."""
  return cls.__name__.lower()


def _known() -> dict[str, None]:
  """All methods: METHODS in order, then those of a user's embeddings and scalings."""
  embeddings = {_name(cls): None for cls in members(Embedding).values()}
  return dict.fromkeys(METHODS) | embeddings | dict.fromkeys(_scalings())


def _scalings() -> dict[str, _Rescaling]:
  """The scalings of this library, and a user's that can be created from a factor and an original context."""
  theirs = {cls.__name__.lower(): cls for name, cls in members(Scaling).items() if name != cls.__name__}
  made = {name: _rescaling(cls) for name, cls in theirs.items()}
  return {**_SCALINGS, **{name: one for name, one in made.items() if one is not None}}


def _rescaling(cls: type[Scaling]) -> _Rescaling | None:
  fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
  needed = {
    name
    for name, field in fields.items()
    if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
  }
  if not needed <= {"factor", "original_context"}:
    return None
  fixable = "factor" in fields and not cls.dynamic

  def make(factor: float, context: int) -> Scaling:
    given = {"factor": factor} if fixable or "factor" in needed else {}
    return cls(**given, **({"original_context": context} if "original_context" in fields else {}))

  return _Rescaling(make, fixable)


def _number(method: str, text: str, least: float) -> float:
  try:
    value = float(text)
  except ValueError:
    value = -1.0
  if not least <= value < float("inf"):
    raise ConfigError(f"method is {method!r}; a factor is a number of at least 1, and c one of at least 0")
  return value

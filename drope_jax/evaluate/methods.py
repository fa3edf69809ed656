"""Inference-time methods: what is done to a trained model to use it at a given length.

| method                     | of a checkpoint with | runs                                                             |
|----------------------------|----------------------|------------------------------------------------------------------|
| rope, alibi, nope, pattern | that embedding       | the model as it was trained, at beta 1                           |
| pi, ntk, yarn              | unscaled RoPE        | the rotation rescaled for a fixed factor, length / train_context |
| dynamic_ntk, dynamic_yarn  | unscaled RoPE        | the rotation rescaled for the length of each sequence            |
| drope                      | none                 | the model at beta = 1 + c ln s (drope.temperature)               |
| crop                       | any                  | the model on the last train_context tokens only                  |

A number after a colon fixes by hand what would be computed: `yarn:8` has factor 8 at every length, within the training
context too, and `drope:0.2` has c = 0.2. A number after a plus gives another method the temperature: `rope+0.1` and
`yarn:8+0.1` are `rope` and `yarn:8` at beta = 1 + 0.1 ln s. Each of these is a method with records of its own. The
temperature without embedding is `drope`, so `nope` takes none; c is fitted for `drope` alone.

A dropped model and one trained from scratch without embedding have the same methods, so that each can be measured with
and without the temperature. A RoPE checkpoint has no `nope`: dropping is `drope_jax.drop`, and it wants recalibration.
Up to the training context a method without a number runs the model as it was trained; `dynamic_ntk`, `dynamic_yarn` and
`crop` go by each sequence's own length, which may exceed that of the measurement (`longbench_whole`, multiple choice).
See the paper's section 4 and appendix C.2.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from drope_jax.config import ModelConfig
from drope_jax.drope import temperature
from drope_jax.errors import ConfigError
from drope_jax.positions import NTK, PI, ALiBi, DynamicNTK, DynamicYaRN, RoPE, Scaling, YaRN, layer_cycle

_SCALINGS: dict[str, Callable[[float, int], Scaling]] = {  # of (factor, original context)
  "pi": lambda factor, context: PI(factor),
  "ntk": lambda factor, context: NTK(factor),
  "yarn": lambda factor, context: YaRN(factor, context),
  "dynamic_ntk": lambda factor, context: DynamicNTK(context),
  "dynamic_yarn": lambda factor, context: DynamicYaRN(context),
}

_DYNAMIC = (DynamicNTK, DynamicYaRN)
FIXABLE = ("pi", "ntk", "yarn", "drope")  # methods that take a number
METHODS = ("rope", *_SCALINGS, "alibi", "pattern", "nope", "drope", "crop")
AS_TRAINED = ("rope", "alibi", "pattern", "nope")  # methods that change nothing


@dataclasses.dataclass(frozen=True)
class Inference:
  """What to run: a model, the factor on its attention logits, and how many of the last tokens it sees (None: all)."""

  config: ModelConfig
  logit_scale: float = 1.0
  crop: int | None = None

  def seen(self, prompt: np.ndarray, new_tokens: int) -> np.ndarray:
    """What generation reads of a prompt: all, or the last tokens that leave room for `new_tokens` within `crop`.

    Raises:
      ValueError: if there is no room.
    """
    if self.crop is None:
      return prompt
    if self.crop <= new_tokens:
      raise ValueError(f"crop is {self.crop}; an answer of {new_tokens} tokens leaves no room for its question")
    return prompt[-(self.crop - new_tokens) :]

  def within_context(self) -> "Inference":
    """The same on sequences that are no longer than the training context: what goes by their length does nothing."""
    config, rope = self.config, self.config.positions
    if isinstance(rope, RoPE) and isinstance(rope.scaling, _DYNAMIC):
      config = dataclasses.replace(config, positions=dataclasses.replace(rope, scaling=None))
    return dataclasses.replace(self, config=config, crop=None)


class Method(NamedTuple):
  """A method's text, read."""

  name: str  # of METHODS
  factor: float | None  # given by hand
  c: float | None  # of the temperature, given by hand

  @classmethod
  def parse(cls, text: str) -> "Method":
    """Raises ConfigError for what the table above does not have."""
    head, plus, c = text.partition("+")
    name, colon, number = head.partition(":")
    if name not in METHODS:
      raise ConfigError(f"method is {text!r}; allowed: {', '.join(METHODS)}")
    if colon and name not in FIXABLE:
      raise ConfigError(f"method is {text!r}; a number can be given to {', '.join(FIXABLE)}")
    if plus and name in ("nope", "drope"):
      raise ConfigError(f"method is {text!r}; without an embedding the temperature is method 'drope', as drope:0.1")
    if plus and name == "crop":
      raise ConfigError(f"method is {text!r}; a cropped model sees its training context, at which beta is 1")
    if name == "drope":
      return cls(name, None, _number(text, number, 0.0) if colon else None)
    return cls(name, _number(text, number, 1.0) if colon else None, _number(text, c, 0.0) if plus else None)

  @property
  def reads_c(self) -> bool:
    """Whether it needs a c that its text does not give."""
    return self.name == "drope" and self.c is None


def allowed_methods(trained: ModelConfig) -> tuple[str, ...]:
  """The methods that make sense for a checkpoint of this config."""
  positions = trained.positions
  if all(layer.positions is None for layer in layer_cycle(positions)):  # a dropped pattern keeps its windows
    return ("nope", "drope", "crop")
  if isinstance(positions, ALiBi):
    return ("alibi", "crop")
  if isinstance(positions, RoPE):
    return ("rope", "crop") if positions.scaling else ("rope", *_SCALINGS, "crop")
  return ("pattern", "crop")


def inference(method: str, trained: ModelConfig, train_context: int, length: int, c: float | None = None) -> Inference:
  """What `method` runs for a checkpoint of config `trained` on sequences of `length` tokens.

  Args:
    method: one of METHODS, and the numbers it was given.
    train_context: tokens; the context of pretraining and recalibration.
    length: tokens, prompt and answer together.
    c: of beta = 1 + c ln s, for `drope` without a number.

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
  beta = temperature(extension, c or parsed.c or 0.0)
  how = Inference(trained, logit_scale=beta, crop=train_context if parsed.name == "crop" else None)
  if parsed.name in _SCALINGS and isinstance(trained.positions, RoPE):
    scaling = _SCALINGS[parsed.name](parsed.factor or max(extension, 1.0), train_context)
    if isinstance(scaling, _DYNAMIC) or parsed.factor or extension > 1:
      rope = dataclasses.replace(trained.positions, scaling=scaling)
      return dataclasses.replace(how, config=dataclasses.replace(trained, positions=rope))
  return how


def _number(method: str, text: str, least: float) -> float:
  try:
    value = float(text)
  except ValueError:
    value = -1.0
  if not least <= value < float("inf"):
    raise ConfigError(f"method is {method!r}; a factor is a number of at least 1, and c one of at least 0")
  return value

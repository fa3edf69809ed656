"""Inference-time methods: what is done to a trained model to use it at a given length.

| method                     | of a checkpoint with | runs                                                             |
|----------------------------|----------------------|------------------------------------------------------------------|
| rope, alibi, nope, pattern | that embedding       | the model as it was trained, at beta 1                           |
| pi, ntk, yarn              | unscaled RoPE        | the rotation rescaled for a fixed factor, length / train_context |
| dynamic_ntk, dynamic_yarn  | unscaled RoPE        | the rotation rescaled for the length of each sequence            |
| drope                      | none                 | the model at beta = 1 + c ln s (drope.temperature)               |
| crop                       | any                  | the model on the last train_context tokens only                  |

A number after a colon fixes by hand what would be computed: `yarn:8` has factor 8 at every length, within the training
context too, and `drope:0.2` has c = 0.2. (c = 0 is `nope`.) That is another method, with records of its own.

A dropped model and one trained from scratch without embedding have the same methods, so that each can be measured with
and without the temperature. A RoPE checkpoint has no `nope`: dropping is `drope_jax.drop`, and it wants recalibration.
Up to the training context every method runs the model as it was trained. See the paper's section 4 and appendix C.2.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from drope_jax.config import ConfigError, ModelConfig
from drope_jax.drope import temperature
from drope_jax.positions import NTK, PI, ALiBi, DynamicNTK, DynamicYaRN, RoPE, Scaling, YaRN, layer_cycle

_SCALINGS: dict[str, Callable[[float, int], Scaling]] = {  # of (factor, original context)
  "pi": lambda factor, context: PI(factor),
  "ntk": lambda factor, context: NTK(factor),
  "yarn": lambda factor, context: YaRN(factor, context),
  "dynamic_ntk": lambda factor, context: DynamicNTK(context),
  "dynamic_yarn": lambda factor, context: DynamicYaRN(context),
}

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
    method: one of METHODS, and possibly a colon and a number.
    train_context: tokens; the context of pretraining and recalibration.
    length: tokens, prompt and answer together.
    c: of beta = 1 + c ln s; `drope` needs it, the others are at beta 1 by definition and do not read it.

  Raises:
    ConfigError: for an unknown method, one that the checkpoint's embedding rules out, or `drope` without c.
  """
  method, fixed = _parsed(method)
  if method not in METHODS:
    raise ConfigError(f"method is {method!r}; allowed: {', '.join(METHODS)}")
  allowed = allowed_methods(trained)
  if method not in allowed:
    raise ConfigError(
      f"method {method!r} is impossible for a checkpoint with positions {trained.positions}; "
      f"allowed: {', '.join(allowed)}"
    )
  extension = length / train_context
  if method == "drope":
    c = c if fixed is None else fixed
    if c is None:
      raise ConfigError("method 'drope' needs c, the coefficient of beta = 1 + c ln s; beta 1 is method 'nope'")
    return Inference(trained, logit_scale=temperature(extension, c))
  if extension > 1 and method == "crop":
    return Inference(trained, crop=train_context)
  if (fixed or extension > 1) and method in _SCALINGS and isinstance(trained.positions, RoPE):
    rope = dataclasses.replace(trained.positions, scaling=_SCALINGS[method](fixed or extension, train_context))
    return Inference(dataclasses.replace(trained, positions=rope))
  return Inference(trained)


def _parsed(method: str) -> tuple[str, float | None]:
  """A method and the number that it was given."""
  name, colon, number = method.partition(":")
  if not colon:
    return name, None
  if name not in FIXABLE:
    raise ConfigError(f"method is {method!r}; a number can be given to {', '.join(FIXABLE)}")
  try:
    value = float(number)
  except ValueError:
    value = -1.0
  if not (0 <= value < float("inf") if name == "drope" else 1 <= value < float("inf")):
    raise ConfigError(f"method is {method!r}; a factor is a number of at least 1, and c one of at least 0")
  return name, value

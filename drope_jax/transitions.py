"""What becomes of the positional embedding when a run starts from another run's weights.

A transition is a value of `InitConfig`. It turns the model of the checkpoint into the model of the run, which is a
plain config that says what it is: evaluation, export and plots need not know how it came about. The parameters serve
both.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from drope_jax.errors import MAY_BE_INFINITE, ConfigError, check
from drope_jax.model_config import ModelConfig
from drope_jax.positions import Embedding, Layer, LayerPattern, Positions, RoPE, RoPETable, layer_cycle
from drope_jax.rotation import Frequencies
from drope_jax.shares import elapsed
from drope_jax.values import Value

Array = jax.Array


class Transition(Value):
  """The base of all transitions; a user's own derives from this and has `apply`."""

  def apply(self, model: ModelConfig, context: int) -> ModelConfig:
    """The model of the run, made of the checkpoint's `model`, which was trained at `context` tokens.

    Raises:
      ConfigError: if the transition is impossible for this model.
    """
    raise NotImplementedError

  def frequencies(self, model: ModelConfig, step: Array, steps: int) -> Frequencies | None:
    """The table that stands in for those of the checkpoint's `model` at a step of training, which runs `model` then.

    Args:
      step: int32 (), from 0 on; a traced number, so that all steps are one program.
      steps: of the run.

    Returns:
      omega (h/2,) or (L, h/2). None: nothing changes while it trains; the model of `apply` is trained from step 0 on.
    """
    return None


@dataclasses.dataclass(unsafe_hash=True)
class Keep(Transition):
  """The embedding stays: the control of every other transition."""

  def apply(self, model: ModelConfig, context: int) -> ModelConfig:
    return model


@dataclasses.dataclass(unsafe_hash=True)
class Drop(Transition):
  """The embedding of every layer is dropped at once (paper section 5)."""

  def apply(self, model: ModelConfig, context: int) -> ModelConfig:
    return drop(model)


@dataclasses.dataclass(unsafe_hash=True)
class Fade(Transition):
  """The embedding is dropped step by step: every frequency is multiplied by a gate that falls from 1 to 0.

  With `order` "theta" the gate is an exponent instead: theta becomes theta ** (1 / gate), which slows down a pair the
  more, the slower it is; the fastest pair keeps its frequency of 1 until the gate is 0.

  From `share` of the steps on all gates are exactly zero: the model that is trained then, and saved at the end, has no
  embedding.
  """

  share: float  # of the steps, after which nothing is left
  # "all" at once, "slow_first": one pair after the other, "late_first": one layer after the other, "theta": all at
  # once, by the base of the rotations, which grows to infinity.
  order: str = "all"
  shape: str = "linear"  # how a gate falls: "linear" or "cosine"

  def __post_init__(self) -> None:
    check(0 < self.share <= 1, f"Fade.share is {self.share}; it must lie in (0, 1]")
    for field, allowed in (("order", ("all", "slow_first", "late_first", "theta")), ("shape", ("linear", "cosine"))):
      value = getattr(self, field)
      check(value in allowed, f"Fade.{field} is {value!r}; allowed: {', '.join(allowed)}")

  def apply(self, model: ModelConfig, context: int) -> ModelConfig:
    for layer in layer_cycle(model.positions):
      if layer.positions is None:
        continue
      table = layer.positions.table(model.head_dim)
      said = f"Fade: ModelConfig.positions has {layer.positions}"
      check(table is not None, f"{said}; it must be a rotation whose frequencies do not depend on the length")
      # YaRN multiplies cos and sin: without a rotation the factor would stay, and be lost when the embedding goes.
      plain = table is not None and bool(np.all(np.asarray(table.factor) == 1))
      check(plain, f"{said}, which scales the logits too, and a fade does not undo that; use Drop()")
    return drop(model)

  def frequencies(self, model: ModelConfig, step: Array, steps: int) -> Frequencies:
    table = _omega_by_layer(model)
    omega, (layers, pairs) = jnp.asarray(table, jnp.float32), table.shape
    progress = elapsed(step, self.share, steps)
    turning = int((table > 0).sum(axis=1).max())  # the others have been dropped before
    # In units of one turn each: turn number i, of n, begins when i are over.
    turns = {
      "all": (1, np.zeros((1, 1))),
      "slow_first": (turning, np.maximum(turning - 1 - np.arange(pairs), 0)[None]),
      "late_first": (layers, np.arange(layers)[::-1][:, None]),
      "theta": (1, np.zeros((1, 1))),
    }
    count, number = turns[self.order]
    passed = jnp.clip(progress * count - number, 0.0, 1.0)
    gate = 1 - passed if self.shape == "linear" else jnp.where(passed < 1, 0.5 + 0.5 * jnp.cos(jnp.pi * passed), 0.0)
    if self.order != "theta":
      return Frequencies(omega * gate, 1.0)
    # omega is a power of 1 / theta, and omega ** (1 / gate) the same power of 1 / theta ** (1 / gate).
    log_omega = np.log(table, where=table > 0, out=np.zeros_like(table))
    slower = jnp.asarray(log_omega, jnp.float32) * (1 / jnp.maximum(gate, 1e-6) - 1)
    return Frequencies(jnp.where(gate > 0, omega * jnp.exp(slower), 0.0), 1.0)


@dataclasses.dataclass(unsafe_hash=True)
class PartialDrop(Transition):
  """Rotations that make fewer than `turns` full turns within the training context are dropped; the others stay.

  A pair that has come full circle in training has shown all its angles: longer texts bring no new ones. This is not the
  paper's method, which drops every rotation, as `turns` of infinity does.
  """

  # Pairs that make fewer full turns than this within the training context are dropped; inf: all are.
  turns: float = dataclasses.field(default=1.0, metadata=MAY_BE_INFINITE)
  fastest: int | None = None  # keep so many pairs instead, whatever their turns

  def __post_init__(self) -> None:
    check(self.turns > 0, f"PartialDrop.turns is {self.turns}; it must be positive")
    check(self.fastest is None or self.fastest >= 0, f"PartialDrop.fastest is {self.fastest}; it must be at least 0")

  def apply(self, model: ModelConfig, context: int) -> ModelConfig:
    cycle = layer_cycle(model.positions)
    check(
      any(isinstance(layer.positions, RoPE) for layer in cycle),
      f"PartialDrop: ModelConfig.positions is {model.positions}; only the pairs of a RoPE can be dropped apart",
    )
    kept = [dataclasses.replace(layer, positions=self._kept(layer.positions, model, context)) for layer in cycle]
    check(
      kept != list(cycle),
      f"{self} drops nothing: all pairs of {model.positions} that turn are kept at a context of {context} tokens",
    )
    return _with_layers(model, kept)

  def _kept(self, positions: Embedding | None, model: ModelConfig, context: int) -> Embedding | None:
    if not isinstance(positions, RoPE):
      return positions
    omega = np.asarray(positions.frequencies(model.head_dim, context).omega)
    turning = int((omega > 0).sum())
    kept = int((omega * context / (2 * math.pi) >= self.turns).sum()) if self.fastest is None else self.fastest
    if kept >= turning:
      return positions
    return dataclasses.replace(positions, pairs=kept) if kept else None


@dataclasses.dataclass(unsafe_hash=True)
class Replace(Transition):
  """Another embedding takes the place of the checkpoint's: RoPE rescaled or of another theta, to be trained on."""

  positions: Positions  # the embedding to go on with

  def apply(self, model: ModelConfig, context: int) -> ModelConfig:
    check(self.positions != model.positions, f"Replace: ModelConfig.positions is {model.positions} already; use Keep()")
    return dataclasses.replace(model, positions=self.positions)


@dataclasses.dataclass(unsafe_hash=True)
class KeepWindows(Transition):
  """The embedding stays in layers with a sliding window; one layer in `every` is global and has none (RNoPE-SWA).

  A model that was trained with such windows (OLMo-3, Gemma 2 and 3) keeps them and the embeddings of their layers.
  """

  window: int  # tokens
  every: int = 4  # one layer in so many is global

  def __post_init__(self) -> None:
    check(self.window >= 1, f"KeepWindows.window is {self.window}; it must be at least 1")
    check(self.every >= 2, f"KeepWindows.every is {self.every}; it must be at least 2")

  def apply(self, model: ModelConfig, context: int) -> ModelConfig:
    positions = model.positions
    check(self.window < context, f"KeepWindows.window is {self.window}; the training context is {context} tokens")
    enough = model.num_layers >= self.every
    check(enough, f"KeepWindows.every is {self.every}; of {model.num_layers} layers none would be global")
    if isinstance(positions, LayerPattern) and positions.layers[-1].positions is not None:
      windows = [layer.window for layer in positions.layers]
      check(
        windows == [*[self.window] * (self.every - 1), None],
        f"{self}: ModelConfig.positions is {positions}; its windows must be those that are kept already",
      )
      return _with_layers(model, [*positions.layers[:-1], Layer(None)])
    if not isinstance(positions, Embedding):
      raise ConfigError(f"KeepWindows: ModelConfig.positions is {positions}; its global layers have nothing to drop")
    return _with_layers(model, [*[Layer(positions, self.window)] * (self.every - 1), Layer(None)])


def drop(config: ModelConfig) -> ModelConfig:
  """The same model without the positional embedding of any layer (paper section 5); the parameters serve both.

  The windows of a pattern stay: like the causal mask they say what attention sees, not where it lies. A pattern that
  has no window becomes plain `None`.

  Raises:
    ConfigError: if there is no embedding to drop.
  """
  cycle = layer_cycle(config.positions)
  if all(layer.positions is None for layer in cycle):
    raise ConfigError(f"ModelConfig.positions is {config.positions}: there is no positional embedding to drop")
  return _with_layers(config, [dataclasses.replace(layer, positions=None) for layer in cycle])


def while_under_way(
  transition: Transition, source: ModelConfig, run: ModelConfig, step: int, steps: int
) -> ModelConfig:
  """The model that the weights after `step` of `steps` steps belong to.

  That is the model of the run, unless the transition has a table for this step: then its rotations have the frequencies
  of that table. Layers whose frequencies are all zero have no embedding.

  Args:
    source: the model of the checkpoint from which the run started.
    run: the model that the transition has made of it.
  """
  table = transition.frequencies(source, jnp.int32(step), steps) if step < steps else None
  if table is None:
    return run
  cycle, factor = layer_cycle(source.positions), float(table.factor)
  omega = np.broadcast_to(np.asarray(table.omega, np.float64), (source.num_layers, source.head_dim // 2))

  def layer(index: int) -> Layer:
    before, of_layer = cycle[index % len(cycle)], omega[index]
    left = RoPETable(tuple(of_layer.tolist()), factor) if of_layer.any() or factor != 1 else None
    return before if before.positions is None else dataclasses.replace(before, positions=left)

  return _with_layers(run, [layer(index) for index in range(source.num_layers)])


def _with_layers(config: ModelConfig, cycle: list[Layer]) -> ModelConfig:
  """The config with this cycle of layers, said as simply as it can be."""
  plain = len(set(cycle)) == 1 and cycle[0].window is None
  return dataclasses.replace(config, positions=cycle[0].positions if plain else LayerPattern(tuple(cycle)))


def _omega_by_layer(model: ModelConfig) -> np.ndarray:
  """The frequencies of every layer, (L, h/2); those of a layer that does not rotate are zero."""
  embeddings = [layer.positions for layer in layer_cycle(model.positions)]
  tables = [None if embedding is None else embedding.table(model.head_dim) for embedding in embeddings]
  rows = [np.zeros(model.head_dim // 2) if table is None else np.asarray(table.omega) for table in tables]
  return np.stack([rows[i % len(rows)] for i in range(model.num_layers)])

"""Objectives as values: what a run minimises.

An objective is a function of `Inputs`: the weights, one micro-batch, and where the run stands. It
returns sums over the real targets, so that micro-batches add up exactly, whatever their numbers of targets are.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from drope_jax.errors import check
from drope_jax.loss import SummedLosses, TokenLosses
from drope_jax.model import Hidden
from drope_jax.shares import elapsed, steps_of
from drope_jax.values import Value

Array = jax.Array
Sums = dict[str, Array]


class Inputs(Protocol):
  """What an objective sees of a step."""

  @property
  def step(self) -> Array:
    """The number of steps done so far, int32 ()."""

  @property
  def steps(self) -> int:
    """Steps of the whole run."""

  @property
  def targets_BT(self) -> Array:
    """The tokens to predict, int32."""

  @property
  def weights_BT(self) -> Array:
    """Float32: 1 where a target counts. With a document mask it must belong to the document of the token before it."""

  def student(self, taps: tuple[str, ...] = ()) -> Hidden:
    """What the model that is trained makes of the batch; `taps` (of model.TAPS) of all layers."""

  def teacher(self, taps: tuple[str, ...] = ()) -> Hidden:
    """The same of the frozen weights under their own model; no gradient flows to it."""

  def token_losses(self, states_BTD: Array) -> TokenLosses:
    """Losses of the batch's targets, given the student's hidden states; see loss.token_losses."""

  def summed_losses(self, states_BTD: Array, z_loss: float = 0.0) -> SummedLosses:
    """The sum of these losses over the targets that count: faster than to add them up; see loss.summed_token_losses."""

  def by_chunk(self, function: Callable[..., Any], student_BTD: Array, teacher_BTD: Array) -> Any:
    """`function` of the logits of both and the targets, a chunk of C positions at a time: no (B, T, V) array exists.

    Args:
      function: (student's logits (B, C, V), teacher's, targets (B, C)) -> a tree of arrays (B, C).
    """


class Objective(Value):
  """The base of all objectives; a user's own derives from this and has `__call__`."""

  def __call__(self, inputs: Inputs) -> tuple[Array, Sums]:
    """The sum to differentiate, and sums to report: all over the real targets of one micro-batch, float32 ().

    Returns:
      The first divided by the number of targets is what is minimised. Of the second, "nll" (negative log-likelihood in
      nats) and "tokens" (the number of targets) must be there; every other one is divided by "tokens" and recorded
      under its name. NaN means that it was not computed at this step: the record then has null.
    """
    raise NotImplementedError

  def frozen(self) -> str | None:
    """Whose weights it needs beside the run's own: None, "init" (the checkpoint of InitConfig) or a run's workdir."""
    return None

  def extra_forwards(self, step: int, steps: int) -> float:
    """Forward passes of a step, of `steps`, beside the model's own; each is a third of the FLOPs of training."""
    return 0.0

  def phase(self, step: int, steps: int) -> tuple[int, ...]:
    """Which of its parts is minimised at a step, of `steps`, where it has parts that follow each other."""
    return ()


@dataclasses.dataclass(unsafe_hash=True)
class NextToken(Objective):
  """Cross-entropy of the next token."""

  z_loss: float = 0.0  # weight of the squared log-partition

  def __post_init__(self) -> None:
    check(self.z_loss >= 0, f"NextToken.z_loss is {self.z_loss}; it must be at least 0")

  def __call__(self, inputs: Inputs) -> tuple[Array, Sums]:
    total, nll = inputs.summed_losses(inputs.student().states_BTD, self.z_loss)
    return total, {"nll": nll, "tokens": inputs.weights_BT.sum()}


@dataclasses.dataclass(unsafe_hash=True)
class Distill(Objective):
  """Cross-entropy, plus a distance from a frozen teacher whose weight falls linearly to zero.

  The teacher of a drop is usually the checkpoint that the run started from, under the checkpoint's own model: what the
  model did while it still had its positional embedding.
  """

  weight: float = 1.0  # of the distance at the first step; cross-entropy has 1
  until: float = 1.0  # share of the steps at which the weight has fallen to zero; then no teacher runs
  teacher: str = "init"  # the checkpoint of InitConfig, or the workdir of a run (its last step)
  # "logits": KL(teacher || student) of the next token, in nats. "attention": mean squared difference of what the
  # attention sublayers add to the residual stream, over features and layers (which then run unrolled).
  what: str = "logits"

  def __post_init__(self) -> None:
    check(self.weight > 0, f"Distill.weight is {self.weight}; it must be positive")
    check(0 < self.until <= 1, f"Distill.until is {self.until}; it must lie in (0, 1]")
    check(bool(self.teacher), "Distill.teacher is empty; allowed: 'init', or the workdir of a run")
    allowed = ("logits", "attention")
    check(self.what in allowed, f"Distill.what is {self.what!r}; allowed: {', '.join(allowed)}")

  def frozen(self) -> str:
    return self.teacher

  def extra_forwards(self, step: int, steps: int) -> float:
    return float(step < steps_of(self.until, steps))

  def __call__(self, inputs: Inputs) -> tuple[Array, Sums]:
    name, taps, measure = {
      "logits": ("kl", (), self._divergence),
      "attention": ("attention_mse", ("attention",), self._attention_apart),
    }[self.what]
    student = inputs.student(taps)

    def alone() -> tuple[Array, Array]:
      return inputs.summed_losses(student.states_BTD).total, jnp.zeros(())

    progress = elapsed(inputs.step, self.until, inputs.steps)
    nll, distance = jax.lax.cond(progress < 1, lambda: measure(inputs, student), alone)
    total = nll + self.weight * (1 - progress) * distance
    return total, {"nll": nll, "tokens": inputs.weights_BT.sum(), name: jnp.where(progress < 1, distance, jnp.nan)}

  @staticmethod
  def _divergence(inputs: Inputs, student: Hidden) -> tuple[Array, Array]:
    found_BT = inputs.by_chunk(_nll_and_divergence, student.states_BTD, inputs.teacher().states_BTD)
    nll, kl = ((values_BT * inputs.weights_BT).sum() for values_BT in found_BT)
    return nll, kl

  @staticmethod
  def _attention_apart(inputs: Inputs, student: Hidden) -> tuple[Array, Array]:
    teacher_LBTD = inputs.teacher(("attention",)).taps["attention"]
    apart_LBTD = student.taps["attention"].astype(jnp.float32) - teacher_LBTD.astype(jnp.float32)
    distance_BT = (apart_LBTD**2).mean(axis=(0, -1))
    return inputs.summed_losses(student.states_BTD).total, (distance_BT * inputs.weights_BT).sum()


@dataclasses.dataclass(unsafe_hash=True, kw_only=True)
class InTurn(Objective):
  """One objective for the first share of the steps, and then another: attention learns from the teacher, then logits.

  Each counts the steps of the whole run: the weight of a `Distill` that comes second has fallen meanwhile. If both have
  a teacher, it is the same.
  """

  first: Objective
  then: Objective
  share: float  # of the steps, in (0, 1)

  def __post_init__(self) -> None:
    for name in ("first", "then"):
      value = getattr(self, name)
      check(isinstance(value, Objective), f"InTurn.{name} is {value!r}; it must be an objective")
    check(0 < self.share < 1, f"InTurn.share is {self.share}; it must lie in (0, 1)")
    teachers = sorted({whose for one in (self.first, self.then) if (whose := one.frozen()) is not None})
    check(len(teachers) < 2, f"InTurn: the teachers are {' and '.join(teachers)}; they must be the same")

  def frozen(self) -> str | None:
    return self.first.frozen() or self.then.frozen()

  def extra_forwards(self, step: int, steps: int) -> float:
    return self._at(step, steps).extra_forwards(step, steps)

  def phase(self, step: int, steps: int) -> tuple[int, ...]:
    now = self._at(step, steps)
    return int(now is self.then), *now.phase(step, steps)

  def _at(self, step: int, steps: int) -> Objective:
    return self.first if step < steps_of(self.share, steps) else self.then

  def __call__(self, inputs: Inputs) -> tuple[Array, Sums]:
    names = {name for sums in jax.eval_shape(lambda: (self.first(inputs)[1], self.then(inputs)[1])) for name in sums}

    def all_sums(objective: Objective) -> tuple[Array, Sums]:
      total, sums = objective(inputs)
      return total, dict.fromkeys(names, jnp.array(jnp.nan)) | sums

    is_first = inputs.step < steps_of(self.share, inputs.steps)
    return jax.lax.cond(is_first, lambda: all_sums(self.first), lambda: all_sums(self.then))


def _nll_and_divergence(logits_BCV: Array, teacher_BCV: Array, targets_BC: Array) -> tuple[Array, Array]:
  """The negative log-likelihood of the targets, and KL(teacher || student), in nats, both (B, C)."""
  log_q, log_p = jax.nn.log_softmax(logits_BCV), jax.nn.log_softmax(teacher_BCV)
  nll_BC = -jnp.take_along_axis(log_q, targets_BC[..., None], axis=-1)[..., 0]
  return nll_BC, (jnp.exp(log_p) * (log_p - log_q)).sum(axis=-1)

"""The training step: the inputs of an objective, its gradient accumulated over micro-batches, and the update."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from drope_jax.checkpoint import TrainState
from drope_jax.chunks import map_chunks
from drope_jax.errors import ConfigError
from drope_jax.loss import SummedLosses, TokenLosses, chunk_length, summed_token_losses, token_losses
from drope_jax.model import Hidden, Taps, hidden_states, unembed
from drope_jax.model_config import ComputeConfig, ModelConfig
from drope_jax.objective import Objective, Sums
from drope_jax.parameters import Params
from drope_jax.rotation import Frequencies
from drope_jax.sharding import named_sharding
from drope_jax.training.run import Run

Array = jax.Array
Report = dict[str, Any]

# The fields of a training record (log.py), which an objective's own metrics must not use.
RECORDED = {
  *("step", "kind", "loss", "grad_norm", "learning_rate", "tokens_per_second", "mfu", "seconds", "data_seconds"),
  *("param_norm", "update_norm", "skipped_updates"),
}


@dataclasses.dataclass(frozen=True)
class MicroBatch:
  """The `Inputs` of an objective: the weights, one micro-batch, and the progress of the run.

  Attributes:
    frozen: the weights that the objective asks for (Objective.frozen).
    batch: int32 (B, T+1): `tokens`; with a document mask also `segments` and `positions`.
    step: int32 (), the number of steps done so far.
  """

  run: Run
  params: Params
  frozen: Params | None
  batch: dict[str, Array]
  step: Array

  @property
  def steps(self) -> int:
    """Steps of the whole run."""
    return self.run.config.steps

  @property
  def targets_BT(self) -> Array:
    """The next token of each position, int32."""
    return self.batch["tokens"][:, 1:]

  @property
  def weights_BT(self) -> Array:
    """Float32: 1 where a target counts. With a document mask it must be in the same document as the token before it."""
    if "segments" not in self.batch:
      return jnp.ones(self.targets_BT.shape, jnp.float32)
    segments = self.batch["segments"]
    return (segments[:, :-1] == segments[:, 1:]).astype(jnp.float32)

  def student(self, taps: tuple[str, ...] = ()) -> Hidden:
    """The hidden states of the trained model, and the intermediates `taps` (of model.TAPS) of all layers."""
    return self._states(self.params, self.run.trained, taps, self.run.frequencies(self.step))

  def teacher(self, taps: tuple[str, ...] = ()) -> Hidden:
    """The same for the frozen weights and their own model; no gradient flows to it."""
    assert self.run.teacher is not None and self.frozen is not None, "Objective.frozen asks for no weights"
    return jax.lax.stop_gradient(self._states(self.frozen, self.run.teacher, taps, None))

  def _states(self, params: Params, model: ModelConfig, names: tuple[str, ...], table: Frequencies | None) -> Hidden:
    inputs = {name: value[:, :-1] for name, value in self.batch.items()}
    return hidden_states(
      params,
      model,
      inputs["tokens"],
      compute=self._compute,
      segments_BT=inputs.get("segments"),
      position_ids_BT=inputs.get("positions"),
      frequencies=table,
      taps=Taps(tuple(range(model.num_layers)) if names else (), names),
    )

  def token_losses(self, states_BTD: Array) -> TokenLosses:
    """Losses of the batch's targets, given the student's hidden states; see loss.token_losses."""
    compute, softcap = self._compute, self.run.trained.logits_softcap
    return token_losses(
      self.params, states_BTD, self.targets_BT, compute.loss_chunk, compute.derivatives, softcap=softcap
    )

  def summed_losses(self, states_BTD: Array, z_loss: float = 0.0) -> SummedLosses:
    """The sum of these losses over the targets that count, which is faster: see loss.summed_token_losses."""
    return summed_token_losses(
      self.params,
      states_BTD,
      self.targets_BT,
      self.weights_BT,
      z_loss=z_loss,
      chunk=self._compute.loss_chunk,
      derivatives=self._compute.derivatives,
      softcap=self.run.trained.logits_softcap,
    )

  def by_chunk(self, function: Callable[..., Any], student_BTD: Array, teacher_BTD: Array) -> Any:
    """`function` of both models' logits and the targets, computed in chunks of C positions without (B, T, V) arrays.

    Args:
      function: (student's logits (B, C, V), teacher's, targets (B, C)) -> a tree of arrays (B, C).
    """

    frozen, teacher = self.frozen, self.run.teacher
    assert teacher is not None and frozen is not None, "Objective.frozen asks for no weights"

    def of_logits(student_BCD: Array, teacher_BCD: Array, targets_BC: Array) -> Any:
      teacher_BCV = jax.lax.stop_gradient(unembed(frozen, teacher_BCD, softcap=teacher.logits_softcap))
      student_BCV = unembed(
        self.params, student_BCD, self._compute.derivatives, softcap=self.run.trained.logits_softcap
      )
      return function(student_BCV, teacher_BCV, targets_BC)

    batch, length, width = student_BTD.shape
    vocab = 2 * self.run.model.vocab_size  # the logits of both exist at the same time
    enough = chunk_length(batch, length, width=width, vocab=vocab, dtype=student_BTD.dtype, gradient=True)
    return map_chunks(of_logits, (student_BTD, teacher_BTD, self.targets_BT), self._compute.loss_chunk or enough)

  @property
  def _compute(self) -> ComputeConfig:
    return self.run.config.compute


def make_train_step(run: Run, optimizer: optax.GradientTransformation, objective: Objective):
  """The pure function (state, batch, step, frozen) -> (state, report), to be compiled by the caller.

  The batch is split into `optim.accumulation` micro-batches, whose sums of losses and gradients are added up and
  divided once by the number of targets that count, so that accumulation changes nothing but memory.

  The arguments `batch` and `step` are those of `MicroBatch`; `frozen` is None unless the objective has a teacher. The
  report is {"loss": mean negative log-likelihood, "grad_norm", "tokens", "metrics": the objective's own, as means,
  "norms": of parameters and updates, if configured, "skipped": bool, if updates may be skipped}. If the loss, gradient
  or update of such a step is not finite, its state is returned unchanged.
  """
  pieces = run.config.optim.accumulation

  def loss(params: Params, batch: dict[str, Array], step: Array, frozen: Params | None) -> Any:
    return as_promised(objective, objective(MicroBatch(run, params, frozen, batch, step)))

  gradient = jax.value_and_grad(loss, has_aux=True)

  def sums_and_gradients(params: Params, batch: dict[str, Array], *others: Any) -> Any:
    (_, sums), grads = gradient(params, batch, *others)
    return sums, grads

  def train_step(state: TrainState, batch: dict[str, Array], step: Array, frozen: Any) -> tuple[TrainState, Report]:
    if pieces == 1:
      sums, grads = sums_and_gradients(state.params, batch, step, frozen)
    else:
      # Row r goes to micro-batch r % pieces, so that every device has local rows in each.
      micro = jax.tree.map(lambda x: x.reshape(-1, pieces, *x.shape[1:]).swapaxes(0, 1), batch)

      def add(totals: Any, rows: dict[str, Array]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, totals, sums_and_gradients(state.params, rows, step, frozen)), None

      first = jax.tree.map(lambda x: x[0], micro)
      zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(sums_and_gradients, state.params, first, step, frozen))
      (sums, grads), _ = jax.lax.scan(add, zeros, micro)
    count = jnp.maximum(sums["tokens"], 1.0)
    grads = jax.tree.map(lambda g: g / count, grads)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    report = {"loss": sums["nll"] / count, "grad_norm": optax.tree.norm(grads), "tokens": sums["tokens"]}
    report["metrics"] = {name: total / count for name, total in sums.items() if name not in ("nll", "tokens")}
    if taken := sorted(RECORDED & report["metrics"].keys()):
      raise ConfigError(f"{objective}: a sum is called {taken[0]!r}, as another field of a record; rename it")
    report["norms"] = {}
    if run.config.log_norms:
      report["norms"] = {"param_norm": optax.tree.norm(state.params), "update_norm": optax.tree.norm(updates)}
    updated = TrainState(optax.apply_updates(state.params, updates), opt_state)
    if run.config.skip_updates:
      numbers = jnp.stack([report["loss"], report["grad_norm"], optax.tree.norm(updates)])
      report["skipped"] = ~jnp.isfinite(numbers).all()
      updated = jax.tree.map(lambda old, new: jnp.where(report["skipped"], old, new), state, updated)
    return updated, report

  return train_step


def as_promised(objective: Objective, returned: Any) -> tuple[Array, Sums]:
  """The result of an objective; raises ConfigError if it is not as `Objective.__call__` specifies."""
  match returned:
    case (total, {"nll": _, "tokens": _} as sums) if not any(jnp.shape(value) for value in (total, *sums.values())):
      return total, sums
  raise ConfigError(
    f"{objective}: returned {jax.tree.map(jnp.shape, returned)} (shapes); it must return a sum () and a dict of sums "
    "() with 'nll' and 'tokens' among them"
  )


def jit_train_step(run: Run, optimizer: optax.GradientTransformation, abstract: TrainState, frozen: Any, mesh: Mesh):
  """`make_train_step` of the run's objective under `jax.jit`; the state keeps its shardings and is donated.

  Args:
    abstract, frozen: shapes and shardings of the state and of the frozen weights (None if there are none).
  """
  state, still = (jax.tree.map(lambda leaf: leaf.sharding, tree) for tree in (abstract, frozen))
  everywhere = NamedSharding(mesh, PartitionSpec())
  return jax.jit(
    make_train_step(run, optimizer, run.config.objective),
    in_shardings=(state, batch_sharding(mesh), everywhere, still),
    out_shardings=(state, everywhere),
    donate_argnums=0,
    compiler_options=compiler_options(run.config.compute, mesh),
  )


def compiler_options(compute: ComputeConfig, mesh: Mesh) -> dict[str, str]:
  """The options of ComputeConfig.xla_options for the mesh's platform."""
  found = {}
  for option in compute.xla_options:
    platform, _, setting = option.partition(":")
    name, _, value = setting.partition("=")
    if platform == mesh.devices.flat[0].platform:
      found[name] = value
  return found


def step_number(step: int) -> np.ndarray:
  """A step number as int32 (), so that all steps share one compiled program."""
  return np.asarray(step, np.int32)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """The sharding of the rows of a training batch."""
  return named_sharding(mesh, ("batch",))

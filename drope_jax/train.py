"""One run, read top to bottom: where the weights come from, the step, the loop.

Where weights come from, in this order:
  1. the last complete checkpoint of the run's own workdir: with optimizer, data position and step; always wins;
  2. `config.init`: another run's weights only, its positional embedding dropped and QK-norm inserted as asked.
     Optimizer (unless `keep_optimizer`), schedule, step count and data start anew;
  3. scratch: `config.model` initialised from `config.seed`.
"""

import contextlib
import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from drope_jax import checkpoint, distributed, drope, metrics
from drope_jax.attention.accelerators import ACCELERATED, PLATFORMS, Feature, obstacle
from drope_jax.checkpoint import TrainState
from drope_jax.config import ModelConfig, TrainConfig
from drope_jax.data.pipeline import settled, train_batches
from drope_jax.data.tokenizers import load_tokenizer
from drope_jax.errors import CheckpointError, ConfigError
from drope_jax.files import holds_something
from drope_jax.loss import summed_loss
from drope_jax.model import compute_dtype, init_params, map_specs
from drope_jax.optim import learning_rate, make_optimizer
from drope_jax.platforms import target_platform
from drope_jax.positions import layer_cycle
from drope_jax.serialization import checked, differences, is_cut_off, load_config, save_config, to_dict
from drope_jax.sharding import check_divides, make_mesh, named_sharding

Array = jax.Array

logger = logging.getLogger(__name__)

# What the step is compiled with, by platform. On CPUs XLA may give products to YNNPACK; its own were faster for the
# narrow models that one trains there (jax 0.10.2).
# On TPUs XLA may split the product of a weight that is gathered along its contracted dimension, one product a piece,
# and adds them up: with 16 pieces it writes and reads all logits 16 times, and the step of the 494M model moves 2196 GB
# instead of 596 (libtpu 0.0.42, by drope_jax.aot). Whole gathers overlap with other products all the same.
XLA_OPTIONS = {
  "cpu": {"xla_cpu_experimental_ynn_fusion_type": ""},
  "tpu": {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"},
}


class Outcome(NamedTuple):
  """How a call of `train` ended."""

  step: int
  finished: bool  # False: stopped by SIGTERM after saving `step`; the same call goes on from there


# --- the run -----------------------------------------------------------------------------------


def resolve(config: TrainConfig) -> TrainConfig:
  """The config with `model`, and a tokenizer "init", filled in from `init`'s checkpoint.

  Raises:
    ConfigError: if `model` is given too and disagrees.
  """
  config = checked(config)
  if config.init is None:
    return config
  if config.init.keep_optimizer and checkpoint.load_run_config(config.init.checkpoint, config.init.step) is None:
    raise ConfigError(
      f"InitConfig.keep_optimizer is True; {config.init.checkpoint} is an imported model, without an optimizer state"
    )
  source = checkpoint.load_model_config(config.init.checkpoint, config.init.step)
  if config.data.tokenizer == "init":
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, tokenizer=config.init.checkpoint))
  return start_from(config, source)


def start_from(config: TrainConfig, model: ModelConfig) -> TrainConfig:
  """The config with the model that `config.init` makes of its checkpoint's `model`; raises as `resolve` does."""
  assert config.init is not None
  model = config.init.transition.apply(model, config.data.context)
  if config.init.qk_norm is not None:
    model = dataclasses.replace(model, qk_norm=config.init.qk_norm)
  if config.model is not None:
    found = differences(to_dict(model), to_dict(config.model))
    if found:
      raise ConfigError(f"TrainConfig.model is not that of init.checkpoint ({config.init.checkpoint}): {found[0]}")
  # The run's model says it all from here on.
  return dataclasses.replace(config, model=model, init=dataclasses.replace(config.init, model=None))


def with_order(config: TrainConfig, workdir: epath.Path) -> TrainConfig:
  """The config with the order of its documents settled: as the workdir has recorded it, or for a run that starts."""
  path = workdir / "config.json"
  recorded = before = None
  if path.exists() and not is_cut_off(path, TrainConfig):
    recorded = load_config(TrainConfig, path).data
  if config.init is not None:
    run = checkpoint.load_run_config(config.init.checkpoint, config.init.step)
    before = run.data if run is not None else None
  return dataclasses.replace(config, data=settled(config.data, config.seed, before, recorded))


def claim(workdir: epath.Path, config: TrainConfig) -> None:
  """Makes `workdir` this run's, with its config.json; raises CheckpointError if it is another run's.

  All hosts look before the first writes, so that all of them refuse or none does. A config.json that was cut off is
  written anew: whose the checkpoints are, they say themselves.
  """
  path = workdir / "config.json"
  if path.exists() and is_cut_off(path, TrainConfig):
    logger.warning("%s was cut off; it is written anew", path)
  elif path.exists():
    checkpoint.refuse_other_run(to_dict(load_config(TrainConfig, path)), config, workdir)
  elif holds_something(workdir):
    raise CheckpointError(f"{workdir} is not empty and holds no config.json; choose another workdir")
  multihost_utils.sync_global_devices("every host has looked at the workdir")
  if jax.process_index() == 0:
    workdir.mkdir(parents=True, exist_ok=True)
    save_config(config, path)


def check_layout(config: TrainConfig, mesh: Mesh | AbstractMesh) -> None:
  """Raises ConfigError naming a size of the model or its batches that `mesh` does not cut into equal pieces."""
  assert config.model is not None
  specs = jax.tree_util.tree_leaves_with_path(
    map_specs(lambda spec: (spec,), config.model), is_leaf=lambda node: isinstance(node, tuple)
  )
  sizes = [
    (f"the {dimension!r} of {jax.tree_util.keystr(path, simple=True, separator='.')}", dimension, size)
    for path, (spec,) in specs
    for dimension, size in zip(spec.dimensions, spec.shape, strict=True)
  ]
  rows = config.data.batch_size // config.optim.accumulation
  check_divides(mesh, [("DataConfig.context", "length", config.data.context), *sizes])
  check_divides(mesh, [("DataConfig.batch_size / OptimConfig.accumulation", "batch", rows)])


def check_kernel(config: TrainConfig, mesh: Mesh) -> None:
  """Raises ConfigError if the attention kernel that is asked for cannot serve the run: its platform, model or data."""
  assert config.model is not None
  model, kernel = config.model, config.compute.attention
  if kernel not in (*ACCELERATED, "unrolled"):  # the others take everything
    return
  refused = f"ComputeConfig.attention is {kernel!r}, which"
  with jax.set_mesh(mesh):
    wanted, here = {name: platform for platform, name in PLATFORMS.items()}.get(kernel), target_platform()
    if wanted not in (None, here):
      raise ConfigError(f"{refused} runs on {wanted}; this is {here} ('auto' chooses)")
    rows, dtype = config.data.batch_size // config.optim.accumulation, compute_dtype(config.compute)

    def projection(heads: int) -> Any:
      return jax.ShapeDtypeStruct((rows, config.data.context, heads, model.head_dim), dtype)

    inputs = projection(model.num_heads), projection(model.num_kv_heads)
    segments = () if config.data.document_mask else None
    for layer in layer_cycle(model.positions):
      bias = None if layer.positions is None else layer.positions.bias(model.num_heads)
      found = obstacle(kernel, *inputs, offset=0, segments=segments, bias=bias)
      if found:
        field = " (DataConfig.document_mask)" if found.feature is Feature.SEGMENTS else ""
        raise ConfigError(f"{refused} cannot take {found.text}{field}; 'auto' chooses another where it must")


def train(config: TrainConfig, workdir: epath.PathLike) -> Outcome:
  """Runs `config` in `workdir` to its last step, from wherever it stands; a finished run returns at once.

  Writes config.json, metrics.jsonl, checkpoints/ and a copy of the tokenizer (README.md, "What a run writes").

  Raises:
    ConfigError: the config cannot be, or does not fit the devices.
    CheckpointError: the workdir is another run's, or a checkpoint is missing.
    FloatingPointError: the loss or its gradient is no longer finite; nothing after the last checkpoint is kept.
  """
  workdir = epath.Path(workdir)
  config = with_order(resolve(config), workdir)
  assert config.model is not None
  model = config.model
  mesh = make_mesh(config.mesh)
  tokenizer = load_tokenizer(config.data.tokenizer)
  if tokenizer.vocab_size > model.vocab_size:
    raise ConfigError(
      f"ModelConfig.vocab_size is {model.vocab_size}; the tokenizer {config.data.tokenizer} has {tokenizer.vocab_size}"
    )
  check_layout(config, mesh)
  check_kernel(config, mesh)
  metrics.check_trackers(config.trackers)
  data = train_batches(config.data, config.seed, *distributed.reader(batch_sharding(mesh), config.data.batch_size))
  claim(workdir, config)
  if jax.process_index() == 0:
    tokenizer.save(workdir)

  optimizer = make_optimizer(config.optim, model, config.steps)
  abstract = abstract_state(model, optimizer, mesh)
  with contextlib.closing(data), checkpoint.open_manager(workdir, config) as manager, jax.set_mesh(mesh):
    step, tokens, seconds = 0, 0, 0.0
    last = manager.latest_step()
    if last is not None:
      state, meta = checkpoint.resume(manager, last, abstract, data, config)
      step, tokens, seconds = meta["step"], meta["tokens"], meta["seconds"]
      logger.info("goes on from step %d of %s", step, workdir)
    elif config.init is not None:
      state = _state_from(config, mesh, optimizer, abstract)
    else:
      state = fresh_state(model, optimizer, abstract, config.seed)
    if step >= config.steps:
      return Outcome(step, finished=True)

    loop = _Loop(config, mesh, manager, workdir, jit_train_step(config, optimizer, abstract, mesh))
    with distributed.sigterm() as stop_at:
      return loop.run(state, data, step, tokens, seconds, stop_at)


# --- state -------------------------------------------------------------------------------------


def abstract_state(model: ModelConfig, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
  """Shapes, dtypes and shardings: moments lie where their parameters do, everything else on every device."""
  params = checkpoint.abstract_params(model, mesh)
  everywhere = NamedSharding(mesh, PartitionSpec())
  opt_state = optax.tree_utils.tree_map_params(
    optimizer,
    lambda _, param: param,
    jax.eval_shape(optimizer.init, params),
    params,
    transform_non_params=lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere),
  )
  return TrainState(params, opt_state)


def fresh_state(
  model: ModelConfig, optimizer: optax.GradientTransformation, abstract: TrainState, seed: int
) -> TrainState:
  """Parameters drawn by `seed` and an optimizer state, born where those of `abstract` (an abstract_state) lie."""

  def draw(key: Array) -> TrainState:
    params = init_params(model, key)
    return TrainState(params, optimizer.init(params))

  shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
  return jax.jit(draw, out_shardings=shardings)(jax.random.key(seed))


def _state_from(
  config: TrainConfig, mesh: Mesh, optimizer: optax.GradientTransformation, abstract: TrainState
) -> TrainState:
  """Weights of `config.init`, with what was asked done to them, and an optimizer state, fresh or carried over."""
  init = config.init
  assert init is not None
  source = checkpoint.load(init.checkpoint, init.step, mesh)
  params = source.params
  if init.qk_norm is not None:
    _, params = drope.insert_qk_norm(source.model, params, init.qk_norm)
  logger.info(
    "weights from %s, step %d: transition %s, QK-norm %s, optimizer state %s",
    init.checkpoint,
    source.step,
    init.transition,
    "inserted" if init.qk_norm else "as it was",
    "kept" if init.keep_optimizer else "fresh",
  )
  shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
  params = jax.device_put(params, shardings.params)
  opt_state = jax.jit(optimizer.init, out_shardings=shardings.opt_state)(params)
  if init.keep_optimizer:
    assert source.config is not None  # see resolve
    source_optimizer = make_optimizer(source.config.optim, source.model, source.config.steps)
    abstract_source = abstract_state(source.model, source_optimizer, mesh).opt_state
    adam = optax.tree_utils.tree_get(
      checkpoint.load_optimizer_state(init.checkpoint, source.step, abstract_source), "ScaleByAdamState"
    )
    # Moments of weights that the source did not have (an inserted norm) start at zero, as its fresh ones do.
    fresh = optax.tree_utils.tree_get(opt_state, "ScaleByAdamState")
    carried = adam._replace(mu=_overlay(fresh.mu, adam.mu), nu=_overlay(fresh.nu, adam.nu))
    opt_state = optax.tree_utils.tree_set(opt_state, ScaleByAdamState=carried)
  return TrainState(params, opt_state)


def _overlay(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
  """`below` with every leaf that `above` has."""
  return {
    name: (_overlay(value, above[name]) if isinstance(value, dict) else above[name]) if name in above else value
    for name, value in below.items()
  }


# --- the step ----------------------------------------------------------------------------------


def make_train_step(config: TrainConfig, optimizer: optax.GradientTransformation):
  """step(state, batch) -> (state, {"loss", "grad_norm", "tokens"}): a pure function, to be compiled by the caller.

  The batch is split into `optim.accumulation` micro-batches whose sums of losses and gradients are added up and divided
  by the number of real targets once, so that accumulation changes nothing but memory.
  """
  model, compute = config.model, config.compute
  assert model is not None
  pieces = config.optim.accumulation

  def loss(params: Any, batch: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
    return summed_loss(params, model, batch, compute, config.optim.z_loss)

  def add_micro_batch(totals: tuple[Any, Any], batch: dict[str, Array], params: Any) -> tuple[Any, Any]:
    (_, sums), grads = jax.value_and_grad(loss, has_aux=True)(params, batch)
    return jax.tree.map(jnp.add, totals, (sums, grads))

  def train_step(state: TrainState, batch: dict[str, Array]) -> tuple[TrainState, dict[str, Array]]:
    if pieces == 1:
      (_, sums), grads = jax.value_and_grad(loss, has_aux=True)(state.params, batch)
    else:
      # Row r goes to micro-batch r % pieces: every device keeps rows of its own in each.
      micro = jax.tree.map(lambda x: x.reshape(-1, pieces, *x.shape[1:]).swapaxes(0, 1), batch)
      zeros = ({"nll": jnp.zeros(()), "tokens": jnp.zeros(())}, jax.tree.map(jnp.zeros_like, state.params))
      (sums, grads), _ = jax.lax.scan(lambda t, b: (add_micro_batch(t, b, state.params), None), zeros, micro)
    count = jnp.maximum(sums["tokens"], 1.0)
    grads = jax.tree.map(lambda g: g / count, grads)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    report = {"loss": sums["nll"] / count, "grad_norm": optax.tree.norm(grads), "tokens": sums["tokens"]}
    return TrainState(optax.apply_updates(state.params, updates), opt_state), report

  return train_step


def jit_train_step(config: TrainConfig, optimizer: optax.GradientTransformation, abstract: TrainState, mesh: Mesh):
  """`make_train_step` under `jax.jit`: the state stays where it is and is reused, batches lie as `batch_sharding`."""
  state = jax.tree.map(lambda leaf: leaf.sharding, abstract)
  return jax.jit(
    make_train_step(config, optimizer),
    in_shardings=(state, batch_sharding(mesh)),
    out_shardings=(state, NamedSharding(mesh, PartitionSpec())),
    donate_argnums=0,
    compiler_options=XLA_OPTIONS.get(mesh.devices.flat[0].platform),
  )


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Where the rows of a training batch lie."""
  return named_sharding(mesh, ("batch",))


# --- the loop ----------------------------------------------------------------------------------


class _Loop:
  """The training loop: it dispatches step t + 1 before it looks at step t, and saves and logs on the way."""

  def __init__(self, config: TrainConfig, mesh: Mesh, manager: Any, workdir: epath.Path, step: Any):
    assert config.model is not None
    self.config, self.manager, self.workdir, self.step = config, manager, workdir, step
    self.schedule = learning_rate(config.optim, config.steps)
    self.flops = metrics.flops_per_token(config.model, config.data.context)
    self.batch_sharding = batch_sharding(mesh)

  def run(
    self,
    state: TrainState,
    data: Iterator[Any],
    step: int,
    tokens: int,
    seconds: float,
    stop_at: Callable[[int], bool],
  ) -> Outcome:
    config = self.config
    trackers: list[metrics.Tracker] = []
    if jax.process_index() == 0:
      trackers = metrics.open_trackers(config.trackers, self.workdir, to_dict(config), step)
    clock = _Clock(seconds)
    pending: list[dict[str, Array]] = []  # reports of dispatched steps that nobody has looked at yet
    saved = step
    try:
      while step < config.steps and not stop_at(step):
        batch = jax.tree.map(self._on_devices, next(data))
        state, report = self.step(state, batch)
        # Before this step's own report is queued: reading the earlier ones waits for step t while t + 1 runs.
        if pending and (step % config.log_every == 0 or step == 1):
          tokens += self._log(pending, step, tokens, clock, trackers)
          pending = []
        pending.append(report)
        step += 1
        if step % config.checkpoint_every == 0 or step == config.steps:
          tokens += self._log(pending, step, tokens, clock, trackers)
          pending = []
          self._save(step, state, data, tokens, clock)
          saved = step
      if saved != step:
        tokens += self._log(pending, step, tokens, clock, trackers)
        self._save(step, state, data, tokens, clock)
      self.manager.wait_until_finished()
    finally:
      for tracker in trackers:
        tracker.close()
    return Outcome(step, finished=step >= config.steps)

  def _on_devices(self, rows: np.ndarray) -> Array:
    """The global array of the rows that each host has read."""
    shape = (self.config.data.batch_size, *rows.shape[1:])
    return jax.make_array_from_process_local_data(self.batch_sharding, rows, shape)

  def _save(self, step: int, state: TrainState, data: Any, tokens: int, clock: "_Clock") -> None:
    checkpoint.save(self.manager, step, state, data, self.config, tokens, clock.total)

  def _log(
    self, pending: list[dict[str, Array]], step: int, tokens: int, clock: "_Clock", trackers: list[metrics.Tracker]
  ) -> int:
    """Writes the record of the steps since the last one (losses averaged by tokens); returns their tokens."""
    reports = jax.device_get(pending)
    new_tokens = sum(float(report["tokens"]) for report in reports)
    if not new_tokens:  # of documents of one token each, behind a document mask: there is no loss to tell
      logger.warning("the %d steps up to step %d had nothing to predict", len(reports), step)
      return 0
    loss = sum(float(report["loss"]) * float(report["tokens"]) for report in reports) / new_tokens
    grad_norm = float(reports[-1]["grad_norm"])
    # The loss is of the weights before the update: a gradient that is not finite would be saved with a fine loss.
    for name, value in (("loss", loss), ("gradient norm", grad_norm)):
      if not math.isfinite(value):
        raise FloatingPointError(f"the {name} at step {step} is {value}; {self.workdir} keeps its earlier checkpoints")
    elapsed = clock.lap()
    # The first lap is mostly compilation: it counts as time, but says nothing about speed.
    speed = None if clock.laps == 1 else new_tokens / elapsed
    record = {
      "step": step,
      "tokens": round(tokens + new_tokens),
      "loss": loss,
      "grad_norm": grad_norm,
      "learning_rate": float(self.schedule(step - 1)),
      "tokens_per_second": speed,
      "mfu": None if speed is None else metrics.mfu(speed, self.flops),
      "seconds": clock.total,
    }
    for tracker in trackers:
      tracker.write(record)
    eta = None if speed is None else (self.config.steps - step) * new_tokens / len(reports) / speed
    if jax.process_index() == 0:
      logger.info(metrics.progress_line(record, self.config.steps, eta))
    return round(new_tokens)


class _Clock:
  """Seconds of training, over all starts of the run, and since the last lap."""

  def __init__(self, before: float):
    self._before, self._start = before, time.monotonic()
    self._last, self.laps = self._start, 0

  @property
  def total(self) -> float:
    return self._before + time.monotonic() - self._start

  def lap(self) -> float:
    now = time.monotonic()
    elapsed, self._last = now - self._last, now
    self.laps += 1
    return elapsed

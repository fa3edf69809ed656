"""The measurements of our side; worker.py explains what such a function returns."""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from drope_jax import checkpoint
from drope_jax.config import ComputeConfig, DataConfig, ModelConfig, OptimConfig, TrainConfig
from drope_jax.data.pipeline import SHUFFLED_BATCHES, train_batches
from drope_jax.evaluate.methods import Inference
from drope_jax.evaluate.position_losses import position_losses, trace_losses
from drope_jax.generation import Generation
from drope_jax.model import init_params
from drope_jax.model_config import compute_dtype
from drope_jax.optim import make_optimizer
from drope_jax.optimizers import AdamW
from drope_jax.parameters import count_parameters, map_specs
from drope_jax.serialization import from_dict, library_versions
from drope_jax.sharding import PRESETS, make_mesh, named_sharding
from drope_jax.training.run import resolve
from drope_jax.training.state import abstract_state, fresh_state
from drope_jax.training.step import batch_sharding, jit_train_step, step_number
from experiments.benchmarks.measuring import host_memory_peak, page_faults

Measure = Callable[..., dict[str, Any]]

ADAMW = AdamW()
OPTIM = OptimConfig(peak_lr=1e-4, optimizer=ADAMW)
STEPS = 1_000_000  # of the schedule, so that its end is never reached


def _about(**more: Any) -> dict[str, Any]:
  versions = {name: version for name, version in library_versions().items() if name in ("jax", "jaxlib")}
  return {"versions": versions, "device": jax.devices()[0].device_kind, **more}


def memory_peak() -> int:
  """Peak bytes of the device if it reports them, else of this process."""
  stats = jax.devices()[0].memory_stats()
  return stats["peak_bytes_in_use"] if stats else host_memory_peak()


def matmul(size: int, dtype: str) -> tuple[dict[str, Any], Measure]:
  """FLOP/s of a product of two size x size matrices."""
  x = jax.random.normal(jax.random.key(0), (size, size), dtype)
  product = jax.jit(lambda x, y: x @ y)
  jax.block_until_ready(product(x, x))

  def measure(repeats: int) -> dict[str, Any]:
    begin = time.perf_counter()
    for _ in range(repeats):
      out = product(x, x)
    jax.block_until_ready(out)
    return {"flops": 2 * size**3 * repeats / (time.perf_counter() - begin)}

  return _about(), measure


def random_tokens(model: ModelConfig, *shape: int) -> np.ndarray:
  return np.random.default_rng(0).integers(0, model.vocab_size, shape).astype(np.int32)


class Training:
  """A compiled training step with a state, as `train` runs it."""

  def __init__(self, config: TrainConfig):
    run, self._at = resolve(config), step_number(0)
    self.mesh = make_mesh(config.mesh, rows=config.data.batch_size)
    optimizer = make_optimizer(config.optim, run.model, config.steps)
    abstract = abstract_state(run.model, optimizer, self.mesh)
    with jax.set_mesh(self.mesh):
      self.state = fresh_state(run.model, optimizer, abstract, seed=0)
      self._step: Any = jit_train_step(run, optimizer, abstract, None, self.mesh)

  def put(self, batch: dict[str, np.ndarray]) -> Any:
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(batch_sharding(self.mesh), x), batch)

  def compile(self, batch: Any) -> int:
    """Compiles the step for batches like this one; returns its bytes on each device, including the state."""
    with jax.set_mesh(self.mesh):
      self._step = self._step.lower(self.state, batch, self._at, None).compile()
    memory = self._step.memory_analysis()
    sizes = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return sizes - memory.alias_size_in_bytes  # donated arguments would be counted twice

  def step(self, batch: Any) -> jax.Array:
    """Dispatches a step, without waiting for its loss."""
    with jax.set_mesh(self.mesh):
      self.state, report = self._step(self.state, batch, self._at, None)
    return report["loss"]


def train_config(model: dict[str, Any], data: DataConfig, compute: dict[str, Any]) -> TrainConfig:
  return TrainConfig(
    model=from_dict(ModelConfig, model), data=data, optim=OPTIM, compute=ComputeConfig(**compute), steps=STEPS
  )


def train_step(
  model: dict[str, Any], context: int, batch_size: int, compute: dict[str, Any], platform: str
) -> tuple[dict[str, Any], Measure]:
  """Seconds of a training step on one fixed batch. Raises RuntimeError if JAX runs on another platform."""
  if jax.default_backend() != platform:
    raise RuntimeError(f"JAX computes on {jax.default_backend()} here, not on {platform}")
  config = train_config(model, DataConfig(directory="", context=context, batch_size=batch_size), compute)
  training = Training(config)
  batch = training.put({"tokens": random_tokens(from_dict(ModelConfig, model), batch_size, context + 1)})
  begin = time.perf_counter()
  training.step(batch).block_until_ready()
  first = time.perf_counter() - begin

  def measure(steps: int) -> dict[str, Any]:
    begin, faults = time.perf_counter(), page_faults()
    for _ in range(steps):
      loss = training.step(batch)
    loss.block_until_ready()
    found = {"seconds": (time.perf_counter() - begin) / steps, "page_faults": (page_faults() - faults) / steps}
    return {**found, "loss": float(loss), "memory": memory_peak()}

  return _about(first_step_seconds=first, dtype=str(compute_dtype(config.compute))), measure


def training_with_data(
  model: dict[str, Any], compute: dict[str, Any], data: dict[str, Any]
) -> tuple[dict[str, Any], Measure]:
  """A training step on the pipeline's batches, the same on one fixed batch, and the pipeline alone."""
  config = train_config(model, from_dict(DataConfig, data), compute)
  training, batches = Training(config), train_batches(config.data, seed=0)
  fixed = training.put(next(batches))
  training.step(fixed).block_until_ready()

  def timed(steps: int, next_batch: Callable[[], Any]) -> tuple[float, float]:
    """Seconds per step, and the host's share of them spent getting a batch."""
    waited, begin = 0.0, time.perf_counter()
    for _ in range(steps):
      before = time.perf_counter()
      batch = next_batch()
      waited += time.perf_counter() - before
      loss = training.step(batch)
    loss.block_until_ready()
    return (time.perf_counter() - begin) / steps, waited / steps

  def measure(steps: int) -> dict[str, Any]:
    with_data, getting = timed(steps, lambda: training.put(next(batches)))
    without, _ = timed(steps, lambda: fixed)
    begin = time.perf_counter()
    for _ in range(SHUFFLED_BATCHES):  # a whole shuffle window, which is read when its first batch is requested
      next(batches)
    alone = (time.perf_counter() - begin) / SHUFFLED_BATCHES
    return {"with_data": with_data, "getting": getting, "without": without, "alone": alone}

  return _about(), measure


def _model_and_params(
  model: dict[str, Any] | None, directory: str | None, mesh: Mesh | None = None
) -> tuple[ModelConfig, Any]:
  if directory is not None:
    loaded = checkpoint.load(directory, mesh=mesh)
    return loaded.model, loaded.params
  assert model is not None
  config = from_dict(ModelConfig, model)
  shardings = None if mesh is None else map_specs(lambda spec: named_sharding(mesh, spec.dimensions), config)
  return config, jax.jit(lambda key: init_params(config, key), out_shardings=shardings)(jax.random.key(0))


def loss_of_a_text(
  length: int, model: dict[str, Any] | None = None, directory: str | None = None
) -> tuple[dict[str, Any], Measure]:
  """The mean loss of one text of `length` tokens, as in an evaluation: seconds without compilation, and memory.

  All devices share the text, as in an evaluation with `--mesh=context`.
  """
  mesh = make_mesh(PRESETS["context"])
  config, params = _model_and_params(model, directory, mesh)
  how, text = Inference(config), random_tokens(config, 1, length + 1)
  begin = time.perf_counter()
  with jax.set_mesh(mesh):
    trace_losses(params, how, 1, length, ComputeConfig()).lower().compile()
  compiling = time.perf_counter() - begin
  before = memory_peak()

  def measure() -> dict[str, Any]:
    begin = time.perf_counter()
    with jax.set_mesh(mesh):
      loss = float(position_losses(params, how, list(text), length=length, batch_size=1).mean())
    return {"seconds": time.perf_counter() - begin, "loss": loss, "memory": memory_peak(), "memory_before": before}

  return _about(compile_seconds=compiling, parameters=count_parameters(config)), measure


def generation(
  model: dict[str, Any], batch_size: int, prompt: int, new_tokens: int, compute: dict[str, Any] | None = None
) -> tuple[dict[str, Any], Measure]:
  """Seconds of reading `batch_size` prompts of `prompt` tokens, and of `new_tokens` greedy answers to them."""
  config, params = _model_and_params(model, None)
  prompts = list(random_tokens(config, batch_size, prompt))

  def fresh() -> Generation:
    return Generation(params, config, prompts, max_new_tokens=new_tokens, compute=ComputeConfig(**compute or {}))

  fresh().compile()

  def measure() -> dict[str, Any]:
    batch, times = fresh(), [time.perf_counter()]
    batch.prefill()
    times.append(time.perf_counter())
    faults = page_faults()
    batch.decode(new_tokens)
    times.append(time.perf_counter())
    faults = page_faults() - faults
    seconds = {"prefill": times[1] - times[0], "decode": times[2] - times[1]}
    return {**seconds, "page_faults": faults, "memory": memory_peak()}

  warm = measure()
  return _about(first=warm, dtype=str(compute_dtype(ComputeConfig())), parameters=count_parameters(config)), measure

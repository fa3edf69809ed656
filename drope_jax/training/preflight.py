"""Checks whether a run can work on these devices and this machine, before anything is written."""

import dataclasses
import logging
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh

from drope_jax import checkpoint, metrics
from drope_jax.attention.accelerators import ACCELERATED, PLATFORMS, Feature, obstacle
from drope_jax.config import TrainConfig
from drope_jax.data.identity import digest
from drope_jax.data.tokenizers import Tokenizer, load_tokenizer
from drope_jax.errors import ConfigError, check
from drope_jax.model_config import ModelConfig, compute_dtype
from drope_jax.parameters import parameter_specs
from drope_jax.platforms import target_platform
from drope_jax.positions import layer_cycle
from drope_jax.sharding import check_divides
from drope_jax.training.memory import check_memory
from drope_jax.training.run import Run

logger = logging.getLogger(__name__)


def check_run(run: Run, tokenizer: Tokenizer, mesh: Mesh) -> None:
  """Raises ConfigError naming the field of the first problem; warns of settings that may be mistakes."""
  check(
    tokenizer.vocab_size <= run.model.vocab_size,
    f"ModelConfig.vocab_size is {run.model.vocab_size}; "
    f"the tokenizer {run.config.data.tokenizer} has {tokenizer.vocab_size}",
  )
  warn_of_another_tokenizer(run, tokenizer)
  warn_of_another_context(run)
  check_memory(run, mesh)
  check_layout(run, mesh)
  check_kernel(run, mesh)
  check_kept(run.config)
  warn_of_idle_settings(run.config)
  metrics.check_trackers(run.config.trackers)


def warn_of_another_tokenizer(run: Run, tokenizer: Tokenizer) -> None:
  """Warns if a run that starts from a checkpoint uses another tokenizer than the checkpoint."""
  init, given = run.config.init, run.config.data.tokenizer
  if init is None or given == init.checkpoint:
    return
  try:
    theirs = load_tokenizer(init.checkpoint)
  except ConfigError:  # an imported model may have none
    return
  if digest(theirs) != digest(tokenizer):
    logger.warning(
      "DataConfig.tokenizer is %r, and not the tokenizer of %s, whose weights know other tokens; 'init' takes theirs",
      given,
      init.checkpoint,
    )


def warn_of_another_context(run: Run) -> None:
  """Warns if a run that starts from a checkpoint trains at another context than the checkpoint."""
  init, given = run.config.init, run.config.data.context
  if init is None:
    return
  theirs = checkpoint.open_step(init.checkpoint, init.step).context
  if given != theirs:
    logger.warning(
      "DataConfig.context is %d, and %s was trained at %d tokens; DroPE recalibrates at the original context: "
      "--config.data.context=%d",
      *(given, init.checkpoint, theirs, theirs),
    )


def check_kept(config: TrainConfig) -> None:
  """Raises ConfigError unless keep_every is a multiple of checkpoint_every."""
  kept, every = config.keep_every, config.checkpoint_every
  check(
    kept is None or kept % every == 0,
    f"TrainConfig.keep_every is {kept}; it must be a multiple of checkpoint_every ({every}), at which they are written",
  )


def warn_of_idle_settings(config: TrainConfig) -> None:
  """Warns if settings of the held-out loss are given, but it is not measured."""
  defaults = {field.name: field.default for field in dataclasses.fields(TrainConfig)}
  for name in ("eval_documents", "eval_extensions") if config.eval_every is None else ():
    value = getattr(config, name)
    if value != defaults[name]:
      logger.warning(
        "TrainConfig.%s is %s, and eval_every None: no held-out loss is measured; --config.eval_every=N does",
        name,
        value,
      )


def check_layout(run: Run, mesh: Mesh | AbstractMesh) -> None:
  """Raises ConfigError naming a size of the models or batches that `mesh` does not divide."""
  config = run.config
  rows = config.data.batch_size // config.optim.accumulation
  check_divides(mesh, [("DataConfig.context", "length", config.data.context)])
  for model in (run.model, run.teacher or run.model):
    check_divides(mesh, _sizes(model))
  check_divides(mesh, [("DataConfig.batch_size / OptimConfig.accumulation", "batch", rows)])


def _sizes(model: ModelConfig) -> list[tuple[str, str, int]]:
  """(name for messages, dimension, size) of every dimension of every parameter."""
  return [
    (f"the {dimension!r} of {jax.tree_util.keystr(path, simple=True, separator='.')}", dimension, size)
    for path, spec in jax.tree.leaves_with_path(parameter_specs(model))
    for dimension, size in zip(spec.dimensions, spec.shape, strict=True)
  ]


def check_kernel(run: Run, mesh: Mesh) -> None:
  """Raises ConfigError if the configured attention kernel cannot serve the run's platform, models or data."""
  config, kernel = run.config, run.config.compute.attention
  if kernel not in (*ACCELERATED, "unrolled"):  # the others support everything
    return
  with jax.set_mesh(mesh):
    wanted = next((platform for platform, kernels in PLATFORMS.items() if kernel in kernels), None)
    here = target_platform()
    if wanted not in (None, here):
      raise ConfigError(f"{_refused(kernel)} runs on {wanted}; this is {here} ('auto' chooses)")
    for model in (run.trained, run.model, run.teacher or run.model):
      _check_kernel_takes(model, config, kernel)


def _check_kernel_takes(model: ModelConfig, config: TrainConfig, kernel: str) -> None:
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
      raise ConfigError(f"{_refused(kernel)} cannot take {found.text}{field}; 'auto' chooses another where it must")


def _refused(kernel: str) -> str:
  return f"ComputeConfig.attention is {kernel!r}, which"

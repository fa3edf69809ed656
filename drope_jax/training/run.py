"""A resolved run: a config with everything filled in that depends on the checkpoints it names."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from drope_jax import checkpoint
from drope_jax.additions import ADDITIONS
from drope_jax.config import TrainConfig
from drope_jax.errors import CheckpointError, ConfigError, check
from drope_jax.model_config import ModelConfig
from drope_jax.rotation import Frequencies
from drope_jax.serialization import checked, differences, to_dict
from drope_jax.values import recorded_name


@dataclasses.dataclass(frozen=True)
class Run:
  """A config with its models: `config.model` is `model`, and `config.init.model` is `source`."""

  config: TrainConfig
  model: ModelConfig  # the final model of the run
  source: ModelConfig | None = None  # the model of the checkpoint, if the run starts from one

  @functools.cached_property
  def trained(self) -> ModelConfig:
    """The model that the train step runs: `model`, or, for a transition with `frequencies`, `source` with new parts."""
    if self.source is None or self.config.init is None:
      return self.model
    step = jax.ShapeDtypeStruct((), jnp.int32)
    if jax.eval_shape(lambda step: self._table(self.source, step), step) is None:
      return self.model
    parts: dict[str, Any] = {field: getattr(self.model, field) for field in ("qk_norm", *ADDITIONS)}
    return dataclasses.replace(self.source, **parts)

  @functools.cached_property
  def teacher(self) -> ModelConfig | None:
    """The model of the objective's frozen weights; None if it has none. Raises errors as `resolve` does."""
    whose = self.config.objective.frozen()
    if whose is None or whose == "init":
      return self.source if whose else None
    teacher = checkpoint.open_step(whose).model
    check(
      teacher.vocab_size == self.model.vocab_size,
      f"TrainConfig.objective: {whose} has a vocabulary of {teacher.vocab_size}, the run {self.model.vocab_size}",
    )
    return teacher

  def frequencies(self, step: Any) -> Frequencies | None:
    """The frequencies with which `trained` runs at a step (from 0); None for its own."""
    return None if self.trained is self.model else self._table(self.source, step)

  def _table(self, source: Any, step: Any) -> Frequencies | None:
    assert self.config.init is not None  # its callers look
    return self.config.init.transition.frequencies(source, step, self.config.steps)


def resolve(config: TrainConfig) -> Run:
  """The run of a config; models, and the tokenizer "init", are taken from the checkpoints that it names.

  Raises:
    ConfigError: if the config is impossible, or `model` is given but differs from the model derived from `init`.
    CheckpointError: if there is no such checkpoint.
  """
  config = checked(config)
  if config.init is None:
    assert config.model is not None  # TrainConfig has one of the two
    return Run(config, config.model)
  init = config.init
  if not (epath.Path(init.checkpoint) / "checkpoints").exists():
    where = f"{init.checkpoint}: not the workdir of a run (there is no checkpoints/ in it)"
    raise CheckpointError(f"{where}; name the one to start from with --config.init.checkpoint")
  found = checkpoint.open_step(init.checkpoint, init.step)
  if init.keep_optimizer:
    _check_carries_over(config, found)
  data = config.data
  if data.tokenizer == "init":
    data = dataclasses.replace(data, tokenizer=init.checkpoint)
  config = dataclasses.replace(config, init=dataclasses.replace(init, source=found.identity), data=data)
  return start_from(config, found.model)


def start_from(config: TrainConfig, source: ModelConfig) -> Run:
  """The run of a config with `init`, given the checkpoint's model; the checkpoint itself need not exist.

  Raises:
    ConfigError: as `resolve` does.
  """
  init = config.init
  assert init is not None
  model = init.transition.apply(source, config.data.context)
  if init.qk_norm is not None:
    check(
      source.qk_norm is None,
      f"InitConfig.qk_norm: the model of {init.checkpoint} has one already ({source.qk_norm}); leave it out",
    )
    model = dataclasses.replace(model, qk_norm=init.qk_norm)
  added: dict[str, Any] = {field: True for field in ADDITIONS if getattr(init, field)}
  for field in added:
    check(
      not getattr(source, field), f"InitConfig.{field}: the model of {init.checkpoint} has it already; leave it out"
    )
  model = dataclasses.replace(model, **added)
  if config.model is not None:
    found = differences(to_dict(model), to_dict(config.model))
    check(not found, f"TrainConfig.model is not that of init.checkpoint ({init.checkpoint}): {''.join(found[:1])}")
  config = dataclasses.replace(config, model=model, init=dataclasses.replace(init, model=source))
  return Run(config, model, source)


def _check_carries_over(config: TrainConfig, found: checkpoint.SavedStep) -> None:
  kept = "InitConfig.keep_optimizer is True; "
  if found.config is None:
    raise ConfigError(f"{kept}{found.workdir} is an imported model, without an optimizer state")
  theirs, ours = (recorded_name(type(one.optim.optimizer)) for one in (found.config, config))
  check(theirs == ours, f"{kept}the optimizer of {found.workdir} is {theirs}, and the run's {ours}")

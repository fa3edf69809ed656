"""Checkpoints of a run: an orbax composite of `params`, `opt_state`, `data` and `meta` per step.

`params` is an item of its own, so weights load alone, on any mesh, without knowing the optimizer. `meta` is JSON: step,
tokens, seconds, the run's complete config and the library versions. A pretrained model that was imported is a single
step 0 of `params` and `meta`, which then holds the model's config, its context and where it comes from.
"""

import json
import logging
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import Mesh, SingleDeviceSharding

from drope_jax.config import ModelConfig, TrainConfig
from drope_jax.data.pipeline import join_states
from drope_jax.errors import CheckpointError, ConfigError
from drope_jax.model import Params, map_specs
from drope_jax.serialization import differences, from_dict, library_versions, to_dict
from drope_jax.sharding import named_sharding

logger = logging.getLogger(__name__)

_CHUNK_BYTES = 8 << 20  # of an imported array, written and read as one; small beside the arrays of large models

# What may change between the starts of one run: where and how it is computed and logged, never what is computed. The
# documents and the tokenizer may lie elsewhere: the place in the data holds what they are known by (data/pipeline.py).
_FREE_ON_RESUME = (
  "mesh",
  "compute",
  "data.directory",
  "data.split",
  "data.source",
  "data.tokenizer",
  "data.num_workers",
  "optim.accumulation",
  "log_every",
  "checkpoint_every",
  "keep_latest",
  "keep_every",
  "trackers",
)


class TrainState(NamedTuple):
  """What a training step turns into the next: plain arrays, laid out by sharding.py."""

  params: Params
  opt_state: Any


class Checkpoint(NamedTuple):
  """Weights and what they belong to."""

  model: ModelConfig
  params: Params
  config: TrainConfig | None  # of the run that wrote it; None: imported (drope_jax.interop)
  step: int
  tokens: int
  context: int  # tokens it was trained at


def open_manager(workdir: epath.PathLike, config: TrainConfig | None = None) -> ocp.CheckpointManager:
  """The manager of `workdir`'s checkpoints: for saving as `config` says, or only for reading if it is None."""
  if config is None:
    options = ocp.CheckpointManagerOptions(read_only=True, save_interval_steps=0, create=False)
  else:
    options = ocp.CheckpointManagerOptions(
      max_to_keep=config.keep_latest, keep_period=config.keep_every, enable_async_checkpointing=True
    )
  return ocp.CheckpointManager(epath.Path(workdir).resolve() / "checkpoints", options=options)


def save(
  manager: ocp.CheckpointManager,
  step: int,
  state: TrainState,
  data: grain.DatasetIterator,
  config: TrainConfig,
  tokens: int,
  seconds: float,
) -> None:
  """Starts writing step `step`; the write goes on in the background, from a copy of the state."""
  meta = {"step": step, "tokens": tokens, "seconds": seconds, "config": to_dict(config), "versions": library_versions()}
  manager.save(
    step,
    args=ocp.args.Composite(
      params=ocp.args.StandardSave(state.params),
      opt_state=ocp.args.StandardSave(state.opt_state),
      data=grain.checkpoint.CheckpointSave(data),
      meta=ocp.args.JsonSave(meta),
    ),
    force=True,
  )


def save_weights(
  workdir: epath.PathLike, model: ModelConfig, params: Params, context: int, origin: dict[str, Any]
) -> None:
  """Writes weights that no run of ours has made, as step 0 of `workdir`.

  Args:
    context: tokens that the model was made for.
    origin: where it comes from, as JSON.
  """
  meta = {"step": 0, "tokens": 0, "seconds": 0.0, "model": to_dict(model), "context": context, "origin": origin}
  options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False)
  # By default all arrays are compressed at one time, each as a whole, which needs the memory of all of them again.
  in_chunks = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES), params)
  largest = max(leaf.nbytes for leaf in jax.tree.leaves(params))
  handlers = {
    "params": ocp.StandardCheckpointHandler(save_concurrent_gb=1.01 * largest / 1e9),
    "meta": ocp.JsonCheckpointHandler(),
  }
  directory = epath.Path(workdir).resolve() / "checkpoints"
  with ocp.CheckpointManager(directory, options=options, item_handlers=handlers) as manager:
    items = {
      "params": ocp.args.StandardSave(params, save_args=in_chunks),
      "meta": ocp.args.JsonSave({**meta, "versions": library_versions()}),
    }
    manager.save(0, args=ocp.args.Composite(**items))


def _restore(manager: ocp.CheckpointManager, step: int, **items: Any) -> Any:
  """These items of a step. Raises CheckpointError naming one that is missing."""
  path = manager.directory / str(step)
  for name in items:
    if not (path / name).exists():
      raise CheckpointError(f"{path}: this checkpoint is not complete, it has no {name}")
  return manager.restore(step, args=ocp.args.Composite(**items))


def read_meta(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
  """The `meta` of a step."""
  return _restore(manager, step, meta=ocp.args.JsonRestore())["meta"]


def resume(
  manager: ocp.CheckpointManager, step: int, abstract: TrainState, data: grain.DatasetIterator, config: TrainConfig
) -> tuple[TrainState, dict[str, Any]]:
  """State and meta of a step; `data` is set to where it was.

  Args:
    abstract: shapes, dtypes and shardings of the state, which may be of another mesh than the one that saved.
    config: of the run that goes on.

  Raises:
    CheckpointError: if the checkpoint is another run's, naming the field, or is not complete.
  """
  path, meta = manager.directory / str(step), read_meta(manager, step)
  try:
    there = _described(meta)[0]
  except ConfigError as error:
    raise CheckpointError(f"{path}: its meta has no config of this version ({error})") from error
  refuse_other_run(to_dict(there), config, path)
  for difference in differences(meta["versions"], library_versions()):
    logger.info("%s was written with other versions: %s", path, difference)
  restored = _restore(
    manager,
    step,
    params=ocp.args.StandardRestore(abstract.params),
    opt_state=ocp.args.StandardRestore(abstract.opt_state),
  )
  data.set_state(_data_state(path / "data"))
  data.start_prefetch()
  return TrainState(restored["params"], restored["opt_state"]), meta


def _data_state(directory: epath.Path) -> dict[str, Any]:
  """The place in the stream, from the files of all processes that wrote it: grain's handler reads one's own alone."""
  files = sorted(directory.glob("process_*-of-*.json")) if directory.exists() else []
  try:
    return join_states(json.loads(file.read_text()) for file in files)
  except (IndexError, KeyError, ValueError) as error:
    raise CheckpointError(f"{directory}: the place in the data cannot be read ({error!r})") from error


def refuse_other_run(there: Any, config: TrainConfig, where: Any) -> None:
  """Raises CheckpointError naming the first field in which `there` (a to_dict) is another run than `config`."""

  def free(difference: str) -> bool:
    path = difference.split(":")[0]
    return any(path == name or path.startswith(f"{name}.") for name in _FREE_ON_RESUME)

  found = [difference for difference in differences(there, to_dict(config)) if not free(difference)]
  if found:
    raise CheckpointError(f"{where} belongs to another run: {found[0]}")


def abstract_params(model: ModelConfig, mesh: Mesh | None = None) -> Params:
  """Shapes, dtypes and shardings of the parameters: on `mesh`, or on the first local device."""
  device = SingleDeviceSharding(jax.local_devices()[0])
  return map_specs(
    lambda spec: jax.ShapeDtypeStruct(
      spec.shape, jnp.float32, sharding=device if mesh is None else named_sharding(mesh, spec.dimensions)
    ),
    model,
  )


def _checkpoint_step(manager: ocp.CheckpointManager, workdir: Any, step: int | None) -> int:
  """The step asked for, or the last; raises CheckpointError naming the path if there is none."""
  steps = sorted(manager.all_steps())
  if not steps:
    raise CheckpointError(f"{workdir}: no complete checkpoint under checkpoints/")
  if step is not None and step not in steps:
    raise CheckpointError(f"{workdir}: no checkpoint of step {step}; there are {', '.join(map(str, steps))}")
  return steps[-1] if step is None else step


def _open_for_reading(workdir: epath.PathLike) -> ocp.CheckpointManager:
  if not (epath.Path(workdir) / "checkpoints").exists():
    raise CheckpointError(f"{workdir}: not the workdir of a run (there is no checkpoints/ in it)")
  return open_manager(workdir)


def _described(meta: dict[str, Any]) -> tuple[TrainConfig | None, ModelConfig, int]:
  """The run's config (None for an imported model), the model, and the context that it was trained at."""
  if "origin" in meta:
    return None, from_dict(ModelConfig, meta["model"]), meta["context"]
  config = from_dict(TrainConfig, meta["config"])
  assert config.model is not None  # a run writes its resolved config
  return config, config.model, config.data.context


def load_model_config(workdir: epath.PathLike, step: int | None = None) -> ModelConfig:
  """The model of a run's checkpoint, without its weights. Raises CheckpointError as `load` does."""
  return _described(load_meta(workdir, step))[1]


def load_run_config(workdir: epath.PathLike, step: int | None = None) -> TrainConfig | None:
  """The config of the run that wrote a checkpoint; None if it was imported. Raises CheckpointError as `load` does."""
  return _described(load_meta(workdir, step))[0]


def load_meta(workdir: epath.PathLike, step: int | None = None) -> dict[str, Any]:
  """What a checkpoint says of itself. Raises CheckpointError as `load` does."""
  with _open_for_reading(workdir) as manager:
    return read_meta(manager, _checkpoint_step(manager, workdir, step))


def load(workdir: epath.PathLike, step: int | None = None, mesh: Mesh | None = None) -> Checkpoint:
  """Loads the weights of a run, or of an imported model.

  Args:
    workdir: the run's directory (the one that holds checkpoints/).
    step: which checkpoint; None for the last complete one.
    mesh: where the weights go, sharded by the rules of sharding.py; None for the first local device.

  Raises:
    CheckpointError: naming the path, if there is no such checkpoint.
  """
  with _open_for_reading(workdir) as manager:
    step = _checkpoint_step(manager, workdir, step)
    meta = read_meta(manager, step)
    config, model, context = _described(meta)
    abstract = abstract_params(model, mesh)
    params = _restore(manager, step, params=ocp.args.StandardRestore(abstract))["params"]
  return Checkpoint(model, params, config, step, meta["tokens"], context)


def load_optimizer_state(workdir: epath.PathLike, step: int, abstract_opt_state: Any) -> Any:
  """The optimizer state of a run's checkpoint, laid out as `abstract_opt_state` says."""
  with _open_for_reading(workdir) as manager:
    restored = _restore(manager, step, opt_state=ocp.args.StandardRestore(abstract_opt_state))
  logger.info("optimizer state carried over from %s, step %d", workdir, step)
  return restored["opt_state"]


def load_context(workdir: epath.PathLike, step: int | None = None) -> int:
  """Tokens that the model of a checkpoint was trained at. Raises CheckpointError as `load` does."""
  return _described(load_meta(workdir, step))[2]

"""Checkpoints of a run: an orbax composite of `params`, `opt_state`, `data` and `meta` per step.

`params` is an item of its own, so weights load alone, on any mesh, without knowing the optimizer. `meta` is JSON: step,
tokens, seconds, the run's complete config, the library versions, and digests of everything (digests.py), which are
checked on loading. A pretrained model that was imported is a single step 0 of `params` and `meta`, which then holds the
model's config, its context and where it comes from.
"""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterable
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import Mesh, SingleDeviceSharding

from drope_jax import digests
from drope_jax.checkpoint_files import check_sizes, check_whole, complete_steps
from drope_jax.config import TrainConfig
from drope_jax.data.pipeline import join_states
from drope_jax.errors import CheckpointError, ConfigError
from drope_jax.model_config import ModelConfig
from drope_jax.orbax_threads import quiet
from drope_jax.parameters import Params, map_specs
from drope_jax.saving import naming_failures
from drope_jax.serialization import differences, from_dict, library_versions, to_dict
from drope_jax.sharding import named_sharding
from drope_jax.transitions import while_under_way

logger = logging.getLogger(__name__)

_CHUNK_BYTES = 8 << 20  # of an imported array, written and read as one; small beside the arrays of large models

# What orbax raises for files that are damaged: of the system, of tensorstore, of JSON that is not what it looks for.
_UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError)

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
  "init.model",  # what init.checkpoint holds; runs before 0.1 did not record it
  "init.source",  # likewise; where two starts agree on it, init.checkpoint may have moved: see refuse_other_run
  "log_every",
  "log_norms",
  "eval_every",
  "eval_documents",
  "eval_extensions",
  "profile_steps",
  "skip_updates",
  "checkpoint_every",
  "keep_latest",
  "keep_every",
  "trackers",
)

# What may change too if a run is extended: how long it goes on, and at which rate.
EXTENDABLE = (
  "steps",
  "optim.peak_lr",
  "optim.schedule",
  "optim.warmup_steps",
  "optim.decay_steps",
  "optim.floor",
)


class TrainState(NamedTuple):
  """What a training step turns into the next: plain arrays, laid out by sharding.py."""

  params: Params
  opt_state: Any


class Checkpoint(NamedTuple):
  """Weights and what they belong to: a `SavedStep` with its weights loaded."""

  model: ModelConfig
  params: Params
  config: TrainConfig | None  # of the run that wrote it; None: imported (drope_jax.interop)
  step: int
  tokens: int
  context: int  # tokens it was trained at


def open_manager(workdir: epath.PathLike) -> ocp.CheckpointManager:
  """The manager of `workdir`'s checkpoints, for reading; that which writes them is saving.writing."""
  options = ocp.CheckpointManagerOptions(read_only=True, save_interval_steps=0, create=False)
  return ocp.CheckpointManager(_folder(workdir), options=options)


def _folder(workdir: epath.PathLike) -> epath.Path:
  return epath.Path(workdir).resolve() / "checkpoints"


def save(
  manager: ocp.CheckpointManager,
  step: int,
  state: TrainState,
  data: grain.DatasetIterator,
  config: TrainConfig,
  tokens: int,
  seconds: float,
  teacher_step: int | None = None,
  skipped: int = 0,
) -> None:
  """Starts writing step `step`; the write goes on in the background, from a copy of the state.

  Args:
    manager: of saving.writing.
    tokens, seconds: of the whole run so far.
    teacher_step: of the checkpoint that holds the objective's frozen weights, if it has any.
    skipped: updates that were skipped so far (TrainConfig.skip_updates).

  Raises:
    CheckpointError: if this save, or the one before, has failed.
  """
  meta = {"step": step, "tokens": tokens, "seconds": seconds, "config": to_dict(config), "versions": library_versions()}
  if teacher_step is not None:
    meta["teacher_step"] = teacher_step
  if skipped:
    meta["skipped"] = skipped
  meta = _with_digests(meta, data, params=state.params, opt_state=state.opt_state)
  with naming_failures(manager.directory):
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
  meta = _with_digests(meta | {"versions": library_versions()}, None, params=params)
  options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False)
  # By default all arrays are compressed at one time, each as a whole, which needs the memory of all of them again.
  in_chunks = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES), params)
  largest = max(leaf.nbytes for leaf in jax.tree.leaves(params))
  handlers = {
    "params": ocp.StandardCheckpointHandler(save_concurrent_gb=1.01 * largest / 1e9),
    "meta": ocp.JsonCheckpointHandler(),
  }
  with ocp.CheckpointManager(_folder(workdir), options=options, item_handlers=handlers) as manager:
    items = {
      "params": ocp.args.StandardSave(params, save_args=in_chunks),
      "meta": ocp.args.JsonSave(meta),
    }
    manager.save(0, args=ocp.args.Composite(**items))


def _with_digests(meta: dict[str, Any], data: grain.DatasetIterator | None, **arrays: Any) -> dict[str, Any]:
  """The meta with digests of a step's arrays, of its place in the data and of itself, unless they are turned off."""
  if not digests.enabled():
    return meta
  known = {name: digests.of_arrays(tree) for name, tree in arrays.items()}
  if data is not None:
    known["data"] = digests.of_hosts(data.get_state())
  meta = {**meta, "digests": known}
  return {**meta, "digest": digests.of_json(meta)}


def _check_there(path: epath.Path, items: Iterable[str]) -> None:
  """Raises CheckpointError naming an item of a step that is missing, or not whole."""
  for name in items:
    if not (path / name).exists():
      raise CheckpointError(f"{path}: this checkpoint is not complete, it has no {name}{_others(path)}")
    check_whole(path / name)


def _restore(manager: ocp.CheckpointManager, step: int, **items: Any) -> Any:
  """These items of a step, of which _check_there holds. Raises CheckpointError if they cannot be read."""
  path = manager.directory / str(step)
  try:
    with quiet():
      return manager.restore(step, args=ocp.args.Composite(**items))
  except Exception as error:
    # Orbax raises a bare one for an array that tensorstore cannot decode, and others for JSON that lacks a key.
    if type(error) is not Exception and not isinstance(error, _UNREADABLE):
      raise
    cause = error.__cause__ or error
    said = f"{type(cause).__name__}: {cause}".splitlines()[0][:200]
    raise CheckpointError(f"{path}: {' and '.join(items)} cannot be read ({said}){_others(path)}") from error


def _restore_arrays(
  manager: ocp.CheckpointManager, step: int, meta: dict[str, Any], model: ModelConfig, **items: Any
) -> Any:
  """Items of arrays, as the abstract trees `items` lay them out: of the sizes of `model`, and as they were saved.

  Raises:
    CheckpointError: naming the step, the item and the array, or the field of the config that contradicts it.
  """
  path = manager.directory / str(step)
  _check_there(path, items)
  for name, abstract in items.items():
    check_sizes(path / name, abstract, model)
  restored = _restore(manager, step, **{name: ocp.args.StandardRestore(tree) for name, tree in items.items()})
  if digests.enabled() and "digests" in meta:
    for name in items:
      _check_unchanged(path, name, meta["digests"][name], digests.of_arrays(restored[name]))
  return restored


def _check_unchanged(path: epath.Path, item: str, before: dict[str, str], now: dict[str, str]) -> None:
  """Raises CheckpointError naming what of an item has other digests than it was saved with."""
  found = digests.changed(before, now)
  if found:
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    raise CheckpointError(
      f"{path}: {f'{item} {found[0]}'.strip()}{more} is not as it was saved: its digest is another{_others(path)}; "
      f"{digests.VARIABLE}=off loads it as it is"
    )


def _others(path: epath.Path) -> str:
  """Where one can go from a step that is damaged. Nothing goes there by itself: it would be another model."""
  steps = [step for step in complete_steps(path.parent) if str(step) != path.name]
  if not steps:
    return ""
  return f"; other steps here: {', '.join(map(str, steps))} (--step=N, or --config.init.step=N)"


def read_meta(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
  """The `meta` of a step. Raises CheckpointError if it cannot be read, or is not as it was saved."""
  path = manager.directory / str(step)
  _check_there(path, ["meta"])
  meta = _restore(manager, step, meta=ocp.args.JsonRestore())["meta"]
  if not isinstance(meta, dict):
    raise CheckpointError(f"{path}: its meta is no object of JSON{_others(path)}")
  digest = meta.pop("digest", None)
  if digest is not None and digests.enabled():
    _check_unchanged(path, "meta", {"": digest}, {"": digests.of_json(meta)})
  return meta


def resume(
  manager: ocp.CheckpointManager,
  step: int,
  abstract: TrainState,
  data: grain.DatasetIterator,
  config: TrainConfig,
  extend: bool = False,
) -> tuple[TrainState, dict[str, Any]]:
  """State and meta of a step; `data` is set to where it was.

  Args:
    abstract: shapes, dtypes and shardings of the state, which may be of another mesh than the one that saved.
    config: of the run that goes on.
    extend: whether the fields of EXTENDABLE may have changed.

  Raises:
    CheckpointError: if the checkpoint is another run's, naming the field, or is not complete.
  """
  path, meta = manager.directory / str(step), check_ours(manager, step, config, extend)
  assert config.model is not None  # of a resolved run
  restored = _restore_arrays(manager, step, meta, config.model, params=abstract.params, opt_state=abstract.opt_state)
  data.set_state(_data_state(path, meta))
  data.start_prefetch()
  return TrainState(restored["params"], restored["opt_state"]), meta


def check_ours(manager: ocp.CheckpointManager, step: int, config: TrainConfig, extend: bool) -> dict[str, Any]:
  """The meta of a step; raises CheckpointError if it is another run's, or not of this version."""
  path, meta = manager.directory / str(step), read_meta(manager, step)
  try:
    there = _described(meta)[0]
  except ConfigError as error:
    raise CheckpointError(f"{path}: its meta has no config of this version ({error})") from error
  refuse_other_run(to_dict(there), config, path, extend)
  for difference in differences(meta["versions"], library_versions()):
    logger.info("%s was written with other versions: %s", path, difference)
  return meta


def _data_state(step: epath.Path, meta: dict[str, Any]) -> dict[str, Any]:
  """The place in the stream, from the files of all processes that wrote it: grain's handler reads one's own alone."""
  directory = step / "data"
  files = sorted(directory.glob("process_*-of-*.json")) if directory.exists() else []
  try:
    states = {file.name: json.loads(file.read_text()) for file in files}
    joined = join_states(states.values())
  except (IndexError, KeyError, ValueError) as error:
    raise CheckpointError(f"{directory}: the place in the data cannot be read ({error!r}){_others(step)}") from error
  known = meta.get("digests", {}).get("data")
  if known is not None and digests.enabled():
    _check_unchanged(step, "data", known, {name: digests.of_json(state) for name, state in states.items()})
  return joined


def refuse_other_run(there: Any, config: TrainConfig, where: Any, extend: bool = False) -> None:
  """Raises CheckpointError naming the first field in which `there` (a to_dict) is another run than `config`.

  Args:
    extend: whether the fields of EXTENDABLE may differ.
  """

  def among(difference: str, fields: tuple[str, ...]) -> bool:
    path = difference.split(":")[0]
    return any(path == name or path.startswith(f"{name}.") for name in fields)

  here = to_dict(config)
  ours, theirs = ((one.get("init") or {}).get("source") for one in (here, there))
  free = (*_FREE_ON_RESUME, *(["init.checkpoint"] if ours is not None and ours == theirs else []))
  found = [difference for difference in differences(there, here) if not among(difference, free)]
  other = [difference for difference in found if not among(difference, EXTENDABLE)]
  if other or (found and not extend):
    way_out = "" if other else "; to go on with it all the same, extend the run (experiments.train --extend)"
    raise CheckpointError(f"{where} belongs to another run: {(other or found)[0]}{way_out}")


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
  """The run's config (None for an imported model), the model, and the context that it was trained at.

  The model of a step within a fade has the frequencies of that step; config.model is what the run makes.
  """
  if "origin" in meta:
    return None, from_dict(ModelConfig, meta["model"]), meta["context"]
  config = from_dict(TrainConfig, meta["config"])
  if config.model is None:
    raise ConfigError("TrainConfig.model is missing: a run writes the model that it makes")
  model, init = config.model, config.init
  if init is not None and init.model is not None:
    model = while_under_way(init.transition, init.model, model, meta["step"], config.steps)
  return config, model, config.data.context


@dataclasses.dataclass(frozen=True)
class SavedStep:
  """A step of a workdir: its description is read when it is opened, its arrays when they are asked for."""

  workdir: epath.Path
  step: int
  meta: dict[str, Any]  # see the module's docstring
  config: TrainConfig | None  # of the run that wrote it; None: imported (drope_jax.interop)
  model: ModelConfig  # that the weights of this step belong to; within a fade not yet `config.model`
  context: int  # tokens it was trained at

  @property
  def identity(self) -> str:
    """What this step is known by, wherever it lies: a digest of its meta, whose seconds no other run shares."""
    return hashlib.sha256(json.dumps(self.meta, sort_keys=True).encode()).hexdigest()[:16]

  def params(self, mesh: Mesh | None = None) -> Params:
    """The weights, sharded over `mesh` by the rules of sharding.py; without one on the first local device."""
    return self._read("params", abstract_params(self.model, mesh))

  def optimizer_state(self, abstract: Any) -> Any:
    """The optimizer's state, laid out as `abstract` says. Raises CheckpointError if there is none."""
    return self._read("opt_state", abstract)

  def load(self, mesh: Mesh | None = None) -> Checkpoint:
    """This step with its weights: see `params`."""
    return Checkpoint(self.model, self.params(mesh), self.config, self.step, self.meta["tokens"], self.context)

  def _read(self, item: str, abstract: Any) -> Any:
    with _open_for_reading(self.workdir) as manager:
      return _restore_arrays(manager, self.step, self.meta, self.model, **{item: abstract})[item]


def open_step(workdir: epath.PathLike, step: int | None = None) -> SavedStep:
  """A step of a run, or of an imported model.

  Args:
    workdir: the run's directory (the one that holds checkpoints/).
    step: which one; None for the last complete one.

  Raises:
    CheckpointError: naming the path, if there is no such checkpoint, or it is not complete.
    ConfigError: if its config is not one of this version's.
  """
  with _open_for_reading(workdir) as manager:
    step = _checkpoint_step(manager, workdir, step)
    meta = read_meta(manager, step)
  return SavedStep(epath.Path(workdir), step, meta, *_described(meta))


def load(workdir: epath.PathLike, step: int | None = None, mesh: Mesh | None = None) -> Checkpoint:
  """The weights of a run, or of an imported model: short for `open_step(workdir, step).load(mesh)`.

  Args:
    workdir: the run's directory (the one that holds checkpoints/).
    step: which checkpoint; None for the last complete one.
    mesh: where the weights go, sharded by the rules of sharding.py; None for the first local device.

  Raises:
    CheckpointError: naming the path, if there is no such checkpoint.
  """
  return open_step(workdir, step).load(mesh)

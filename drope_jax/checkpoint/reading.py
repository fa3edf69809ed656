"""Reading checkpoints: the meta of a step, and its arrays on any mesh."""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import Mesh, SingleDeviceSharding

from drope_jax.checkpoint import digests
from drope_jax.checkpoint.files import check_sizes, check_whole, complete_steps, folder, refuse_file
from drope_jax.checkpoint.meta import check_meta
from drope_jax.checkpoint.orbax_threads import quiet
from drope_jax.config import TrainConfig
from drope_jax.errors import CheckpointError, ConfigError
from drope_jax.files import is_local
from drope_jax.model_config import ModelConfig
from drope_jax.parameters import Params, map_specs
from drope_jax.serialization import from_dict
from drope_jax.sharding import named_sharding
from drope_jax.transitions import while_under_way

logger = logging.getLogger(__name__)

# What orbax raises for damaged files: errors of the system, of tensorstore, and of unexpected JSON.
_UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError)


class Checkpoint(NamedTuple):
  """A `SavedStep` with its weights loaded."""

  model: ModelConfig
  params: Params
  config: TrainConfig | None  # of the run that wrote it; None: imported (drope_jax.interop)
  step: int
  tokens: int  # that it was trained on
  context: int  # training context in tokens


def open_manager(workdir: epath.PathLike) -> ocp.CheckpointManager:
  """A read-only manager of `workdir`'s checkpoints; for writing see writing.writing.

  Raises:
    CheckpointError: if `checkpoints/` is not a folder.
  """
  refuse_file(folder(workdir))
  options = ocp.CheckpointManagerOptions(read_only=True, save_interval_steps=0, create=False)
  with quiet():
    return ocp.CheckpointManager(folder(workdir), options=options)


def _check_there(path: epath.Path, items: Iterable[str]) -> None:
  """Raises CheckpointError naming an item of a step that is missing or incomplete."""
  for name in items:
    if not (path / name).exists():
      raise CheckpointError(f"{path}: this checkpoint is not complete, it has no {name}{other_steps(path)}")
    check_whole(path / name)


def _restore(manager: ocp.CheckpointManager, step: int, **items: Any) -> Any:
  """Restores items of a step, after `_check_there`. Raises CheckpointError if they cannot be read."""
  path = manager.directory / str(step)
  try:
    with quiet():
      return manager.restore(step, args=ocp.args.Composite(**items))
  except Exception as error:
    # Orbax raises a bare Exception for an array that tensorstore cannot decode, and _UNREADABLE for other damage.
    if type(error) is not Exception and not isinstance(error, _UNREADABLE):
      raise
    cause = error.__cause__ or error
    said = f"{type(cause).__name__}: {cause}".splitlines()[0][:200]
    raise CheckpointError(f"{path}: {' and '.join(items)} cannot be read ({said}){other_steps(path)}") from error


def restore_arrays(
  manager: ocp.CheckpointManager, step: int, meta: dict[str, Any], model: ModelConfig, **items: Any
) -> Any:
  """Restores items of arrays with the shapes, dtypes and shardings of the abstract trees `items`, and checks digests.

  Raises:
    CheckpointError: naming the step, the item and the array, or the config field that contradicts it.
  """
  path = manager.directory / str(step)
  _check_there(path, items)
  for name, abstract in items.items():
    check_sizes(path / name, abstract, model)
  restored = _restore(manager, step, **{name: ocp.args.StandardRestore(tree) for name, tree in items.items()})
  if digests.enabled() and "digests" in meta:
    for name in items:
      check_unchanged(path, name, meta["digests"][name], digests.of_arrays(restored[name]))
  return restored


def check_unchanged(path: epath.Path, item: str, before: dict[str, str], now: dict[str, str]) -> None:
  """Raises CheckpointError naming the first array of an item whose digest has changed since it was saved."""
  found = digests.changed(before, now)
  if found:
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    raise CheckpointError(
      f"{path}: {f'{item} {found[0]}'.strip()}{more} is not as it was saved: its digest is another{other_steps(path)}; "
      f"{digests.VARIABLE}=off loads it as it is"
    )


def other_steps(path: epath.Path) -> str:
  """A hint at the other steps if one is damaged. They are never used automatically: they are different models."""
  steps = [step for step in complete_steps(path.parent) if str(step) != path.name]
  if not steps:
    return ""
  return f"; other steps here: {', '.join(map(str, steps))} (--step=N, or --config.init.step=N)"


def read_meta(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
  """The `meta` of a step.

  Raises:
    CheckpointError: it cannot be read, differs from what was saved, or lacks a field.
  """
  path = manager.directory / str(step)
  _check_there(path, ["meta"])
  meta = _restore(manager, step, meta=ocp.args.JsonRestore())["meta"]
  if not isinstance(meta, dict):
    raise CheckpointError(f"{path}: its meta is no object of JSON{other_steps(path)}")
  digest = meta.pop("digest", None)
  if digest is not None and digests.enabled():
    check_unchanged(path, "meta", {"": digest}, {"": digests.of_json(meta)})
  found = check_meta(meta, path)
  if found["step"] != step:
    raise CheckpointError(f"{path}: holds step {found['step']}; give the folder its name back")
  return found


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
  """`step`, or the last step for None; raises CheckpointError naming the path if there is none."""
  found, steps = last_of(manager) if step is None else step, steps_of(manager)
  if not steps or found is None:
    raise CheckpointError(f"{workdir}: no complete checkpoint under checkpoints/")
  if found not in steps:
    raise CheckpointError(f"{workdir}: no checkpoint of step {step}; there are {', '.join(map(str, steps))}")
  return found


def steps_of(manager: ocp.CheckpointManager) -> list[int]:
  """The steps that were saved completely, in ascending order."""
  steps = set(manager.all_steps())
  return sorted(steps.intersection(complete_steps(manager.directory)) if is_local(manager.directory) else steps)


def last_of(manager: ocp.CheckpointManager) -> int | None:
  """The last step, if there is one. Raises CheckpointError if there is a later, incomplete one, from a broken copy."""
  last = max(steps_of(manager), default=None)
  partial = next((step for step in manager.all_steps() if last is None or step > last), None)
  if partial is not None:
    path = manager.directory / str(partial)
    raise CheckpointError(f"{path}: this checkpoint is not complete; copy it again, or remove it{other_steps(path)}")
  return last


def _open_for_reading(workdir: epath.PathLike) -> ocp.CheckpointManager:
  if not (epath.Path(workdir) / "checkpoints").exists():
    raise CheckpointError(f"{workdir}: not the workdir of a run (there is no checkpoints/ in it)")
  return open_manager(workdir)


def described(meta: dict[str, Any]) -> tuple[TrainConfig | None, ModelConfig, int]:
  """The run's config (None for an imported model), the model, and the context that it was trained at.

  During a fade, the model of a step has the frequencies of that step; config.model is the final model of the run.
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
  """A step of a workdir: its meta is read when it is opened, its arrays on request."""

  workdir: epath.Path
  step: int
  meta: dict[str, Any]  # see the docstring of drope_jax.checkpoint
  config: TrainConfig | None  # of the run that wrote it; None: imported (drope_jax.interop)
  model: ModelConfig  # the model of these weights; during a fade not yet `config.model`
  context: int  # training context in tokens

  @property
  def identity(self) -> str:
    """Identifies this step wherever it is stored: a digest of its meta, whose seconds are unique to the run."""
    return hashlib.sha256(json.dumps(self.meta, sort_keys=True).encode()).hexdigest()[:16]

  def params(self, mesh: Mesh | None = None) -> Params:
    """The weights, sharded over `mesh` by the rules of sharding.py; on the first local device for None."""
    return self._read("params", abstract_params(self.model, mesh))

  def optimizer_state(self, abstract: Any) -> Any:
    """The optimizer state, with the shardings of `abstract`. Raises CheckpointError if there is none."""
    return self._read("opt_state", abstract)

  def load(self, mesh: Mesh | None = None) -> Checkpoint:
    """This step with its weights: see `params`."""
    return Checkpoint(self.model, self.params(mesh), self.config, self.step, self.meta["tokens"], self.context)

  def _read(self, item: str, abstract: Any) -> Any:
    with _open_for_reading(self.workdir) as manager:
      return restore_arrays(manager, self.step, self.meta, self.model, **{item: abstract})[item]


def open_step(workdir: epath.PathLike, step: int | None = None) -> SavedStep:
  """A step of a run, or of an imported model.

  Args:
    workdir: the run's directory (the one that holds checkpoints/).
    step: which one; None for the last complete one.

  Raises:
    CheckpointError: naming the path, if there is no such checkpoint, or it is incomplete.
    ConfigError: if its config is not valid in this version.
  """
  with _open_for_reading(workdir) as manager:
    step = _checkpoint_step(manager, workdir, step)
    meta = read_meta(manager, step)
  try:
    found = described(meta)
  except ConfigError as error:
    raise ConfigError(f"{workdir}, step {step}: {error}") from error
  return SavedStep(epath.Path(workdir), step, meta, *found)


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

"""Checks, before orbax reads a saved item, that its files are complete and its arrays have the expected shapes.

Files may have been copied incompletely, and a config may belong to another model. Orbax stores arrays as OCDBT, a tree
of nodes in which every value is a byte range of some file. If one is missing, reading fails deep in its threads, with
hundreds of lines.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

import tensorstore
from etils import epath

from drope_jax.errors import CheckpointError
from drope_jax.files import is_local
from drope_jax.model_config import ModelConfig
from drope_jax.parameters import FIELDS, named_leaves, parameter_specs

MANIFEST = "manifest.ocdbt"
# A location as tensorstore writes it: "value:ocdbt.process_0/:d/0e17...:9665:2893" (directory, file, offset, length).
_PLACE = re.compile(r"(btreenode|value):([^:]*):([^:]*):(\d+):(\d+)")

_COMPLETE = "_CHECKPOINT_METADATA"  # in the folder of a step: orbax writes it last, and deletes it first
_DESCRIPTION = "/.zarray"  # suffix of the key that holds the shape, dtype and chunks of an array as JSON


def folder(workdir: epath.PathLike) -> epath.Path:
  """The folder of the checkpoints of a workdir."""
  return epath.Path(workdir).resolve() / "checkpoints"


def refuse_file(checkpoints: epath.Path) -> None:
  """Raises CheckpointError if there is a file in place of the folder."""
  if checkpoints.exists() and not checkpoints.is_dir():
    raise CheckpointError(f"{checkpoints}: a file, where the folder of checkpoints should be; move it away")


def complete_steps(checkpoints: epath.Path) -> list[int]:
  """The steps in `checkpoints` that were saved completely and not partly deleted, in ascending order."""
  there = checkpoints.iterdir() if checkpoints.is_dir() else ()
  return sorted(int(step.name) for step in there if step.name.isdigit() and (step / _COMPLETE).exists())


def check_whole(item: epath.Path) -> None:
  """Raises CheckpointError, naming the file, if a file of this item's arrays is missing or too short.

  Items that are not stored as OCDBT, or not on this machine, are not checked.
  """
  if not is_local(item):
    return
  if not (item / MANIFEST).exists():
    if (item / "d").exists():
      raise CheckpointError(f"{item}: this checkpoint is not complete, it has no {MANIFEST}")
    return
  sizes: dict[epath.Path, int] = {}
  for name, end in _ranges(item):
    path = item / name
    if path not in sizes:
      if not path.exists():
        raise CheckpointError(f"{item}: this checkpoint is not complete, it has no {name}")
      sizes[path] = path.stat().length
    if sizes[path] < end:
      raise CheckpointError(f"{path}: cut off; it has {sizes[path]:,} bytes, and {end:,} are needed")


def _ranges(item: epath.Path) -> Iterator[tuple[str, int]]:
  """Every file range that the tree refers to, as pairs (file, end in bytes); nodes come before their children."""
  store = tensorstore.KvStore.open(f"file://{item}/").result()
  nodes: list[str | None] = [None]  # the manifest
  while nodes:
    try:
      content = tensorstore.ocdbt.dump(store, node=nodes.pop()).result()
    except ValueError as error:
      raise CheckpointError(f"{item}: its arrays cannot be read ({_brief(error)})") from error
    for place in _PLACE.finditer(json.dumps(content, default=str)):
      kind, directory, file, offset, length = place.groups()
      yield directory + file, int(offset) + int(length)
      if kind == "btreenode":
        nodes.append(place[0])


def _brief(error: Any) -> str:
  """The first line of an error, shortened."""
  return str(error).splitlines()[0][:200]


def check_sizes(item: epath.Path, abstract: Any, model: ModelConfig) -> None:
  """Raises CheckpointError if an item has other arrays than `abstract`, before memory is allocated for them.

  As with `check_whole`, items that are not stored as OCDBT on this machine are not checked.

  Args:
    abstract: a tree of shapes: the parameters of `model`, or the state of an optimizer for them.
    model: used to name the config field that the arrays contradict.
  """
  if not is_local(item) or not (item / MANIFEST).exists():
    return
  there, wanted = _shapes(item), {name: leaf.shape for name, leaf in named_leaves(abstract)}
  specs = dict(named_leaves(parameter_specs(model)))
  for name, shape in wanted.items():
    if name not in there:
      raise CheckpointError(f"{item}: the array {name} is missing, which the config of this step asks for")
    for axis, (size, found) in enumerate(zip(shape, there[name], strict=False)):
      if size != found and name in specs:
        field = FIELDS[specs[name].dimensions[axis]]
        raise CheckpointError(f"{item}: ModelConfig.{field} is {size} by its config; its arrays have {found} ({name})")
    if shape != there[name]:
      raise CheckpointError(f"{item}: the array {name} is of shape {there[name]}; by its config it should be {shape}")
  for name in there.keys() - wanted.keys():
    raise CheckpointError(f"{item}: the array {name} has no place in a model of its config")


def _shapes(item: epath.Path) -> dict[str, tuple[int, ...]]:
  """The shape of every array of an item, by its path ("layers/q")."""
  try:
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": f"file://{item}/"}).result()
    described = {key.decode(): store.read(key).result().value for key in store.list().result()}
    return {
      name.removesuffix(_DESCRIPTION).replace(".", "/"): tuple(json.loads(value)["shape"])
      for name, value in described.items()
      if name.endswith(_DESCRIPTION)
    }
  except (OSError, ValueError, LookupError, TypeError) as error:
    raise CheckpointError(f"{item}: which arrays it has cannot be read ({_brief(error)})") from error

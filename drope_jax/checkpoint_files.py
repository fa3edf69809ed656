"""Whether all files of a saved item are there and whole, before orbax reads it: a copy may have broken off.

Orbax stores arrays as OCDBT, a tree of nodes in which every value is a range of bytes of some file. Reading one that is
missing fails deep in its threads, with hundreds of lines.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

import tensorstore
from etils import epath

from drope_jax.errors import CheckpointError
from drope_jax.files import is_local

MANIFEST = "manifest.ocdbt"
# A place as tensorstore writes it: "value:ocdbt.process_0/:d/0e17...:9665:2893" (directory, file, offset, length).
_PLACE = re.compile(r"(btreenode|value):([^:]*):([^:]*):(\d+):(\d+)")


def check_whole(item: epath.Path) -> None:
  """Raises CheckpointError, naming the file, if a file of this item's arrays is missing or too short.

  What is not stored as OCDBT, or not on this machine, is not checked.
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
  """Every file that the tree names, and the byte up to which it is needed; nodes are read after they were named."""
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
  """An error's first line, as far as it fits on a screen."""
  return str(error).splitlines()[0][:200]

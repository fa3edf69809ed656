"""Checks that the numbers of a run are finite and of a plausible size.

A loss or gradient that is not finite is found when a step is recorded. The weights and the optimizer state are checked
before each save, so that no checkpoint holds NaN or 1e15. The evidence is written to a file in the workdir.
"""

import collections
import dataclasses
import functools
import io
import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from drope_jax.checkpoint import TrainState
from drope_jax.files import replace_whole, writing

# Limits far above healthy training: a model that has just lost its positional embedding has a loss of about 10 nats,
# and weights reach about 1e3.
LARGEST = {"loss": 1e4, "gradient norm": math.inf, "weights": 1e6, "optimizer state": 1e12}
FOLDER = "ruined"  # of the workdir
_KEPT_BYTES = 256 << 20  # of batches since the last record


class Ruined(FloatingPointError):
  """Numbers that are not finite or far too large; `step` is the first step that is known to have them."""

  def __init__(self, message: str, step: int):
    super().__init__(message)
    self.step = step


def check(name: str, value: float, step: int) -> None:
  """Raises Ruined if a number is not finite, or above its limit in LARGEST."""
  if not math.isfinite(value):
    raise Ruined(f"the {name} at step {step} is {value}", step)
  if value > LARGEST[name]:
    raise Ruined(f"the {name} at step {step} is {value:.3g}, which training does not reach when it goes well", step)


def check_state(state: TrainState, step: int) -> None:
  """`check` of the largest weight and the largest entry of the optimizer state, computed on the devices."""
  for name, value in jax.device_get(_largest(state)).items():
    check(name, float(value), step)


@jax.jit
def _largest(state: TrainState) -> dict[str, jax.Array]:
  """The largest magnitudes, float32 (); NaN if there is one."""
  return {"weights": _magnitude(state.params), "optimizer state": _magnitude(state.opt_state)}


def _magnitude(tree: Any) -> jax.Array:
  found = [jnp.abs(leaf).max().astype(jnp.float32) for leaf in jax.tree.leaves(tree) if _is_real(leaf)]
  return functools.reduce(jnp.maximum, found, jnp.zeros((), jnp.float32))


def _is_real(leaf: Any) -> bool:
  return bool(leaf.size) and jnp.issubdtype(leaf.dtype, jnp.floating)


@dataclasses.dataclass
class Evidence:
  """Keeps the batches since the last record, up to _KEPT_BYTES, to write them to a file if the run is ruined."""

  workdir: epath.Path
  _batches: collections.deque[tuple[int, dict[str, np.ndarray]]] = dataclasses.field(default_factory=collections.deque)
  _bytes: int = 0

  def add(self, step: int, batch: dict[str, np.ndarray]) -> None:
    """Keeps the rows that this host has read for a step (counted from 1)."""
    self._batches.append((step, batch))
    self._bytes += _size(batch)
    while self._bytes > _KEPT_BYTES and len(self._batches) > 1:
      self._bytes -= _size(self._batches.popleft()[1])

  def forget(self, up_to: int) -> None:
    """Drops the batches of the steps up to this one, after their record was written."""
    while self._batches and self._batches[0][0] <= up_to:
      self._bytes -= _size(self._batches.popleft()[1])

  def write(
    self, step: int, last: int, reports: Iterable[Mapping[str, Any]], state: TrainState, state_step: int
  ) -> epath.Path:
    """Writes `ruined/step_STEP[.HOST].npz`, for numpy.load, and returns its path.

    It holds `step`, the arrays of that step's batch as this host read them (`batch/tokens` ...), `loss/STEP` and
    `grad_norm/STEP` of the steps since the last record (up to `last_step`), and the norms of all weights and moments
    after step `norm_step` (`norm/params/...`), which is one more if the next step was already dispatched.

    Args:
      reports: of the steps up to `last`, in order.
      state_step: the last step whose update is in `state`.

    Raises:
      FileError: it cannot be written, as on a full disk.
    """
    content: dict[str, Any] = {"step": step, "last_step": last, "norm_step": state_step}
    for number, batch in self._batches:
      if number == step:
        content |= {f"batch/{name}": rows for name, rows in batch.items()}
    reports = list(reports)
    for number, report in enumerate(reports, last - len(reports) + 1):
      content |= {f"{name}/{number}": float(report[name]) for name in ("loss", "grad_norm")}
    for path, norm in jax.tree.leaves_with_path(jax.device_get(_norms(state))):
      content[f"norm/{jax.tree_util.keystr(path, simple=True, separator='/')}"] = norm
    hosts = f".{jax.process_index()}" if jax.process_count() > 1 else ""
    path, buffer = self.workdir / FOLDER / f"step_{step}{hosts}.npz", io.BytesIO()
    np.savez_compressed(buffer, **content)
    with writing(path):
      path.parent.mkdir(parents=True, exist_ok=True)
    replace_whole(path, buffer.getvalue())
    return path


@jax.jit
def _norms(state: TrainState) -> TrainState:
  return jax.tree.map(lambda leaf: jnp.linalg.norm(leaf.astype(jnp.float32)), state)


def _size(batch: dict[str, np.ndarray]) -> int:
  return sum(rows.nbytes for rows in batch.values())

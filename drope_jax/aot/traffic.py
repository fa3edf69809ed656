"""The data movement of a compiled program: bytes of its collectives and to and from HBM; and its square buffers."""

import math
import re
from collections import Counter
from collections.abc import Callable, Container
from typing import NamedTuple

from drope_jax.aot.hlo import Instruction, Program, executed, instructions, runs

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# These instructions write nothing: they only name, group or wait for the results of others.
_FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all")


class Collectives(NamedTuple):
  """Bytes that one chip receives in one step, by kind of collective: within a slice (ICI) and between slices (DCN)."""

  ici: Counter[str]
  dcn: Counter[str]


_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}")
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")


def group(instruction: Instruction) -> list[int]:
  """One of the groups of devices (partition numbers) of a collective; empty if it cannot be parsed."""
  if mesh := _MESH.search(instruction.text):
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh.group(1))}
    places, stride = [0], math.prod(sizes.values())
    for name, size in sizes.items():
      stride //= size
      if f"'{name}'" in mesh.group(4):
        places = [place + i * stride for place in places for i in range(size)]
    return [_iota(place, mesh.group(2), mesh.group(3)) for place in places] if mesh.group(2) else places
  if iota := _IOTA.search(instruction.text):
    size = math.prod(_numbers(iota.group(1))[1:])
    return [_iota(place, iota.group(2), iota.group(3)) for place in range(size)]
  if listed := re.search(r"(?:replica_groups|source_target_pairs)=\{\{([\d,]+)\}", instruction.text):
    return _numbers(listed.group(1))
  return []


def _numbers(text: str) -> list[int]:
  return [int(number) for number in text.split(",")]


def _iota(place: int, dims_text: str, order_text: str | None) -> int:
  """Element `place` of iota(dims) transposed to `order`, both as text of HLO."""
  dims = _numbers(dims_text)
  order = _numbers(order_text) if order_text else list(range(len(dims)))
  number = 0
  for axis in reversed(order):
    place, at = divmod(place, dims[axis])
    number += at * math.prod(dims[axis + 1 :])
  return number


def received(kind: str, size: int, members: int) -> float:
  """Bytes that a chip receives in a collective among `members` chips, whose largest array on a chip has `size` bytes.

  This assumes ring algorithms, which are optimal in bytes: all-reduce is a reduce-scatter and an all-gather.
  """
  if kind == "collective-permute":
    return size
  return size * (members - 1) / members * (2 if kind == "all-reduce" else 1)


def collectives(program: Program, slice_of: Callable[[int], int] = lambda partition: 0) -> Collectives:
  """The collectives of a step. A collective that is split appears several times with one channel, and counts once.

  Args:
    slice_of: maps a partition number to its slice.
  """
  counts, _ = runs(program)
  found: dict[str, tuple[str, float, bool]] = {}
  for name, computation in program.computations.items():
    for instruction in computation:
      transfer = instruction.attribute(r'_xla_megascale_transfer_type="(\w+)"')
      if instruction.opcode == "recv" and transfer:
        # Between slices, the runtime of the hosts transfers and reduces the data of the chips.
        kind = transfer.lower().replace("_", "-")
        found[instruction.name] = (kind, instruction.shapes[0].bytes * counts[name], True)
        continue
      kind = instruction.opcode.removesuffix("-start")
      if kind not in COLLECTIVES or not counts[name]:
        continue
      members = group(instruction)
      results = instruction.shapes
      sent = len(instruction.operands)
      if kind != instruction.opcode and len(results) > sent:
        results = results[sent : 2 * sent]  # of (what is sent, what arrives, ...)
      size = sum(shape.bytes for shape in results)
      if kind == "reduce-scatter":
        size *= len(members) or 1  # the result is a chip's share
      scatters = kind == "all-reduce" and name.startswith("all-reduce-scatter")
      kind = "reduce-scatter" if scatters else kind
      pairs = re.findall(r"\{(\d+),(\d+)\}", instruction.attribute(r"source_target_pairs=\{(.*?\})\}") or "")
      crosses = any(slice_of(int(a)) != slice_of(int(b)) for a, b in pairs)
      crosses |= len({slice_of(member) for member in members}) > 1
      bytes_ = received(kind, size, len(members) or 1 << 30) * counts[name]
      key = instruction.attribute(r"channel_id=(\d+)") or instruction.name
      if key not in found or bytes_ > found[key][1]:
        found[key] = (kind, bytes_, crosses)
  sums = Collectives(Counter(), Counter())
  for kind, bytes_, crosses in found.values():
    (sums.dcn if crosses else sums.ici)[kind] += round(bytes_)
  return sums


def hbm_bytes(program: Program) -> int:
  """Bytes to and from HBM in a step, assuming that every buffer is written once and read once: a lower estimate.

  In-place updates count by the size of the update; prefetches into faster memory count as one read.
  """
  total = 0
  for instruction, times in executed(program):
    if instruction.opcode in (*_FREE, "partition-id") or instruction.opcode.endswith("-done"):
      continue
    if "AllocateBuffer" in instruction.text or "Bitcast" in instruction.text:
      continue
    result = instruction.shapes[:1] if instruction.opcode.endswith("-start") else instruction.shapes
    size = sum(shape.bytes for shape in result if shape.in_hbm)
    if instruction.opcode in ("copy-start", "slice-start"):
      total += times * (2 * size if size else result[0].bytes)
      continue
    if update := updated_bytes(program, instruction):
      size = min(size, update)
    total += times * 2 * size
  return total


def updated_bytes(program: Program, instruction: Instruction) -> int | None:
  """Bytes written by a dynamic-update-slice, or by a fusion that contains some; None for others."""
  called = program.computations.get(instruction.attribute(r"calls=%?([\w.-]+)") or "", [])
  inner = [instruction] if instruction.opcode == "dynamic-update-slice" else called
  updates = [i for i in inner if i.opcode == "dynamic-update-slice"]
  sizes = {i.name: sum(shape.bytes for shape in i.shapes) for i in (called or instructions(program))} if updates else {}
  return sum(sizes.get(i.operands[1], 0) for i in updates) or None


def square_buffers(program: Program, length: int, others: Container[int]) -> list[str]:
  """Types of buffers with a dimension of `length` and another dimension of `others`."""
  found = set()
  for instruction, _ in executed(program):
    for shape in instruction.shapes:
      rest = list(shape.dims)
      if length in rest:
        rest.remove(length)
        if any(size in others for size in rest):
          found.add(f"{shape.dtype}[{','.join(map(str, shape.dims))}]")
  return sorted(found)

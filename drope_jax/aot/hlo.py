"""Compiled HLO text, read for what XLA's own cost analysis leaves out: how often each loop runs.

XLA counts the body of a loop once, so a scan over 24 layers looks 24 times too cheap. Here every computation is counted
as often as it runs. How often that is follows from a loop's condition (index < constant), start and step.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Container, Iterator
from typing import NamedTuple

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
_BYTES |= {"s64": 8, "u64": 8, "f64": 8, "c64": 8, "s4": 1, "u4": 1}
_SHAPE = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\](?:\{([^}]*)\})?")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([a-z][a-z0-9-]*)\((.*)$")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# Results of these are not written: they name, group or wait for what others have written.
_FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all")


class Shape(NamedTuple):
  """One array."""

  dtype: str
  dims: tuple[int, ...]
  in_hbm: bool  # or in the chip's own faster memories

  @property
  def bytes(self) -> int:
    return math.prod(self.dims) * _BYTES.get(self.dtype, 4)


class Instruction(NamedTuple):
  """One line of a computation."""

  name: str
  shapes: tuple[Shape, ...]  # of the result; several for a tuple
  opcode: str
  operands: tuple[str, ...]
  text: str  # from the operands on
  root: bool

  def attribute(self, pattern: str) -> str | None:
    found = re.search(pattern, self.text)
    return found.group(1) if found else None


class Program(NamedTuple):
  """A compiled module."""

  computations: dict[str, list[Instruction]]
  entry: str


class Collectives(NamedTuple):
  """Bytes that one chip receives in one step, by kind; within a slice and between slices."""

  ici: Counter[str]
  dcn: Counter[str]


def parse(text: str) -> Program:
  """Reads the text of a compiled module (`compiled.as_text()`)."""
  computations: dict[str, list[Instruction]] = {}
  entry, current = "", None
  for line in text.splitlines():
    if header := _HEADER.match(line):
      current = computations.setdefault(header.group(2), [])
      entry = header.group(2) if header.group(1) else entry
    elif current is not None and (found := _INSTRUCTION.match(line)):
      root, name, result, opcode, rest = found.groups()
      arguments = re.split(r"\)(?:,|$)", rest, maxsplit=1)[0]
      operands = tuple(re.findall(r"%([\w.-]+)", arguments))
      current.append(Instruction(name, tuple(shapes(result)), opcode, operands, rest, bool(root)))
  return Program(computations, entry)


def shapes(text: str) -> Iterator[Shape]:
  """The arrays that a result type names. A layout's S(n), n > 0, is a memory other than HBM."""
  for dtype, dims, layout in _SHAPE.findall(text):
    yield Shape(dtype, tuple(int(size) for size in dims.split(",") if size), not re.search(r"S\([1-9]", layout or ""))


# --- how often a computation runs --------------------------------------------------------------


def trips(program: Program, loop: Instruction, within: list[Instruction]) -> int | None:
  """How often the body of a while instruction runs; None if the text does not tell."""
  if known := loop.attribute(r"known_trip_count\D*(\d+)"):
    return int(known)
  condition = program.computations[loop.attribute(r"condition=%?([\w.-]+)") or ""]
  body = program.computations[loop.attribute(r"body=%?([\w.-]+)") or ""]
  test = next((i for i in condition if i.root), None)
  if test is None or test.opcode != "compare" or "direction=LT" not in test.text:
    return None
  names = {i.name: i for i in condition}
  index, limit = (names[name] for name in test.operands)
  place = index.attribute(r"index=(\d+)")
  stop = _constant(limit)
  if index.opcode != "get-tuple-element" or place is None or stop is None:
    return None
  start = _traced_constant(within, _operand(within, loop.operands[0], int(place)))
  root = next(i for i in body if i.root)
  step = _step(body, root.operands[int(place)] if root.opcode == "tuple" else None, place)
  return None if start is None or not step else -(-(stop - start) // step)


def _constant(instruction: Instruction) -> int | None:
  number = re.match(r"(-?\d+)\)", instruction.text)
  return int(number.group(1)) if instruction.opcode == "constant" and number else None


def _find(instructions: list[Instruction], name: str | None) -> Instruction | None:
  return next((i for i in instructions if i.name == name), None)


def _operand(instructions: list[Instruction], name: str, place: int) -> str | None:
  """The name of a tuple's element."""
  tuple_ = _find(instructions, name)
  return tuple_.operands[place] if tuple_ is not None and tuple_.opcode == "tuple" else None


def _traced_constant(instructions: list[Instruction], name: str | None) -> int | None:
  """The constant that a value is, through copies of it."""
  value = _find(instructions, name)
  while value is not None and value.opcode in ("copy", "bitcast", "copy-done", "copy-start"):
    value = _find(instructions, value.operands[0])
  return None if value is None else _constant(value)


def _step(body: list[Instruction], name: str | None, place: str) -> int | None:
  """By how much one run of the body raises its index."""
  value, step = _find(body, name), 0
  while value is not None:
    if value.opcode == "get-tuple-element":
      return step if f"index={place}" in value.text else None
    if value.opcode == "add":
      constants = [_traced_constant(body, operand) for operand in value.operands]
      known = [(i, number) for i, number in enumerate(constants) if number is not None]
      if len(known) != 1:
        return None
      step += known[0][1]
      value = _find(body, value.operands[1 - known[0][0]])
    elif value.opcode in ("copy", "bitcast"):
      value = _find(body, value.operands[0])
    else:
      return None
  return None


def runs(program: Program) -> tuple[Counter[str], int]:
  """How often each computation runs in a step, and how many loops of unknown length were counted once."""
  counts: Counter[str] = Counter()
  unknown = 0

  def visit(name: str, times: int) -> None:
    nonlocal unknown
    counts[name] += times
    for instruction in program.computations[name]:
      called = re.findall(
        r"(?:calls|body|to_apply|called_computations|true_computation|false_computation)=\{?%?([\w.-]+)",
        instruction.text,
      )
      branches = instruction.attribute(r"branch_computations=\{([^}]*)\}")
      called += re.findall(r"%?([\w.-]+)", branches) if branches else []
      factor = 1
      if instruction.opcode == "while":
        found = trips(program, instruction, program.computations[name])
        unknown += found is None
        factor = 1 if found is None else found
      for other in called:
        if other in program.computations:
          visit(other, times * factor)

  visit(program.entry, 1)
  return counts, unknown


# --- what it costs -----------------------------------------------------------------------------


_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}")
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")


def group(instruction: Instruction) -> list[int]:
  """One of the groups of devices (numbers of partitions) that a collective joins; empty if it is not to be read."""
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
  """The number at `place` of 0, 1, 2 ... laid out in rows of these dimensions, then transposed to this order."""
  dims = _numbers(dims_text)
  order = _numbers(order_text) if order_text else list(range(len(dims)))
  number = 0
  for axis in reversed(order):
    place, at = divmod(place, dims[axis])
    number += at * math.prod(dims[axis + 1 :])
  return number


def received(kind: str, size: int, members: int) -> float:
  """Bytes that a chip receives in a collective among `members`, whose largest array on a chip has `size` bytes.

  As a ring does it, which no algorithm undercuts: all-reduce is a reduce-scatter and an all-gather.
  """
  if kind == "collective-permute":
    return size
  return size * (members - 1) / members * (2 if kind == "all-reduce" else 1)


def collectives(program: Program, slice_of: Callable[[int], int] = lambda partition: 0) -> Collectives:
  """The collectives of a step. A split one appears several times under one channel, and is counted once.

  Args:
    slice_of: partition -> its slice.
  """
  counts, _ = runs(program)
  found: dict[str, tuple[str, float, bool]] = {}
  for name, instructions in program.computations.items():
    for instruction in instructions:
      transfer = instruction.attribute(r'_xla_megascale_transfer_type="(\w+)"')
      if instruction.opcode == "recv" and transfer:
        # Between slices the hosts' runtime carries, and sums up, what the chips hand over.
        kind = transfer.lower().replace("_", "-")
        found[instruction.name] = (kind, instruction.shapes[0].bytes * counts[name], True)
        continue
      kind = instruction.opcode.removesuffix("-start")
      if kind not in COLLECTIVES or not counts[name]:
        continue
      members = group(instruction)
      results = instruction.shapes
      if kind != instruction.opcode and kind in ("all-gather", "collective-permute"):
        results = results[1:2]  # of (what is sent, what arrives, ...)
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


def executed(program: Program) -> Iterator[tuple[Instruction, int]]:
  """The instructions whose results are buffers, with how often each runs: all but what lies inside of fusions."""
  counts, _ = runs(program)
  inside = {
    name for i in _all(program) for name in re.findall(r"(?:calls|to_apply)=%?([\w.-]+)", i.text) if i.opcode != "call"
  }
  for name, instructions in program.computations.items():
    if counts[name] and name not in inside:
      yield from ((instruction, counts[name]) for instruction in instructions)


def _all(program: Program) -> Iterator[Instruction]:
  return (instruction for instructions in program.computations.values() for instruction in instructions)


def hbm_bytes(program: Program) -> int:
  """Bytes to and from HBM in a step, if every buffer is written once and read once: a low estimate.

  What is updated in place counts by the update; what is prefetched into faster memory counts as one read.
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
    if update := _update(program, instruction):
      size = min(size, update)
    total += times * 2 * size
  return total


def _update(program: Program, instruction: Instruction) -> int | None:
  """Bytes that a dynamic-update-slice, or a fusion that ends in some, writes."""
  called = program.computations.get(instruction.attribute(r"calls=%?([\w.-]+)") or "", [])
  inner = [instruction] if instruction.opcode == "dynamic-update-slice" else called
  updates = [i for i in inner if i.opcode == "dynamic-update-slice"]
  sizes = {i.name: sum(shape.bytes for shape in i.shapes) for i in (called or _all(program))} if updates else {}
  return sum(sizes.get(i.operands[1], 0) for i in updates) or None


def square_buffers(program: Program, length: int, others: Container[int]) -> list[str]:
  """Types of buffers with a dimension of `length` and another of one of `others`."""
  found = set()
  for instruction, _ in executed(program):
    for shape in instruction.shapes:
      rest = list(shape.dims)
      if length in rest:
        rest.remove(length)
        if any(size in others for size in rest):
          found.add(f"{shape.dtype}[{','.join(map(str, shape.dims))}]")
  return sorted(found)

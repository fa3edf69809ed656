"""Parses compiled HLO text for what XLA's own cost analysis ignores: how often each loop runs.

XLA counts the body of a loop once, so a scan over 24 layers looks 24 times too cheap. Here every computation is counted
as often as it runs, which follows from a loop's condition (index < constant), start and step.
"""

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
_BYTES |= {"s64": 8, "u64": 8, "f64": 8, "c64": 8, "s4": 1, "u4": 1}
_SHAPE = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\](?:\{([^}]*)\})?")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([a-z][a-z0-9-]*)\((.*)$")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")


class Shape(NamedTuple):
  """One array."""

  dtype: str
  dims: tuple[int, ...]
  in_hbm: bool  # False: in one of the chip's faster memories

  @property
  def bytes(self) -> int:
    return math.prod(self.dims) * _BYTES.get(self.dtype, 4)


class Instruction(NamedTuple):
  """One line of a computation."""

  name: str
  shapes: tuple[Shape, ...]  # of the result; several if it is a tuple
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


def parse(text: str) -> Program:
  """Parses the text of a compiled module (`compiled.as_text()`)."""
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
  """The arrays in a result type. S(n) with n > 0 in a layout is a memory other than HBM."""
  for dtype, dims, layout in _SHAPE.findall(text):
    yield Shape(dtype, tuple(int(size) for size in dims.split(",") if size), not re.search(r"S\([1-9]", layout or ""))


# --- how often a computation runs --------------------------------------------------------------


def trips(program: Program, loop: Instruction, within: list[Instruction]) -> int | None:
  """How often the body of a while instruction runs; None if that cannot be determined."""
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
  """The value of a constant, followed through copies; None if it is not constant."""
  value = _find(instructions, name)
  while value is not None and value.opcode in ("copy", "bitcast", "copy-done", "copy-start"):
    value = _find(instructions, value.operands[0])
  return None if value is None else _constant(value)


def _step(body: list[Instruction], name: str | None, place: str) -> int | None:
  """The amount that one run of the body adds to its index; None if that cannot be determined."""
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


def executed(program: Program) -> Iterator[tuple[Instruction, int]]:
  """The instructions whose results are buffers, which are those outside of fusions, and how often each runs."""
  counts, _ = runs(program)
  inside = {
    name
    for i in instructions(program)
    for name in re.findall(r"(?:calls|to_apply)=%?([\w.-]+)", i.text)
    if i.opcode != "call"
  }
  for name, computation in program.computations.items():
    if counts[name] and name not in inside:
      yield from ((instruction, counts[name]) for instruction in computation)


def instructions(program: Program) -> Iterator[Instruction]:
  """All instructions of a program."""
  return itertools.chain.from_iterable(program.computations.values())

"""What the kernels of a program compiled for a GPU read and write, by kind: where passes over memory could be saved."""

import re
from typing import NamedTuple

from drope_jax.aot.hlo import Instruction, Program, executed, instructions
from drope_jax.aot.traffic import updated_bytes

KINDS = ("products", "attention", "reductions", "loops")
# What runs no kernel, or none of this device alone.
_NONE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all"}
_NONE |= {"partition-id", "replica-id", "opt-barrier", "async-start", "async-update", "async-done"}
_PRODUCT = re.compile(r'custom_call_target="__cublas')
_ATTENTION = re.compile(r'custom_call_target="(?:__cudnn\$fmha|__gpu\$xla\.gpu\.triton)')  # the latter: Pallas
_COLLECTIVE = re.compile(r"(?:all-|reduce-scatter|collective-|send|recv)")
_PART = ("slice", "dynamic-slice", "gather")


class Traffic(NamedTuple):
  """Of all kernels of one kind, in one step of one device; bytes."""

  kernels: int = 0
  read: int = 0
  written: int = 0


def kernel_traffic(program: Program) -> dict[str, Traffic]:
  """The traffic of each of KINDS; collectives are left out.

  Each kernel is taken to read every operand once, of one that it only slices or gathers from what it takes, and to
  write its results once. "loops" are elementwise: casts, activations, copies, the optimizer.
  """
  shapes = {instruction.name: instruction.shapes for instruction in instructions(program)}
  sizes = {name: sum(shape.bytes for shape in found) for name, found in shapes.items()}
  found = dict.fromkeys(KINDS, Traffic())
  for instruction, times in executed(program):
    if instruction.opcode in _NONE or _COLLECTIVE.match(instruction.opcode):
      continue
    body = program.computations.get(instruction.attribute(r"calls=%?([\w.-]+)") or "", [])
    kind = _kind(instruction, body)
    so_far = found[kind]
    read = sum(_read(body, place, sizes.get(name, 0), sizes) for place, name in enumerate(instruction.operands))
    size = sizes[instruction.name]
    written = min(size, updated_bytes(program, instruction) or size)
    found[kind] = Traffic(so_far.kernels + times, so_far.read + times * read, so_far.written + times * written)
  return found


def _kind(instruction: Instruction, body: list[Instruction]) -> str:
  opcodes = {inner.opcode for inner in body} | {instruction.opcode}
  if "dot" in opcodes or _PRODUCT.search(instruction.text):
    return "products"
  if _ATTENTION.search(instruction.text):
    return "attention"
  return "reductions" if opcodes & {"reduce", "scatter"} else "loops"


def _read(body: list[Instruction], place: int, size: int, sizes: dict[str, int]) -> int:
  """Bytes that a fusion reads of its operand at `place`, which has `size`."""
  names = {inner.name for inner in body if inner.opcode == "parameter" and inner.text.startswith(f"{place})")}
  users: list[Instruction] = []
  for inner in body:
    if names & set(inner.operands):
      if inner.opcode == "bitcast":
        names.add(inner.name)
      else:
        users.append(inner)
  if users and all(user.opcode in _PART and user.operands[0] in names for user in users):
    return min(size, sum(sizes[user.name] for user in users))
  if users and all(user.opcode == "dynamic-update-slice" and user.operands[0] in names for user in users):
    return 0  # it is updated in place
  return size

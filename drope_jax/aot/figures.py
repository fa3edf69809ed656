"""The figures of a compiled step, per chip: memory, FLOPs, traffic and roofline; and a readable report of them."""

from typing import Any

from drope_jax.aot import hlo
from drope_jax.aot.compile import Step
from drope_jax.aot.kernels import Traffic, kernel_traffic
from drope_jax.aot.roofline import Work, roofline
from drope_jax.aot.traced_flops import traced_flops, traced_squares
from drope_jax.aot.traffic import collectives, hbm_bytes, square_buffers
from drope_jax.serialization import library_versions
from drope_jax.sharding import divisor, num_shards

GIB = 2**30


def describe(step: Step, compiled: Any, seconds: float) -> dict[str, Any]:
  """The figures of a compiled step, as JSON data; bytes and seconds are per chip and step."""
  memory, program = compiled.memory_analysis(), hlo.parse(compiled.as_text())
  chips = step.mesh.size
  traced = traced_flops(step.traced.jaxpr)
  slices = [getattr(device, "slice_index", 0) or 0 for device in step.mesh.devices.flat]
  bytes_ = collectives(program, lambda partition: slices[partition])
  _, unknown = hlo.runs(program)
  kernels = kernel_traffic(program) if step.chip.is_gpu else {}
  hbm = sum(kind.read + kind.written for kind in kernels.values()) if kernels else hbm_bytes(program)
  work = Work(traced.flops / chips, hbm, bytes_.ici.total(), bytes_.dcn.total())
  times = roofline(work, step.chip, step.shape)
  longest = max(times.values())
  peak = chips * step.chip.flops
  used = memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes
  used += memory.generated_code_size_in_bytes - memory.alias_size_in_bytes
  return {
    "mesh": {axis: size for axis, size in step.mesh.shape.items() if size > 1},
    "chips": chips,
    "rows": step.rows,
    "length": step.length,
    "arguments": memory.argument_size_in_bytes,
    "temporaries": memory.temp_size_in_bytes,
    "outputs": memory.output_size_in_bytes,
    "aliased": memory.alias_size_in_bytes,
    "program": memory.generated_code_size_in_bytes,
    "peak": used,
    "hbm": step.chip.hbm_bytes,
    "model_flops": step.flops,
    "traced_flops": traced.flops,
    "xla_flops": (compiled.cost_analysis() or {}).get("flops"),
    "hbm_traffic": work.hbm_bytes,
    "kernels": {kind: found._asdict() for kind, found in kernels.items()},
    "collectives": dict(bytes_.ici),
    "collectives_between_slices": dict(bytes_.dcn),
    "seconds": times,
    "step_seconds": longest,
    "bound_by": max(times, key=lambda name: times[name]),
    "mfu_bound": {name: flops / longest / peak for name, flops in step.flops.items()},
    "loops_counted_once": unknown + traced.unknown_loops,
    "square_buffers": _square_buffers(step, program),
    "compile_seconds": seconds,
    "versions": library_versions(),
  }


def _square_buffers(step: Step, program: hlo.Program) -> list[str]:
  """Types of buffers with two dimensions of the length, or with the length and a device's share of it.

  If a size of the model happens to equal the length, shapes alone do not show which it is: the step is then traced for
  another length and its arrays are searched instead; they include all buffers of the compiled program.
  """
  cuts = (1, num_shards("length", step.mesh), divisor("length", step.mesh))

  def sides(length: int) -> set[int]:
    return {length // cut for cut in cuts}

  found = square_buffers(program, step.length, sides(step.length))
  if not found or not sides(step.length) & set(step.model_sizes):
    return found
  other = step.length + 512 * cuts[1]
  while sides(other) & set(step.model_sizes):
    other += 512 * cuts[1]
  return traced_squares(step.at_length(other).jaxpr, other, sides(other))


def fits(figures: dict[str, Any]) -> bool:
  """Whether the peak memory is at most that of a chip."""
  return figures["peak"] <= figures["hbm"]


def report(figures: dict[str, Any]) -> str:
  """The figures as lines of text."""
  gib = {name: f"{figures[name] / GIB:.2f}" for name in ("arguments", "temporaries", "outputs", "aliased", "program")}
  flops, times, chips = figures["model_flops"], figures["seconds"], figures["chips"]

  def by_kind(counts: dict[str, int]) -> str:
    return ", ".join(f"{kind} {size / 1e9:.2f} GB" for kind, size in sorted(counts.items())) or "none"

  by_xla = "; XLA says {:.3e} a chip, each loop's body counted once and kernels as nothing"
  by_xla = by_xla.format(figures["xla_flops"]) if figures["xla_flops"] else ""  # it has no figure for GPUs
  mesh = ", ".join(f"{axis} {size}" for axis, size in figures["mesh"].items()) or "one chip"
  lines = [
    f"chips        {chips} ({mesh}); {figures['rows']} rows of {figures['length']} tokens",
    f"memory       {'fits' if fits(figures) else 'does not fit'}: "
    f"{figures['peak'] / GIB:.2f} of {figures['hbm'] / GIB:.0f} GiB a chip; "
    f"arguments {gib['arguments']}, temporaries {gib['temporaries']}, program {gib['program']}, "
    f"outputs {gib['outputs']} ({gib['aliased']} in the arguments' place)",
    f"FLOPs        {flops['palm']:.3e} a step (PaLM), {flops['causal']:.3e} (causal); products that the program "
    f"computes {figures['traced_flops']:.3e}{by_xla}",
    f"collectives  {by_kind(figures['collectives'])} received by a chip",
  ]
  if figures["collectives_between_slices"]:
    lines.append(f"             between slices: {by_kind(figures['collectives_between_slices'])}")
  for kind, found in figures["kernels"].items():
    count, read, written = Traffic(**found)
    lines.append(f"kernels      {kind} {count}: {read / 1e9:.2f} GB read, {written / 1e9:.2f} GB written")
  lines += [
    "roofline     " + ", ".join(f"{name} {value:.3f} s" for name, value in times.items() if value),
    f"step         at least {figures['step_seconds']:.3f} s, bound by {figures['bound_by']}; MFU bound "
    f"{figures['mfu_bound']['palm']:.1%} (PaLM), {figures['mfu_bound']['causal']:.1%} (causal)",
  ]
  square = figures["square_buffers"]
  lines.append(f"T x T        {'there are buffers of ' + ', '.join(square[:4]) if square else 'no such buffer'}")
  if figures["loops_counted_once"]:
    lines.append(
      f"note         {figures['loops_counted_once']} loops of unknown length are counted as if they ran once"
    )
  return "\n".join([*lines, f"compiled in  {figures['compile_seconds']:.0f} s"])

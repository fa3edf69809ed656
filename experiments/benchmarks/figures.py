"""The pure part of each benchmark: from measurements to figures, and from figures to the lines of a table."""

from typing import Any

from drope_jax.metrics import flops_per_token
from experiments.benchmarks.measuring import Side, Spread, growth_exponent, ratios, spread
from experiments.benchmarks.shapes import Shape

# --- training steps ---


def training_figures(shape: Shape, sides: dict[str, Side], ceiling: float) -> dict[str, dict[str, Any]]:
  """By side: tokens/s, share of the ceiling by both conventions, memory, and our speed relative to it."""
  tokens = shape.batch_size * shape.context
  out: dict[str, dict[str, Any]] = {}
  for name, side in sides.items():
    if side.failure is not None:
      out[name] = {"failure": side.failure}
      continue
    speeds = [tokens / seconds for seconds in side.values("seconds")]
    speed = spread(speeds)
    out[name] = {
      "tokens_per_second": speed._asdict(),
      "first_step_seconds": side.about["first_step_seconds"],
      "memory": max(side.values("memory")),
      "rounds": side.rounds,
    }
    for convention in ("palm", "causal"):
      flops = flops_per_token(shape.model, shape.context, convention)
      out[name][f"share_{convention}"] = speed.median * flops / ceiling
    if "ours" in sides and sides["ours"].failure is None and name != "ours":
      out[name]["ours_relative"] = ratios([tokens / s for s in sides["ours"].values("seconds")], speeds)._asdict()
  return out


TRAINING_HEADER = (
  "shape, side",
  "tokens/s (least to greatest)",
  "ours is × as fast",
  "share of ceiling, PaLM",
  "causal",
  "first step",
  "memory peak",
)


def training_rows(name: str, sides: dict[str, dict[str, Any]]) -> list[list[str]]:
  """The lines of one shape."""
  lines = []
  for side, figure in sides.items():
    label = f"{name}, {side.replace('_', ', ')}"
    if "failure" in figure:
      lines.append([label, f"did not run: {figure['failure']}", *[""] * (len(TRAINING_HEADER) - 2)])
      continue
    relative = figure.get("ours_relative")
    lines.append(
      [
        label,
        Spread(**figure["tokens_per_second"]).show(),
        "" if relative is None else Spread(**relative).show(2),
        f"{figure['share_palm']:.0%}",
        f"{figure['share_causal']:.0%}",
        f"{figure['first_step_seconds']:.0f} s",
        f"{figure['memory'] / 2**30:.1f} GiB",
      ]
    )
  return lines


# --- long texts ---

TEXT_HEADER = ("side, tokens", "seconds", "tokens/s", "memory peak", "above the weights", "loss")


def text_figures(sides: dict[int, Side]) -> dict[str, Any]:
  """Of one side: seconds and memory by length, and the exponents of their growth."""
  done = {length: side for length, side in sides.items() if side.failure is None}
  seconds = {length: min(side.values("seconds")) for length, side in done.items()}
  extra = {length: max(side.values("memory")) - side.rounds[0]["memory_before"] for length, side in done.items()}
  return {
    "seconds": seconds,
    "loss": {length: side.rounds[0]["loss"] for length, side in done.items()},
    "memory": {length: max(side.values("memory")) for length, side in done.items()},
    "memory_above_weights": extra,
    "failures": {length: side.failure for length, side in sides.items() if side.failure is not None},
    "growth_of_seconds": growth_exponent(list(seconds), list(seconds.values())),
    "growth_of_memory_above_weights": growth_exponent(list(extra), [max(bytes, 1) for bytes in extra.values()]),
  }


def text_rows(name: str, lengths: list[int], figure: dict[str, Any]) -> list[list[str]]:
  """The lines of one side; the last has its exponents."""
  lines = []
  for length in lengths:
    label = f"{name}, {length:,}"
    if length in figure["failures"]:
      lines.append([label, f"did not run: {figure['failures'][length]}", "", "", "", ""])
      continue
    seconds = figure["seconds"][length]
    memory = [f"{figure[field][length] / 2**30:.2f} GiB" for field in ("memory", "memory_above_weights")]
    lines.append([label, f"{seconds:.2f}", f"{length / seconds:,.0f}", *memory, f"{figure['loss'][length]:.5f}"])
  exponents = figure["growth_of_seconds"], figure["growth_of_memory_above_weights"]
  if None not in exponents:
    lines.append([f"{name}, grows as", f"length^{exponents[0]:.2f}", "", "", f"length^{exponents[1]:.2f}", ""])
  return lines


# --- generation ---

PARTS = ("prefill", "decode")
GENERATION_HEADER = (
  "shape, side",
  "prefill, tokens/s",
  "decode, tokens/s",
  "ours is × as fast: prefill",
  "decode",
  "memory peak",
)


def generation_figures(sides: dict[str, Side], tokens: dict[str, int]) -> dict[str, dict[str, Any]]:
  """By side: memory, and of each part tokens/s and the speed of ours relative to it.

  `tokens`: of each part, over the batch.
  """
  out: dict[str, dict[str, Any]] = {}
  for name, side in sides.items():
    if side.failure is not None:
      out[name] = {"failure": side.failure}
      continue
    speeds = {part: [tokens[part] / seconds for seconds in side.values(part)] for part in PARTS}
    out[name] = {part: spread(speeds[part])._asdict() for part in PARTS}
    out[name]["memory"] = max(side.values("memory"))
    ours = sides.get("ours")
    if name != "ours" and ours is not None and ours.failure is None:
      own = {part: [tokens[part] / seconds for seconds in ours.values(part)] for part in PARTS}
      out[name] |= {f"ours_relative_{part}": ratios(own[part], speeds[part])._asdict() for part in PARTS}
  return out


def generation_rows(name: str, sides: dict[str, dict[str, Any]]) -> list[list[str]]:
  """The lines of one shape."""
  lines = []
  for side, figure in sides.items():
    if "failure" in figure:
      lines.append([f"{name}, {side}", f"did not run: {figure['failure']}", *[""] * (len(GENERATION_HEADER) - 2)])
      continue
    speeds = [Spread(**figure[part]).show() for part in PARTS]
    relative = [figure.get(f"ours_relative_{part}") for part in PARTS]
    shown = ["" if one is None else Spread(**one).show(2) for one in relative]
    lines.append([f"{name}, {side}", *speeds, *shown, f"{figure['memory'] / 2**30:.2f} GiB"])
  return lines


# --- input ---

INPUT_HEADER = (
  "shape",
  "pipeline alone, tokens/s",
  "training, tokens/s",
  "waits for data, % of a step",
  "getting a batch, ms",
)


def input_figures(side: Side, tokens: int) -> dict[str, Any]:
  """Of one shape with `tokens` per step: tokens/s, the share of a step spent waiting, and seconds to get a batch."""
  if side.failure is not None:
    return {"failure": side.failure}
  pairs = list(zip(side.values("with_data"), side.values("without"), strict=True))
  return {
    "pipeline_tokens_per_second": spread([tokens / s for s in side.values("alone")])._asdict(),
    "training_tokens_per_second": spread([tokens / with_data for with_data, _ in pairs])._asdict(),
    "waiting_share": spread([1 - without / with_data for with_data, without in pairs])._asdict(),
    "getting_seconds": spread(side.values("getting"))._asdict(),
  }


def input_row(name: str, figure: dict[str, Any]) -> list[str]:
  """The line of one shape."""
  if "failure" in figure:
    return [name, f"did not run: {figure['failure']}", "", "", ""]
  show = {field: Spread(**values) for field, values in figure.items()}
  percent = Spread(*(100 * value for value in show["waiting_share"]))
  milliseconds = Spread(*(1000 * value for value in show["getting_seconds"]))
  speeds = [show[f"{what}_tokens_per_second"].show() for what in ("pipeline", "training")]
  return [name, *speeds, percent.show(1), milliseconds.show(1)]


# --- sources ---

SOURCES_HEADER = ("source", "tokens/s (least to greatest)", "first batch, s", "memory peak")


def source_figures(side: Side, tokens: int) -> dict[str, Any]:
  """Of one source with `tokens` per batch."""
  if side.failure is not None:
    return {"failure": side.failure}
  return {
    "tokens_per_second": spread([tokens / seconds for seconds in side.values("seconds")])._asdict(),
    "opening_seconds": side.about["opening"],
    "memory": max(side.values("memory")),
  }


def source_row(name: str, figure: dict[str, Any]) -> list[str]:
  """The line of one source."""
  if "failure" in figure:
    return [name, f"did not run: {figure['failure']}", "", ""]
  speed = Spread(**figure["tokens_per_second"]).show()
  return [name, speed, f"{figure['opening_seconds']:.1f}", f"{figure['memory'] / 2**30:.2f} GiB"]

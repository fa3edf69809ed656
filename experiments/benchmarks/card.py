"""Measures one accelerator in ten minutes: training steps and more, in variants; figures are kept as they come.

`python -m experiments.benchmarks.card --seconds=560 --jsonl=FILE [--variants=VARIANT,VARIANT]`

A variant is SHAPE:ROWS, a name of experiments/benchmarks/shapes.py and the rows per step, optionally followed by
settings of ComputeConfig: 494m:16:scan_layers=True:remat=dots (names of remat_keep are joined by +). Layers are
unrolled by default. `documents:SHAPE:ROWS` is the step with a document mask, `decode:SHAPE:ROWS` reads prompts of 512
tokens and answers with 128, `kernels:SHAPE:LENGTH` compares the attention kernels with the reference, and
`text:SHAPE:TOKENS` is the loss of one long text. `torch:SHAPE:ROWS` and `torch_compiled:SHAPE:ROWS` run transformers
with torch in their own processes. The first variant with a training step is profiled: its kernels are listed by time.
The most valuable variants come first.

A variant for which too little time is left is skipped and recorded as left out. A variant that fails is recorded with
its message, and the next one runs.
"""

import collections
import dataclasses
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags

from drope_jax import cli
from drope_jax.config import ComputeConfig, DataConfig
from drope_jax.errors import ConfigError
from drope_jax.files import check_file
from drope_jax.metrics import flops_per_token
from drope_jax.serialization import library_versions, to_dict
from experiments.benchmarks import ours
from experiments.benchmarks.kernels import kernels_of_calls
from experiments.benchmarks.measuring import Worker, WorkerError, hardware
from experiments.benchmarks.shapes import Shape, shape_named

VARIANTS = (
  "kernels:494m:1024",
  "494m:16",
  "documents:494m:16",
  "smollm_1.7b:8",
  "torch_compiled:494m:16",
  "decode:494m:8",
  "decode:494m:8:attention=reference",
  "smollm2_135m:16",
  "494m:16:scan_layers=True",
  "494m:32",
  "494m:32:remat=full:remat_keep=attention+qkv",
  "text:smollm2_135m:131072",
  "documents:494m:16:attention=blockwise",
  "494m:16:remat=dots",
  "torch:494m:16",
)
OURS = ("documents", "decode", "kernels", "text")  # prefixes of our variants; a training step has none
TORCH = ("torch", "torch_compiled")
PROMPT, ANSWER = 512, 128  # tokens
NEEDED = 25.0  # seconds that a variant is expected to take

WHICH = cli.define_list("variants", list(VARIANTS), "Variants to measure, in this order; see above.")
SECONDS = cli.define_float("seconds", 560, "Time limit; no variant starts within its last 25 seconds.", lower_bound=1)
JSONL = cli.define_path("jsonl", None, "File to which one record per figure is appended.", local=True)
DTYPE = flags.DEFINE_enum(
  "dtype", "bfloat16", ["bfloat16", "float32"], "Of the activations, and of the matmul ceiling."
)
CEILING = flags.DEFINE_integer("ceiling", 8192, "Size of the square matrices of the matmul ceiling.", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", 8, "Steps per round.", lower_bound=1)
ROUNDS = flags.DEFINE_integer("rounds", 3, "Rounds per variant; the median counts.", lower_bound=1)
KERNELS = flags.DEFINE_integer("kernels", 25, "Kernels of the profile to show; 0: no profile.", lower_bound=0)


class Variant(NamedTuple):
  """A measurement: side ("ours", or one of OURS or TORCH), shape, and rows, or tokens for text and kernels."""

  text: str
  side: str
  shape: Shape
  size: int
  compute: dict[str, Any]


def parse_variant(text: str) -> Variant:
  """Parses a variant. Raises ConfigError naming what is wrong with it."""
  words = text.split(":")
  side = words.pop(0) if words[0] in (*TORCH, *OURS) else "ours"
  if len(words) < 2 or not words[1].isdigit():
    raise ConfigError(
      f"{text!r} is not a variant; allowed: [{'|'.join((*TORCH, *OURS))}:]SHAPE:NUMBER[:SETTING=VALUE ...]"
    )
  known = {field.name for field in dataclasses.fields(ComputeConfig)}
  compute: dict[str, Any] = {"scan_layers": False}
  for word in words[2:]:
    name, _, value = word.partition("=")
    if name not in known or not value:
      raise ConfigError(f"{text!r} has {word!r}; allowed: SETTING=VALUE, with SETTING of {', '.join(sorted(known))}")
    if name in ("remat_keep", "remat_offload"):
      compute[name] = tuple(value.split("+"))
    else:
      compute[name] = int(value) if value.isdigit() else {"True": True, "False": False}.get(value, value)
  ComputeConfig(**compute)
  return Variant(text, side, shape_named(words[0]), int(words[1]), compute)


def spread_of(seconds: list[float]) -> dict[str, float]:
  return {"seconds": statistics.median(seconds), "least": min(seconds), "greatest": max(seconds)}


def speed(variant: Variant, seconds: list[float], ceiling: float) -> dict[str, Any]:
  """Seconds per step, tokens/s, and the shares of the ceiling by both conventions."""
  tokens = variant.size * variant.shape.context / statistics.median(seconds)
  shares = {
    f"share_{how}": tokens * flops_per_token(variant.shape.model, variant.shape.context, how) / ceiling
    for how in ("palm", "causal")
  }
  return {"tokens_per_second": tokens, **spread_of(seconds), **shares}


def measure_ours(variant: Variant, ceiling: float, profile: bool) -> Iterator[dict[str, Any]]:
  """The figures of our training step, and with `profile` a second record with its kernels."""
  masked = variant.side == "documents"
  data = DataConfig(directory="", context=variant.shape.context, batch_size=variant.size, document_mask=masked)
  compute = {"dtype": DTYPE.value, **variant.compute}
  training = ours.Training(ours.train_config(to_dict(variant.shape.model), data, compute))
  batch = {"tokens": ours.random_tokens(variant.shape.model, variant.size, variant.shape.context + 1)}
  if masked:  # five documents per row, and a rest
    places = np.arange(variant.shape.context + 1, dtype=np.int32)
    size = max(variant.shape.context // 5, 1)
    batch |= {
      name: np.tile(x, (variant.size, 1)) for name, x in (("segments", places // size), ("positions", places % size))
    }
  rows = training.put(batch)
  begin = time.perf_counter()
  memory = training.compile(rows)
  compiled = time.perf_counter() - begin
  training.step(rows).block_until_ready()

  def seconds(steps: int) -> float:
    begin = time.perf_counter()
    for _ in range(steps):
      loss = training.step(rows)
    loss.block_until_ready()
    return (time.perf_counter() - begin) / steps

  found = [seconds(STEPS.value) for _ in range(ROUNDS.value)]
  yield {**speed(variant, found, ceiling), "memory": memory, "compile_seconds": compiled}
  if profile:
    with tempfile.TemporaryDirectory() as folder:
      with jax.profiler.trace(folder):
        seconds(3)
      yield {"kernels": kernels(folder, 3)}


def kernels(folder: str, steps: int) -> list[dict[str, Any]]:
  """The kernels of a trace, with milliseconds and calls per step; empty without a GPU."""
  total: collections.Counter[str] = collections.Counter()
  calls: collections.Counter[str] = collections.Counter()
  traces = list(Path(folder).rglob("*.xplane.pb"))
  for plane in jax.profiler.ProfileData.from_file(str(traces[0])).planes if traces else ():
    for line in plane.lines if "GPU" in plane.name else ():
      for event in line.events if "Stream" in line.name else ():
        total[event.name] += event.duration_ns
        calls[event.name] += 1
  return [{"ms": ns / 1e6 / steps, "calls": calls[name] / steps, "name": name} for name, ns in total.most_common()]


def measure_torch(variant: Variant, ceiling: float) -> dict[str, Any]:
  arguments = {
    "model": to_dict(variant.shape.model),
    "context": variant.shape.context,
    "batch_size": variant.size,
    "dtype": DTYPE.value,
    "compiled": variant.side == "torch_compiled",
    "platform": jax.default_backend(),
  }
  with Worker("experiments.benchmarks.theirs:train_step", **arguments) as worker:
    rounds = [worker.measure(steps=STEPS.value) for _ in range(ROUNDS.value)]
    first = worker.about["first_step_seconds"]
  found = speed(variant, [one["seconds"] for one in rounds], ceiling)
  return {**found, "memory": max(one["memory"] for one in rounds), "first_step_seconds": first}


def measure_text(variant: Variant) -> dict[str, Any]:
  _, measure = ours.loss_of_a_text(variant.size, to_dict(variant.shape.model))
  rounds = [measure() for _ in range(1 + ROUNDS.value)][1:]
  seconds = [one["seconds"] for one in rounds]
  return {
    **spread_of(seconds),
    "tokens_per_second": variant.size / statistics.median(seconds),
    "loss": rounds[0]["loss"],
  }


def measure_decode(variant: Variant) -> dict[str, Any]:
  compute = {"dtype": DTYPE.value, **variant.compute}
  _, measure = ours.generation(to_dict(variant.shape.model), variant.size, PROMPT, ANSWER, compute)
  rounds = [measure() for _ in range(ROUNDS.value)]
  prefill, decode = ([one[part] for one in rounds] for part in ("prefill", "decode"))
  return {
    **spread_of(decode),
    "tokens_per_second": variant.size * ANSWER / statistics.median(decode),
    "prefill_tokens_per_second": variant.size * PROMPT / statistics.median(prefill),
  }


def matmul_ceiling() -> float:
  """FLOP/s of one square matrix product: the best of three rounds."""
  _, product = ours.matmul(CEILING.value, DTYPE.value)
  return max(product(20)["flops"] for _ in range(3))


def line(record: dict[str, Any]) -> str:
  """A record as a line of text, or several for a profile."""
  if "kernels" in record:
    total = sum(kernel["ms"] for kernel in record["kernels"])
    shown = record["kernels"][: KERNELS.value]
    rows = [f"  {kernel['ms']:8.2f} ms x{kernel['calls']:<5.0f} {kernel['name'][:150]}" for kernel in shown]
    return "\n".join([f"{record['variant']}: kernels {total:.1f} ms per step", *rows])
  if "failure" in record or "left_out" in record:
    return f"{record['variant']}: " + record.get("failure", record.get("left_out", ""))
  if "error" in record:
    what = f"{record['call']}, {record['kernel']}: relative error {record['error']:.1e}"
    return f"{record['variant']}: {what}, {record['seconds'] * 1e3:.3f} ms"
  parts = [f"{record['tokens_per_second']:,.0f} tokens/s", f"{record['seconds'] * 1e3:.1f} ms"]
  parts[1] += f" ({record['least'] * 1e3:.1f} to {record['greatest'] * 1e3:.1f})"
  if "share_palm" in record:
    parts.append(f"{record['share_palm']:.1%} of the ceiling (causal {record['share_causal']:.1%})")
  if "prefill_tokens_per_second" in record:
    parts.append(f"prompts {record['prefill_tokens_per_second']:,.0f} tokens/s")
  if "memory" in record:
    parts.append(f"{record['memory'] / 2**30:.1f} GiB")
  return f"{record['variant']}: " + ", ".join(parts)


def measure(variants: list[Variant], say: Callable[[dict[str, Any]], None], deadline: float) -> None:
  """Calls `say` with one record per figure, and per variant that fails or is left out."""
  ceiling = matmul_ceiling()
  say({"variant": "ceiling", "matmul_ceiling": ceiling})
  profiled = KERNELS.value == 0
  for variant in variants:
    if time.monotonic() > deadline - NEEDED:
      say({"variant": variant.text, "left_out": "no time is left"})
      continue
    try:
      match variant.side:
        case "ours" | "documents":
          for record in measure_ours(variant, ceiling, profile=not profiled):
            say({"variant": variant.text, **record})
          profiled = True
        case "kernels":
          for record in kernels_of_calls(variant.shape.model, variant.size, DTYPE.value):
            say({"variant": variant.text, **record})
        case "decode":
          say({"variant": variant.text, **measure_decode(variant)})
        case "text":
          say({"variant": variant.text, **measure_text(variant)})
        case _:
          say({"variant": variant.text, **measure_torch(variant, ceiling)})
    except (RuntimeError, ValueError, NotImplementedError, WorkerError) as error:  # the device's memory, a kernel
      say({"variant": variant.text, "failure": f"{type(error).__name__}: {error}"[:400]})
    jax.clear_caches()
    gc.collect()  # frees the arrays of this variant, whose memory the next one needs


def main() -> None:
  deadline = time.monotonic() + SECONDS.value
  variants = [parse_variant(text) for text in WHICH.value]
  if JSONL.value is not None:
    check_file(Path(JSONL.value), "--jsonl")
  about = {"device": jax.devices()[0].device_kind, "hardware": hardware(), "versions": library_versions()}
  print(f"{cli.command_line()}\n{about['device']}; {about['hardware']}", flush=True)

  def say(record: dict[str, Any]) -> None:
    if "matmul_ceiling" in record:
      record |= about
      print(f"ceiling {record['matmul_ceiling'] / 1e12:.3f} TFLOP/s ({DTYPE.value}, {CEILING.value})", flush=True)
    else:
      print(line(record), flush=True)
    if JSONL.value is not None:
      with open(JSONL.value, "a") as file:
        file.write(json.dumps(record) + "\n")

  measure(variants, say, deadline)


if __name__ == "__main__":
  cli.run(main)

"""Measures one accelerator in ten minutes: training steps and more, in variants; figures are kept as they come.

`python -m experiments.benchmarks.card --seconds=560 --json=FILE [--variants=VARIANT,VARIANT]`

A variant is SHAPE:ROWS, a name of experiments/benchmarks/shapes.py and the rows of a step, with settings of
ComputeConfig behind it: 494m:16:scan_layers=True:remat=dots (names of remat_keep are joined by +). Layers are unrolled
unless it says otherwise.
`documents:SHAPE:ROWS` is the step with a document mask, `decode:SHAPE:ROWS` reads prompts of 512 tokens and answers
with 128, `kernels:SHAPE:LENGTH` compares the attention kernels with the reference, `text:SHAPE:TOKENS` is the loss of
one long text. `torch:SHAPE:ROWS`, `torch_compiled:SHAPE:ROWS` and `torch_text:SHAPE:TOKENS` are transformers with
torch, each in its own process, which needs its memory beside what ours has taken.
The variants that decide a goal come first. Ours are profiled if they have no settings: their kernels, by time.

A variant for which too little time is left is skipped and recorded as left out. A variant that fails is recorded with
its message, and the next one runs.
"""

import collections
import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from drope_jax import cli
from drope_jax.config import DataConfig
from drope_jax.metrics import flops_per_token
from drope_jax.serialization import library_versions, to_dict
from experiments.benchmarks import ours
from experiments.benchmarks.kernels import kernels_of_calls
from experiments.benchmarks.measuring import Records, Worker, WorkerError, check_free, hardware
from experiments.benchmarks.variants import VARIANTS, Comparison, Variant, parse_variant

PROMPT, ANSWER = 512, 128  # tokens
NEEDED = 25.0  # seconds that a variant is thought to take, or a profile

WHICH = cli.define_list("variants", list(VARIANTS), "What is measured, in this order; see above.")
SECONDS = cli.define_float("seconds", 560, "No variant begins later than a while before these are over.", lower_bound=1)
JSON = cli.define_path("json", None, "Also write the figures to this file, which must not exist.", local=True)
JSONL = cli.define_path(
  "jsonl", None, "Also append each figure to this file, as one line: several runs may share it.", local=True
)
DTYPE = flags.DEFINE_enum("dtype", "bfloat16", ["bfloat16", "float32"], "Of activations and of the ceiling's product.")
CEILING = flags.DEFINE_integer("ceiling", 8192, "Size of the square product that is the matmul ceiling.", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", 8, "Steps of a round.", lower_bound=1)
ROUNDS = flags.DEFINE_integer("rounds", 3, "Rounds of a variant; the median counts.", lower_bound=1)
KERNELS = flags.DEFINE_integer("kernels", 25, "Kernels of the profile that are shown; 0: no profile.", lower_bound=0)


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


def measure_ours(variant: Variant, ceiling: float) -> tuple[dict[str, Any], Callable[[], Any]]:
  """The figures of our training step, and a function that runs one more round."""
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
  return {**speed(variant, found, ceiling), "memory": memory, "compile_seconds": compiled}, lambda: seconds(1)


def profile(run: Callable[[], Any], times: int = 2) -> dict[str, Any]:
  """The kernels of a run, by time."""
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      for _ in range(times):
        run()
    return {"kernels": kernels(folder, times)}


def kernels(folder: str, runs: int) -> list[dict[str, Any]]:
  """The kernels of a trace of `runs`, with milliseconds and calls of each; none where no accelerator computes."""
  total: collections.Counter[str] = collections.Counter()
  calls: collections.Counter[str] = collections.Counter()
  traces = list(Path(folder).rglob("*.xplane.pb"))
  for plane in jax.profiler.ProfileData.from_file(str(traces[0])).planes if traces else ():
    for line in plane.lines if "GPU" in plane.name else ():
      for event in line.events if "Stream" in line.name else ():
        total[event.name] += event.duration_ns
        calls[event.name] += 1
  return [{"ms": ns / 1e6 / runs, "calls": calls[name] / runs, "name": name} for name, ns in total.most_common()]


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


def measure_text(variant: Variant) -> tuple[dict[str, Any], Callable[[], Any]]:
  """The figures of the loss of a text, and a function that computes it once more."""
  _, measure = ours.loss_of_a_text(variant.size, to_dict(variant.shape.model))
  return text_figures(variant, [measure() for _ in range(1 + ROUNDS.value)]), measure


def measure_torch_text(variant: Variant) -> dict[str, Any]:
  arguments = {"model": to_dict(variant.shape.model), "length": variant.size}
  with Worker("experiments.benchmarks.theirs:loss_of_a_text", **arguments) as worker:
    measured = [worker.measure() for _ in range(1 + ROUNDS.value)]
  return {**text_figures(variant, measured), "memory": measured[-1]["memory"]}  # ours has the peak of all variants


def text_figures(variant: Variant, measured: list[dict[str, Any]]) -> dict[str, Any]:
  """Of all rounds but the first, in which kernels are loaded."""
  seconds = [one["seconds"] for one in measured[1:]]
  return {
    **spread_of(seconds),
    "tokens_per_second": variant.size / statistics.median(seconds),
    "loss": measured[0]["loss"],
  }


def measure_decode(variant: Variant) -> tuple[dict[str, Any], Callable[[], Any]]:
  """The figures of generation, and a function that generates once more."""
  compute = {"dtype": DTYPE.value, **variant.compute}
  _, measure = ours.generation(to_dict(variant.shape.model), variant.size, PROMPT, ANSWER, compute)
  rounds = [measure() for _ in range(ROUNDS.value)]
  prefill, decode = ([one[part] for one in rounds] for part in ("prefill", "decode"))
  figures = {
    **spread_of(decode),
    "tokens_per_second": variant.size * ANSWER / statistics.median(decode),
    "prefill_tokens_per_second": variant.size * PROMPT / statistics.median(prefill),
  }
  return figures, measure


def matmul_ceiling() -> float:
  """FLOP/s of one square matrix product: the best of three rounds."""
  _, product = ours.matmul(CEILING.value, DTYPE.value)
  return max(product(20)["flops"] for _ in range(3))


def line(record: dict[str, Any]) -> str:
  """A record as a person reads it."""
  if "matmul_ceiling" in record:
    return f"ceiling {record['matmul_ceiling'] / 1e12:.3f} TFLOP/s ({DTYPE.value}, {CEILING.value})"
  if "kernels" in record:
    total = sum(kernel["ms"] for kernel in record["kernels"])
    shown = record["kernels"][: KERNELS.value]
    rows = [f"  {kernel['ms']:8.2f} ms x{kernel['calls']:<5.0f} {kernel['name'][:150]}" for kernel in shown]
    return "\n".join([f"{record['variant']}: kernels {total:.1f} ms a run", *rows])
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
  if "ours_relative" in record:
    parts.append(f"ours is {record['ours_relative']:.2f} × as fast")
  return f"{record['variant']}: " + ", ".join(parts)


def figures_of(variant: Variant, ceiling: float, deadline: float) -> Iterator[dict[str, Any]]:
  """One record per figure of a variant, and its kernels where they are wanted and there is time."""
  run: Callable[[], Any] | None = None
  match variant.side:
    case "kernels":
      yield from kernels_of_calls(variant.shape.model, variant.size, DTYPE.value)
      return
    case "ours" | "documents":
      found, run = measure_ours(variant, ceiling)
    case "decode":
      found, run = measure_decode(variant)
    case "text":
      found, run = measure_text(variant)
    case "torch_text":
      found = measure_torch_text(variant)
    case _:
      found = measure_torch(variant, ceiling)
  yield found
  if run is not None and variant.is_plain and KERNELS.value > 0 and time.monotonic() < deadline - NEEDED:
    yield profile(run)


def measure(variants: list[Variant], say: Callable[[dict[str, Any]], None], deadline: float) -> None:
  """Calls `say` with one record per figure, and per variant that fails or is left out."""
  ceiling = matmul_ceiling()
  say({"variant": "ceiling", "matmul_ceiling": ceiling})
  comparison = Comparison()
  for variant in variants:
    if time.monotonic() > deadline - NEEDED:
      say({"variant": variant.text, "left_out": "no time is left"})
      continue
    try:
      for record in figures_of(variant, ceiling, deadline):
        say({"variant": variant.text, **record, **comparison.of(variant, record)})
    except (RuntimeError, ValueError, NotImplementedError, WorkerError) as error:  # the device's memory, a kernel
      say({"variant": variant.text, "failure": f"{type(error).__name__}: {error}"[:400]})
    jax.clear_caches()
    gc.collect()  # frees the arrays of this variant, whose memory the next one needs


def main() -> None:
  deadline = time.monotonic() + SECONDS.value
  variants = [parse_variant(text) for text in WHICH.value]
  check_free(JSON.value, JSONL.value)
  device = jax.devices()[0].device_kind
  about = {"command": cli.command_line(), "device": device, "hardware": hardware(), "versions": library_versions()}
  records = Records(JSON.value, JSONL.value, about)
  print(f"{about['command']}\n{device}; {about['hardware']}", flush=True)

  def say(record: dict[str, Any]) -> None:
    print(line(record), flush=True)
    records.add(record)

  measure(variants, say, deadline)


if __name__ == "__main__":
  cli.run(main)

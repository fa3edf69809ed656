"""The README.md of an export: what the model is, what was done to it, and with which figures."""

from pathlib import Path
from typing import Any, NamedTuple

from drope_jax import checkpoint
from drope_jax.checkpoint import CheckpointError
from drope_jax.config import ModelConfig, TrainConfig, from_dict
from drope_jax.evaluate import results as records
from drope_jax.interop.formats import FORMATS
from drope_jax.interop.hf_config import NEUTRAL_FACTOR
from drope_jax.model import count_parameters
from drope_jax.positions import layer_cycle


class Made(NamedTuple):
  """What an export made."""

  format: str
  model: ModelConfig
  context: int  # tokens it was trained at
  length: int  # tokens it is meant for
  c: float | None
  beta: float
  dtype: str


class Past(NamedTuple):
  """One station on the way of the weights: a run, or the import that they came in by."""

  name: str  # of its directory
  meta: dict[str, Any]  # of its checkpoint


def history(directory: Path, step: int | None = None) -> list[Past]:
  """Where the weights of a checkpoint come from, the oldest first, as far back as the checkpoints are still there."""
  meta = checkpoint.load_meta(directory, step)
  here = Past(directory.resolve().name, meta)
  init = None if "origin" in meta else from_dict(TrainConfig, meta["config"]).init
  if init is None:
    return [here]
  try:
    return [*history(Path(init.checkpoint), init.step), here]
  except CheckpointError:
    return [here]


def model_card(directory: Path, made: Made, past: list[Past], results: Path | None) -> str:
  """The card of an export of `directory`, as Markdown; figures of `results` (a results.jsonl) that are of its name."""
  origin = past[0].meta.get("origin", {})
  head = [
    "---",
    "library_name: transformers",
    *([f"license: {origin['license']}"] if "license" in origin else []),
    "---",
  ]
  without = any(layer.positions is None for layer in layer_cycle(made.model.positions))
  name = directory.resolve().name
  lines = [
    *head,
    f"# {name}",
    "",
    f"A decoder of {count_parameters(made.model) / 1e6:.1f}M parameters, exported by drope_jax as "
    f"`{FORMATS[made.format].architecture}` ({made.dtype}). It was trained at {made.context:,} tokens and is "
    f"exported for {made.length:,}.",
    "",
    "## What was done",
    "",
    *[f"{i + 1}. {_station(station)}" for i, station in enumerate(past)],
    "",
    "## How it is written",
    "",
    *[f"- {line}" for line in _notes(made, without)],
    "",
    *_figures(name, results),
  ]
  return "\n".join(lines).rstrip() + "\n"


def _station(past: Past) -> str:
  if "origin" in past.meta:
    origin = past.meta["origin"]
    hashes = "; ".join(f"{file} has SHA-256 {digest}" for file, digest in origin["sha256"].items())
    types = f", weights dequantised from {', '.join(origin['types'])}" if "types" in origin else ""
    return f"Imported from {origin['name']} ({origin['format']}{types}; {hashes})."
  config = from_dict(TrainConfig, past.meta["config"])
  init = config.init
  if init is None:
    begun = "trained from scratch"
  else:
    dropped = "its positional embedding dropped" if init.drop else "its positional embedding kept"
    norm = f", QK-norm inserted ({init.qk_norm.scope})" if init.qk_norm else ""
    begun = f"trained from the weights of `{Path(init.checkpoint).name}`, {dropped}{norm}"
  return (
    f"`{past.name}`: {begun}; {past.meta['step']:,} steps, {past.meta['tokens']:,} tokens, rows of "
    f"{config.data.context:,} tokens, peak learning rate {config.optim.peak_lr:g}."
  )


def _notes(made: Made, without: bool) -> list[str]:
  notes = []
  positions = made.model.positions
  if not without:
    notes.append(f"Positions: `{positions}`.")
  elif made.format == "smollm3":
    notes.append("Positions: none in the layers where `no_rope_layers` is 0.")
  else:
    notes.append(
      "Positions: none. The class always rotates, so `rope_parameters` divide every frequency by "
      f"{NEUTRAL_FACTOR:g}: no angle differs from 0."
    )
  if made.format == "olmoe":
    notes.append("The class is a mixture of experts; this model has one expert, which gets every token with weight 1.")
  if made.beta == 1:
    notes.append("The attention logits are as trained (beta 1).")
  else:
    where = {"granite": "`attention_multiplier`", "qwen3": "`q_norm`", "olmoe": "`q_norm`"}.get(made.format, "`q_proj`")
    notes.append(
      f"The attention logits are multiplied by beta = 1 + {made.c:g} ln({made.length / made.context:g}) = "
      f"{made.beta:.6g}, which is part of {where}. It is right for texts of {made.length:,} tokens; on shorter ones "
      "the model is not the one that was trained."
    )
  return notes


def _figures(name: str, results: Path | None) -> list[str]:
  measured = [] if results is None else [r for r in records.read(results) if r.run == name]
  # One measured again, with the same settings or others, replaces the earlier one.
  last = {(r.measurement._replace(settings=""), r.metric): r for r in measured}
  shown = [r for r in last.values() if r.metric in (records.LOSS, records.ACCURACY, records.BETA)]
  if not shown:
    return ["## Figures", "", "None were measured for this card."]
  rows = [f"| {r.method} | {r.task} | {r.context:,} | {r.metric} | {r.value:.4f} | {r.n:,} |" for r in shown]
  head = ["| method | task | tokens | metric | value | n |", "|---|---|---|---|---|---|"]
  return ["## Figures", "", "Measured before the export, in drope_jax.", "", *head, *rows]

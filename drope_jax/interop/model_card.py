"""The README.md of an export: what the model is, what was done to it, and with which figures."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

from drope_jax import checkpoint
from drope_jax.config import TrainConfig
from drope_jax.errors import CheckpointError, ConfigError, FileError
from drope_jax.evaluate import results as records
from drope_jax.interop.families import FAMILIES, Family
from drope_jax.interop.gguf_architectures import ARCHITECTURES
from drope_jax.interop.gguf_export import only_llama_cpp
from drope_jax.interop.rope_parameters import NEUTRAL_FACTOR
from drope_jax.markdown import code, plain, yaml
from drope_jax.model_config import ModelConfig
from drope_jax.parameters import count_parameters
from drope_jax.positions import layer_cycle
from drope_jax.serialization import from_dict
from drope_jax.workdir import run_name


class Export(NamedTuple):
  """What an export wrote, for its model card."""

  format: str
  model: ModelConfig
  context: int  # tokens it was trained at
  length: int  # tokens it is meant for
  c: float | None
  beta: float
  dtype: str
  as_gguf: bool = False  # whether it is a GGUF file; `format` is then an architecture of llama.cpp

  @property
  def family(self) -> Family:
    return FAMILIES[ARCHITECTURES[self.format].family if self.as_gguf else self.format]


class Stage(NamedTuple):
  """One stage in the history of the weights: an import, or a run."""

  name: str  # see workdir.run_name
  meta: dict[str, Any]  # the `meta` of its checkpoint


def history(directory: Path, step: int | None = None) -> list[Stage]:
  """The stages that the weights of a checkpoint went through, oldest first, as far back as the checkpoints exist."""
  meta = checkpoint.open_step(directory, step).meta
  here = Stage(run_name(directory), meta)
  init = None if "origin" in meta else from_dict(TrainConfig, meta["config"]).init
  if init is None:
    return [here]
  try:
    return [*history(Path(init.checkpoint), init.step), here]
  except CheckpointError:
    return [here]


def figures_of(directory: Path, results: Path) -> list[records.Result]:
  """The figures of the run in `directory` from a results.jsonl: of each metric as a whole, the last one measured.

  Raises:
    FileError: if there is no such file, or it cannot be read.
    ConfigError: if it has no figure of that run.
  """
  if not results.exists():
    raise FileError(f"{results}: there is no such file; name a results.jsonl of experiments.evaluate")
  try:
    read = records.read(results)
  except (OSError, RuntimeError, ValueError) as error:
    raise FileError(f"{results}: not a readable results.jsonl ({error})") from error
  name = run_name(directory)
  # A later measurement replaces an earlier one, whatever their settings. Parts of a metric, such as the loss at some
  # positions, are left out.
  whole = [r for r in read if r.run == name and r.by is None]
  last = {(dataclasses.replace(r.measurement, settings=None), r.metric): r for r in whole}
  if not last:
    runs = ", ".join(sorted({r.run for r in read})) or "nothing"
    raise ConfigError(f"{results}: has no figures of run {name}; it has those of {runs}")
  return list(last.values())


def model_card(directory: Path, made: Export, past: list[Stage], figures: list[records.Result]) -> str:
  """The model card of an export of `directory`, in Markdown; `figures` are those of `figures_of`."""
  origin = past[0].meta.get("origin", {})
  head = [
    "---",
    f"library_name: {'gguf' if made.as_gguf else 'transformers'}",
    *([f"license: {yaml(str(origin['license']))}"] if "license" in origin else []),
    "---",
  ]
  without = any(layer.positions is None for layer in layer_cycle(made.model.positions))
  lines = [
    *head,
    f"# {plain(past[-1].meta.get('origin', {}).get('name', past[-1].name))}",
    "",
    f"A decoder of {count_parameters(made.model) / 1e6:.1f}M parameters, exported by drope_jax as "
    f"{_kind(made)} ({made.dtype}). It was trained at {made.context:,} tokens and is "
    f"exported for {made.length:,}.",
    "",
    "## What was done",
    "",
    *[f"{i + 1}. {_described(stage)}" for i, stage in enumerate(past)],
    "",
    "## How it is written",
    "",
    *[f"- {line}" for line in _notes(made, without)],
    "",
    *_figures(figures),
  ]
  return "\n".join(lines).rstrip() + "\n"


def _kind(made: Export) -> str:
  return f"a GGUF file of architecture `{made.format}`" if made.as_gguf else f"`{made.family.architecture}`"


def _described(stage: Stage) -> str:
  if "origin" in stage.meta:
    origin = stage.meta["origin"]
    hashes = "; ".join(f"{plain(file)} has SHA-256 {digest}" for file, digest in origin["sha256"].items())
    types = f", weights dequantised from {plain(', '.join(origin['types']))}" if "types" in origin else ""
    return f"Imported from {plain(origin['name'])} ({plain(origin['format'])}{types}; {hashes})."
  config = from_dict(TrainConfig, stage.meta["config"])
  init = config.init
  if init is None:
    begun = "trained from scratch"
  else:
    dropped = f"its positional embedding under {init.transition}"
    norm = f", QK-norm inserted ({init.qk_norm.scope})" if init.qk_norm else ""
    begun = f"trained from the weights of {code(Path(init.checkpoint).name)}, {dropped}{norm}"
  return (
    f"{code(stage.name)}: {begun}; {stage.meta['step']:,} steps, {stage.meta['tokens']:,} tokens, rows of "
    f"{config.data.context:,} tokens, peak learning rate {config.optim.peak_lr:g}."
  )


def _notes(made: Export, without: bool) -> list[str]:
  notes = []
  positions = made.model.positions
  if not without:
    notes.append(f"Positions: `{positions}`.")
  elif made.family.positions_by_layer:
    layers = "attention.rope_pattern" if made.as_gguf else "no_rope_layers"
    notes.append(f"Positions: none in the layers where `{layers}` is 0.")
  else:
    notes.append(
      f"Positions: none. The class always rotates, so `{'rope.scaling.factor' if made.as_gguf else 'rope_parameters'}` "
      f"divides every frequency by {NEUTRAL_FACTOR:g}: no angle differs from 0."
    )
  if made.as_gguf and only_llama_cpp(made.model):
    notes.append(
      "For llama.cpp; transformers reads it wrongly: it takes only the base of the rotation from a GGUF file, and so "
      "computes another rotation. For transformers, export without `--format=gguf`."
    )
  if made.family.one_expert:
    notes.append(
      "The class is a mixture of experts; this model has one expert, which receives every token with weight 1."
    )
  if made.beta == 1:
    notes.append("The attention logits are as trained (beta 1).")
  else:
    notes.append(
      f"The attention logits are multiplied by beta = 1 + {made.c:g} ln({made.length / made.context:g}) = "
      f"{made.beta:.6g}, which is part of `{made.family.beta_in}`. "
      f"It is right for texts of {made.length:,} tokens; on shorter ones "
      "the model is not the one that was trained."
    )
  return notes


def _figures(figures: list[records.Result]) -> list[str]:
  if not figures:
    return ["## Figures", "", "None were measured for this card."]
  head = ["| method | task | tokens | metric | value | 95 % interval | n | seed |", "|---|---|---|---|---|---|---|---|"]
  rows = [
    f"| {plain(r.method)} | {plain(r.task)} | {r.context:,} | {plain(r.metric)} | {r.value:.4f} | {_interval(r)} | "
    f"{r.n:,} | {r.seed} |"
    for r in figures
  ]
  commands = [f"- {code(command)}" for command in dict.fromkeys(r.command for r in figures) if command]
  by = ["", "Measured by:", "", *commands] if commands else []
  return ["## Figures", "", "Measured before the export, in drope_jax.", "", *head, *rows, *by]


def _interval(result: records.Result) -> str:
  return "-" if result.low is None or result.high is None else f"{result.low:.4f} to {result.high:.4f}"

"""Measuring a checkpoint: every task under every method at every length, each figure into results.jsonl once."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from drope_jax import drope
from drope_jax.checkpoint import Checkpoint
from drope_jax.config import ConfigError
from drope_jax.data.corpus import documents
from drope_jax.data.pipeline import evaluation_documents
from drope_jax.data.recall import Lines, NeedleSample, needle_sample, sentences
from drope_jax.data.tokenizers import load_tokenizer
from drope_jax.evaluate import results
from drope_jax.evaluate.methods import Inference, inference
from drope_jax.evaluate.needles import by_depth, retrieve
from drope_jax.evaluate.perplexity import blocks, position_losses
from drope_jax.evaluate.results import ACCURACY, BETA, LOSS, Result, accuracy_at, loss_between

TASKS = ("perplexity", "needles")
FIT_TASK = "temperature"
BETAS = (0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.6, 1.8, 2.0)

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalData:
  """What is held out: long documents, and the makings of needle samples."""

  documents: Sequence[np.ndarray]  # token ids, each longer than the longest length
  fit_documents: Sequence[np.ndarray]  # others, to fit the temperature on
  lines: Lines
  depths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
  needles_per_depth: int = 40
  facts: int = 4
  seed: int = 0


def load_data(
  dataset: str, tokenizer_path: str, longest: int, *, documents_per_task: int, needles_per_depth: int, seed: int
) -> EvalData:
  """The held-out parts of a corpus: its splits `heldout` and `fit` (prose) and `words` (a word a document).

  Raises:
    ConfigError: if a split is missing, or has no document longer than `longest` tokens.
  """
  tokenizer = load_tokenizer(tokenizer_path)
  held_out, fit, words = (documents(dataset, split) for split in ("heldout", "fit", "words"))
  lines = Lines(tokenizer, tuple(words), [sentence for text in held_out for sentence in sentences(text)])
  return EvalData(
    documents=evaluation_documents(held_out, tokenizer, longest + 1, documents_per_task),
    fit_documents=evaluation_documents(fit, tokenizer, longest + 1, documents_per_task),
    lines=lines,
    needles_per_depth=needles_per_depth,
    seed=seed,
  )


def fit_temperature(run: str, loaded: Checkpoint, data: EvalData, lengths: Sequence[int], out: Path) -> float:
  """c of beta = 1 + c ln s on the `fit` split, its whole grid written to results.jsonl; read from there if it is."""
  context = loaded.context
  earlier = [r for r in results.read(out) if (r.run, r.task, r.metric, r.seed) == (run, FIT_TASK, "c", data.seed)]
  if earlier:
    return earlier[-1].value

  def loss_of(extension: float, beta: float) -> float:
    nll = position_losses(
      loaded.params, Inference(loaded.model, logit_scale=beta), data.fit_documents, length=round(extension * context)
    )
    return float(nll.mean(dtype=np.float64))

  beyond = [length / context for length in lengths if length > context]
  fit = drope.fit_temperature(loss_of, beyond, BETAS)
  records = []
  for extension, row in fit.losses.items():
    figures = {f"{LOSS}@beta={beta:.2f}": loss for beta, loss in row.items()} | {BETA: fit.best[extension]}
    n = len(data.fit_documents) * round(extension * context)
    records += _records(run, "drope", FIT_TASK, round(extension * context), context, data.seed, figures, n)
  longest = round(max(beyond) * context)
  records += _records(run, "drope", FIT_TASK, longest, context, data.seed, {"c": fit.c}, len(data.fit_documents))
  results.append(out, records)
  return fit.c


def evaluate(
  run: str,
  loaded: Checkpoint,
  methods: Sequence[str],
  lengths: Sequence[int],
  tasks: Sequence[str],
  data: EvalData,
  out: Path,
  c: float | None = None,
) -> None:
  """Measures what `out` does not hold yet. `c` is the temperature's coefficient; None: fitted if a method needs it.

  Raises:
    ConfigError: for an unknown task, or a method that is impossible for this checkpoint, before anything is measured.
  """
  context = loaded.context
  for task in tasks:
    if task not in TASKS:
      raise ConfigError(f"task is {task!r}; allowed: {', '.join(TASKS)}")
  for method in methods:
    inference(method, loaded.model, context, context, c=0.0)
  if "drope" in methods and c is None:
    c = fit_temperature(run, loaded, data, lengths, out)
  done = results.measured(out)
  for length in lengths:
    samples = _needles(data, length) if "needles" in tasks else []
    for method in methods:
      how = inference(method, loaded.model, context, length, c)
      for task in tasks:
        if results.Measurement(run, method, task, length, data.seed) in done:
          continue
        if task == "perplexity":
          records = _perplexity(run, method, loaded, how, data, length, context)
        else:
          records = _retrieval(run, method, loaded, how, data, samples, length, context)
        results.append(out, records)
        logger.info("%s  %s  %s at %d tokens: %s %.3f", run, method, task, length, records[0].metric, records[0].value)


def _needles(data: EvalData, length: int) -> list[NeedleSample]:
  return [
    needle_sample(data.lines, length, depth, data.seed, index, data.facts)
    for depth in data.depths
    for index in range(data.needles_per_depth)
  ]


def _records(
  run: str, method: str, task: str, length: int, context: int, seed: int, figures: dict[str, float], n: int
) -> list[Result]:
  return [
    Result(
      run=run,
      method=method,
      task=task,
      context=length,
      extension=length / context,
      metric=metric,
      value=value,
      n=n,
      seed=seed,
    )
    for metric, value in figures.items()
  ]


def _perplexity(
  run: str, method: str, loaded: Checkpoint, how: Inference, data: EvalData, length: int, context: int
) -> list[Result]:
  nll_NT = position_losses(loaded.params, how, data.documents, length=length)
  place = (run, method, "perplexity", length, context, data.seed)
  records = _records(*place, {LOSS: float(nll_NT.mean(dtype=np.float64)), BETA: how.logit_scale}, nll_NT.size)
  for block in blocks(nll_NT, max(context // 2, 1)):
    records += _records(*place, {loss_between(block.start, block.stop): block.loss}, block.n)
  return records


def _retrieval(
  run: str,
  method: str,
  loaded: Checkpoint,
  how: Inference,
  data: EvalData,
  samples: Sequence[NeedleSample],
  length: int,
  context: int,
) -> list[Result]:
  correct_N = retrieve(loaded.params, how, samples)
  place = (run, method, "needles", length, context, data.seed)
  records = _records(*place, {ACCURACY: float(correct_N.mean()), BETA: how.logit_scale}, len(samples))
  for depth, accuracy, n in by_depth(samples, correct_N, data.depths):
    records += _records(*place, {accuracy_at(depth): accuracy}, n)
  return records

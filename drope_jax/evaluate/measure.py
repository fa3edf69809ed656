"""Measuring a checkpoint: every task under every method at every length, each figure into results.jsonl once."""

import dataclasses
import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from drope_jax import drope
from drope_jax.checkpoint import Checkpoint
from drope_jax.evaluate import results
from drope_jax.evaluate.catalog import EvalData
from drope_jax.evaluate.methods import Inference, inference
from drope_jax.evaluate.perplexity import documents_at_once, position_losses
from drope_jax.evaluate.progress import Progress
from drope_jax.evaluate.results import BETA, LOSS, Measurement, Result, as_text
from drope_jax.evaluate.samples import SampleLog, fingerprint
from drope_jax.evaluate.tasks import BATCH_TOKENS, Figure, Subject, Task

FIT_TASK = "temperature"
BETAS = (0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.6, 1.8, 2.0)

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
  """Where figures go: what their records say beside the measurement itself."""

  path: Path  # of results.jsonl; answers to samples go into `samples/` beside it
  train_context: int
  command: str = ""

  def write(self, measurement: Measurement, figures: Iterable[Figure]) -> None:
    """Appends the figures of one measurement."""
    results.append(
      self.path,
      [
        Result(
          **{**measurement._asdict(), "settings": json.loads(measurement.settings)},
          extension=measurement.context / self.train_context,
          **figure._asdict(),
          command=self.command,
        )
        for figure in figures
      ],
    )

  def log_of(self, measurement: Measurement) -> SampleLog:
    *names, settings = map(str, measurement)
    name = ".".join([*names, fingerprint([settings])]).replace("/", "-")
    return SampleLog(self.path.parent / "samples" / f"{name}.jsonl")


def fit_temperature(
  run: str,
  loaded: Checkpoint,
  data: EvalData,
  lengths: Sequence[int],
  place: Place,
  batch_tokens: int = BATCH_TOKENS,
) -> float:
  """c of beta = 1 + c ln s on the `fit` split, its whole grid written to results.jsonl; read from there if it is."""
  context = loaded.context
  beyond = sorted(length / context for length in set(lengths) if length > context)
  longest = round(beyond[-1] * context)
  read = [document[: longest + 1] for document in data.fit_documents]
  settings = {"extensions": beyond, "betas": list(BETAS), "documents": len(read), "text": fingerprint(read)}
  known = Measurement(run, "drope", FIT_TASK, longest, data.seed, as_text({**weights_of(loaded), **settings}))
  earlier = [r for r in results.read(place.path) if r.metric == "c" and r.measurement == known]
  if earlier:
    return earlier[-1].value

  def loss_of(extension: float, beta: float) -> float:
    how, length = Inference(loaded.model, logit_scale=beta), round(extension * context)
    size = documents_at_once(how, len(data.fit_documents), length, batch_tokens)
    nll = position_losses(loaded.params, how, data.fit_documents, length=length, batch_size=size)
    return float(nll.mean(dtype=np.float64))

  fit = drope.fit_temperature(loss_of, beyond, BETAS)
  count = len(data.fit_documents)
  for extension, row in fit.losses.items():
    length = round(extension * context)
    losses = [Figure(f"{LOSS}@beta={beta:.2f}", loss, count * length) for beta, loss in row.items()]
    figures = [*losses, Figure(BETA, fit.best[extension], count * length)]
    place.write(known._replace(context=length), figures)
  place.write(known, [Figure("c", fit.c, count)])
  return fit.c


def weights_of(loaded: Checkpoint) -> dict[str, Any]:
  """What tells a checkpoint from others of its name: its step, and the first row of every parameter."""
  rows = (np.asarray(leaf[(0,) * (leaf.ndim - 1)]) for leaf in jax.tree.leaves(loaded.params))
  return {"step": loaded.step, "weights": fingerprint(rows)}


def evaluate(
  run: str,
  loaded: Checkpoint,
  methods: Sequence[str],
  lengths: Sequence[int],
  tasks: Sequence[Task],
  data: EvalData,
  out: Path,
  c: float | None = None,
  *,
  command: str = "",
  batch_tokens: int = BATCH_TOKENS,
  bos: bool = False,
) -> None:
  """Measures what `out`, a results.jsonl, does not hold yet.

  Args:
    methods: see methods.py.
    tasks: see catalog.py.
    c: the temperature's coefficient; None: fitted if a method needs it.
    command: written into every record.
    batch_tokens, bos: see tasks.Subject.

  Raises:
    ConfigError: for a method that is impossible for this checkpoint, or a task that is impossible at a length, before
      anything is measured.
  """
  context = loaded.context
  for length in lengths:
    for task in tasks:
      for method in methods:
        task.check(length, inference(method, loaded.model, context, length, c=0.0).crop)
  place = Place(path=out, train_context=context, command=command)
  if "drope" in methods and c is None and max(lengths) > context:
    c = fit_temperature(run, loaded, data, lengths, place, batch_tokens)
  done, weights = results.measured(out), weights_of(loaded)
  missing: list[tuple[Task, Measurement, Inference]] = []
  for length in lengths:
    for task in tasks:
      on = {**weights, "bos": bos, **task.settings(length)}
      for method in methods:
        how = inference(method, loaded.model, context, length, c if c is not None else 0.0)
        settings = as_text({**on, "beta": how.logit_scale})
        measurement = Measurement(run, method, task.name, length, data.seed, settings)
        if measurement not in done:
          missing.append((task, measurement, how))
  # What two methods run may be the same: within the training context all that rescale RoPE leave it as it is.
  measured: dict[tuple[str, int, Inference], list[Figure]] = {}
  progress = Progress.to_terminal([measurement.context for _, measurement, _ in missing])
  for task, measurement, how in missing:
    progress.begin(f"{run}  {measurement.method}  {task.name} at {measurement.context} tokens")
    subject = Subject(
      params=loaded.params,
      how=how,
      tokenizer=data.tokenizer,
      train_context=context,
      batch_tokens=batch_tokens,
      bos=bos,
      progress=progress,
      log=place.log_of(measurement),
    )
    same = (task.name, measurement.context, how)
    if same not in measured:
      measured[same] = task.measure(subject, measurement.context)
    first, *others = measured[same]
    place.write(measurement, [first, Figure(BETA, how.logit_scale, first.n), *others])
    progress(1.0)
    logger.info("%s  %s  %s at %d tokens: %s  %s", *measurement[:4], _shown(first), progress.remaining())


def _shown(figure: Figure) -> str:
  interval = "" if figure.low is None else f" ({figure.low:.3f} to {figure.high:.3f})"
  return f"{figure.metric} {figure.value:.3f}{interval}, n = {figure.n:,}"

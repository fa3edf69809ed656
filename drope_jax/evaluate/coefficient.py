"""The coefficient c of the temperature, beta = 1 + c ln s, fitted on held-out documents (paper appendix C.2)."""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from drope_jax import drope
from drope_jax.checkpoint import Checkpoint
from drope_jax.errors import ConfigError
from drope_jax.evaluate import results
from drope_jax.evaluate.eval_data import EvalData
from drope_jax.evaluate.figures import BETA, LOSS, RESAMPLES, Figure, mean_figure
from drope_jax.evaluate.methods import Inference
from drope_jax.evaluate.position_losses import documents_at_once, position_losses
from drope_jax.evaluate.progress import Progress
from drope_jax.evaluate.recorder import Recorder
from drope_jax.evaluate.results import Measurement, plain
from drope_jax.evaluate.samples import fingerprint
from drope_jax.evaluate.subject import Subject

FIT_TASK = "temperature"  # in results.jsonl
BETAS = (0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.6, 1.8, 2.0)

logger = logging.getLogger(__name__)


def fitted_coefficient(
  run: str,
  loaded: Checkpoint,
  weights: dict[str, Any],
  data: EvalData,
  lengths: Sequence[int],
  recorder: Recorder,
  subject: Subject,
  progress: Progress,
  rest: Sequence[float] = (),
) -> float:
  """Fits c of beta = 1 + c ln s on the `fit` split; the whole grid is written to results.jsonl as it is measured.

  Figures of the same fit (lengths, documents and weights) that are already recorded are not measured again. All figures
  have confidence intervals over documents; that of c comes from fits to bootstrap resamples.

  Args:
    weights: identifies the checkpoint, see measure.weights_of.
    subject: how to run the model; its `how` is replaced.
    rest: the weights of the parts of `progress` that follow.
  """
  lengths = sorted({length for length in lengths if length > loaded.context})
  documents = [subject.begin(document)[: lengths[-1] + 1] for document in documents_to_fit_on(data)]
  beyond = {length / loaded.context: length for length in lengths}
  settings = {
    **weights,
    "bos": subject.bos,
    "extensions": list(beyond),
    "betas": list(BETAS),
    "documents": len(documents),
    "concatenated": data.concatenate,
    "text": fingerprint(documents),
  }
  one = Measurement(run=run, method="drope", task=FIT_TASK, context=0, seed=data.seed, settings=plain(settings))
  at = {length: dataclasses.replace(one, context=length) for length in lengths}
  recorded = [r for r in results.read(recorder.path) if r.measurement == at.get(r.context)]
  known = {(r.context, r.at): r.figure for r in recorded if (r.metric, r.by) == (LOSS, BETA)}
  missing = {length: [beta for beta in BETAS if (length, beta) not in known] for length in lengths}
  progress.plan([*(length * len(betas) for length, betas in missing.items()), *rest])
  for length, betas in missing.items():
    progress.begin(f"{run}  {FIT_TASK} at {length} tokens")
    for done, beta in enumerate(betas):
      how = Inference(loaded.model, logit_scale=beta)
      nll_NT = position_losses(
        loaded.params,
        how,
        documents,
        length=length,
        batch_size=documents_at_once(how, len(documents), length, subject.batch_tokens),
        compute=subject.compute,
        progress=_part_of(progress, done, len(betas)),
      )
      means_N = nll_NT.mean(axis=1, dtype=np.float64)
      figure = mean_figure(LOSS, means_N, n=nll_NT.size, by=BETA, at=beta)
      figure = figure._replace(values=tuple(float(f"{one:.7g}") for one in means_N))  # for the interval of c
      recorder.write(at[length], [figure])
      known[length, beta] = figure
  fit = drope.fit_temperature(lambda s, beta: known[beyond[s], beta].value, list(beyond), BETAS)
  # An earlier version took the best beta of the grid itself, so what is recorded may be another fit of these losses.
  count, whole = len(documents), {(r.context, r.metric): r.figure.value for r in recorded if r.by is None}
  for extension, length in beyond.items():
    if extension in fit.on_edge:
      logger.warning(
        "%s  at %g times the training context the best beta, %g, ends the grid: the true one may lie "
        "beyond, and c would change with it",
        run,
        extension,
        fit.best[extension],
      )
    if whole.get((length, BETA)) != fit.best[extension]:
      recorder.write(at[length], [Figure(BETA, fit.best[extension], count * length)])
  if whole.get((lengths[-1], "c")) != fit.c:
    values = [[known[length, beta].values for beta in BETAS] for length in lengths]
    low, high = coefficient_interval(values, list(beyond))
    recorder.write(at[lengths[-1]], [Figure("c", fit.c, count, low, high)])
  return fit.c


def coefficient_interval(
  values_SB: Sequence[Sequence[Sequence[float] | None]], extensions: Sequence[float]
) -> tuple[float, float] | tuple[None, None]:
  """The 95 % bootstrap interval of c over documents, all of one length.

  Args:
    values_SB: the losses of the documents by extension and BETAS; None in old records that lack them.
    extensions: s, each above 1.

  Returns:
    The 2.5th and 97.5th percentile of c; None without the documents' losses, or with a single document.
  """
  if any(values is None for row in values_SB for values in row):
    return None, None
  losses_SBN = np.array(values_SB, np.float64)
  count = losses_SBN.shape[-1]
  if count < 2:
    return None, None
  rng, fits = np.random.default_rng(0), []
  for _ in range(RESAMPLES):
    weights_N = np.bincount(rng.integers(0, count, count), minlength=count)
    best_S = drope.best_betas(losses_SBN @ weights_N, BETAS)
    fits.append(drope.least_squares_coefficient(best_S, extensions))
  low, high = np.percentile(fits, [2.5, 97.5])
  return float(low), float(high)


def documents_to_fit_on(data: EvalData) -> Sequence[np.ndarray]:
  """`data.fit_documents`. Raises ConfigError, with alternatives, if there are none."""
  try:
    return data.fit_documents
  except ConfigError as error:
    raise ConfigError(
      f"{error}; the split 'fit' is needed to fit c of method 'drope': give c (--c=0.1), leave the method out "
      "(--methods=nope), or name text to fit on (--data=PATH,heldout=OTHER,fit=ANOTHER)"
    ) from error


def _part_of(progress: Progress, done: int, total: int) -> Callable[[float], None]:
  """The progress of one of `total` equal steps, after `done` of them."""
  return lambda share: progress((done + share) / total)

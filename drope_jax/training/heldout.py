"""The held-out loss of a run while it trains, at the training context and at multiples of it."""

import functools
import logging
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from drope_jax import metrics
from drope_jax.data.pipeline import check_named, evaluation_documents
from drope_jax.data.splits import documents, naming_split
from drope_jax.data.tokenizers import Tokenizer
from drope_jax.errors import ConfigError
from drope_jax.loss import token_losses
from drope_jax.model import hidden_states
from drope_jax.parameters import Params
from drope_jax.sharding import named_sharding, round_up_to_shards
from drope_jax.training.run import Run
from drope_jax.training.step import compiler_options, step_number

Array = jax.Array

logger = logging.getLogger(__name__)

SPLIT = "heldout"
GROUPS = 8  # groups of documents in a record: enough for a confidence interval, with few numbers


class HeldOut:
  """The held-out documents, on the devices, and the program that measures their loss.

  The same documents are used at every extension: the first extension * context tokens of each. During a fade the model
  has the frequencies of the current step.
  """

  def __init__(self, run: Run, tokenizer: Tokenizer, mesh: Mesh):
    """Raises ConfigError if no document is long enough.

    Nothing is traced yet: a length that the attention kernel cannot take is refused by the first `measure`.
    """
    config, self._mesh = run.config, mesh
    self._context, self._extensions = config.data.context, sorted(config.eval_extensions)
    longest = self._context * self._extensions[-1]
    check_named(config.data)
    dataset = config.data.dataset
    try:
      with naming_split(dataset, SPLIT):
        found = evaluation_documents(documents(dataset, SPLIT), tokenizer, longest + 1, config.eval_documents)
    except ConfigError as error:
      raise ConfigError(f"TrainConfig.eval_every: {error}") from error
    self.description = f"{len(found)} documents of the split {SPLIT!r}, at {_listed(self._extensions)}"
    self._count = len(found)
    begin = [tokenizer.bos_id] if config.data.bos else []
    tokens_NS = np.stack(
      [np.asarray([*begin, *document[: longest + 1]][: longest + 1], np.int32) for document in found]
    )
    at_once = config.data.batch_size // config.optim.accumulation * self._context
    with jax.set_mesh(mesh):
      self._batches = {extension: self._deal_out(tokens_NS, extension, at_once) for extension in self._extensions}
      self._program = jax.jit(
        functools.partial(_row_losses, run),
        out_shardings=NamedSharding(mesh, PartitionSpec()),
        compiler_options=compiler_options(config.compute, mesh),
      )

  def _deal_out(self, tokens_NS: np.ndarray, extension: int, at_once: int) -> list[Array]:
    """Batches of rows, no larger than those of training; the last one is padded with zeros."""
    length = extension * self._context
    rows = round_up_to_shards(min(max(at_once // length, 1), len(tokens_NS)), "batch")
    count = -(-len(tokens_NS) // rows)
    padded = np.pad(tokens_NS[:, : length + 1], [(0, count * rows - len(tokens_NS)), (0, 0)])
    sharding = named_sharding(self._mesh, ("batch",))

    def put(array: np.ndarray) -> Array:
      return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return [put(padded[first : first + rows]) for first in range(0, count * rows, rows)]

  def measure(self, params: Params, step: int) -> list[dict[str, Any]]:
    """The records of the weights after `step` steps: one per extension, `loss` in nats per token.

    The spread of `loss_by_group` (see `group_means`) gives a confidence interval over documents for the loss, and a
    paired one for the difference from another run with the same documents.
    """
    at, made = step_number(step), []
    for extension, batches in self._batches.items():
      rows = [np.asarray(part) for part in [self._program(params, batch, at) for batch in batches]]
      losses_N = np.concatenate(rows)[: self._count].astype(np.float64)
      where = {"split": SPLIT, "extension": extension, "context": extension * self._context}
      found = {"loss": float(losses_N.mean()), "documents": self._count, "loss_by_group": group_means(losses_N)}
      made.append({"step": step, "kind": metrics.EVAL, **where, **found})
    return made


def group_means(losses_N: np.ndarray) -> list[float]:
  """The means of GROUPS groups of documents, or of each document if there are fewer, rounded to seven digits.

  Group g consists of the documents g, g + GROUPS, g + 2 * GROUPS and so on.
  """
  return [float(f"{losses_N[first::GROUPS].mean():.7g}") for first in range(min(GROUPS, len(losses_N)))]


def _row_losses(run: Run, params: Params, tokens_BS: Array, step: Array) -> Array:
  """The mean negative log-likelihood of each row (B,), in nats per token."""
  compute, softcap = run.config.compute, run.trained.logits_softcap
  hidden = hidden_states(params, run.trained, tokens_BS[:, :-1], compute=compute, frequencies=run.frequencies(step))
  nll_BT = token_losses(params, hidden.states_BTD, tokens_BS[:, 1:], compute.loss_chunk, softcap=softcap).nll_BT
  return nll_BT.mean(axis=1)


def _listed(extensions: list[int]) -> str:
  return ", ".join(f"{extension}x" for extension in extensions) + " the training context"

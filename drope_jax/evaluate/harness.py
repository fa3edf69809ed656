"""lm-evaluation-harness for our checkpoints: this module is its command `lm_eval` with the model `drope_jax`.

`python -m drope_jax.evaluate.harness run --model drope_jax --model_args checkpoint=DIR,method=drope,c=0.1,length=4096 \
  --tasks ...`

Needs the extra `eval`. Nothing else in drope_jax imports this module.
"""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from drope_jax import cli

if __name__ == "__main__":  # before the libraries of the harness are imported
  import sys

  from drope_jax import cpu
  from drope_jax.evaluate.harness_call import check_call, prepare_network, runs_our_model

  cli.run_first(lambda: check_call(sys.argv[1:]))
  if runs_our_model(sys.argv[1:]):
    cpu.restart(command=True)
  cli.run_first(prepare_network)

try:
  from lm_eval.api.instance import Instance
  from lm_eval.api.model import TemplateLM
  from lm_eval.api.registry import register_model
  from lm_eval.models.utils import normalize_gen_kwargs
  from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ModuleNotFoundError as error:
  if __name__ == "__main__":
    raise SystemExit("error: lm-evaluation-harness is not installed: pip install 'drope_jax[eval]'") from error
  raise ModuleNotFoundError("lm-evaluation-harness is not installed: pip install 'drope_jax[eval]'") from error

from drope_jax import checkpoint as checkpoints
from drope_jax.data import chat
from drope_jax.data.tokenizers import load_tokenizer
from drope_jax.errors import ConfigError
from drope_jax.evaluate.answers import complete
from drope_jax.evaluate.likelihood import score_continuations
from drope_jax.evaluate.methods import Method, allowed_methods, inference
from drope_jax.evaluate.subject import BATCH_TOKENS, Subject

logger = logging.getLogger(__name__)
MAX_NEW_TOKENS = 256  # where a task does not say; the harness's own default


@register_model("drope_jax")
class DropeJax(TemplateLM):
  """A checkpoint under an inference-time method, as a model of the harness.

  Args:
    checkpoint: workdir of a run.
    method: see methods.py; None: the checkpoint as it was trained.
    c: of the temperature, needed by method `drope`; refused at lengths within the training context, where it would have
      no effect.
    length: maximum length of prompt and answer together in tokens, to which the method applies; longer prompts are
      truncated on the left, with one warning. None: the training context.
    step: of the checkpoint; None: its last.
    bos: whether texts begin with the tokenizer's BOS.
    batch_tokens: tokens on the device at a time; does not change results.
    batch_size, max_batch_size: refused if given, since batches are packed by tokens.
    device: ignored, since JAX chooses it and the harness always passes one.
  """

  def __init__(
    self,
    checkpoint: str,
    method: str | None = None,
    c: float | None = None,
    length: int | None = None,
    step: int | None = None,
    bos: bool = False,
    batch_tokens: int = BATCH_TOKENS,
    batch_size: int | str = 1,
    max_batch_size: int | None = None,
    device: str | None = None,
  ):
    super().__init__()
    if str(batch_size) != "1" or max_batch_size is not None:
      raise ConfigError("give batch_tokens in --model_args; --batch_size is not read")
    loaded = checkpoints.load(checkpoint, step)
    context = loaded.context
    self.max_length = int(length) if length else context
    method = method or allowed_methods(loaded.model)[0]
    given = Method.parse(method).c if c is None else c
    if given is not None and self.max_length <= context:
      raise ConfigError(
        f"c is {given}, but beta is 1 at length={self.max_length}, within the training context of {context} tokens; "
        "give length=TOKENS in --model_args, of the longest sequence"
      )
    self._checkpoint, self._cut = str(checkpoint), False
    self._chat = False  # whether texts are conversations, in which special tokens are spelled out
    self._tokenizer = load_tokenizer(checkpoint)
    self._subject = Subject(
      params=loaded.params,
      how=inference(method, loaded.model, context, self.max_length, c),
      tokenizer=self._tokenizer,
      train_context=context,
      batch_tokens=batch_tokens,
      bos=bos,
    )

  @property
  def eot_token_id(self) -> int:
    return self._tokenizer.eos_id

  @property
  def prefix_token_id(self) -> int:
    return self._tokenizer.eos_id if self._tokenizer.bos_id is None else self._tokenizer.bos_id

  @property
  def tokenizer_name(self) -> str:
    return self._checkpoint  # the harness caches answers under this name

  def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
    """Token ids; BOS is prepended if texts have one, unless it is there already or `add_special_tokens` is False."""
    tokens = self._tokenizer.encode(string, special_tokens=self._chat)
    if add_special_tokens is False or not self._subject.bos or tokens[:1] == [self._tokenizer.bos_id]:
      return tokens
    return [self.prefix_token_id, *tokens]

  def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
    """The text of a conversation by the tokenizer's template; from now on special tokens in texts are parsed."""
    self._chat = True
    return chat.render(self._tokenizer, chat_history, whole=add_generation_prompt)

  def chat_template(self, chat_template: bool | str = False) -> str:
    """The chat template, which the harness records with the results."""
    return (self._tokenizer.chat_template or "") if chat_template else ""

  def _loglikelihood_tokens(
    self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
  ) -> list[tuple[float, bool]]:
    pairs = []
    for texts, prompt, continuation in requests:
      if len(continuation) > self.max_length:
        raise ConfigError(f"a continuation of {len(continuation)} tokens is longer than length={self.max_length}")
      kept = self._kept(np.asarray(prompt, np.int32), self.max_length + 1 - len(continuation))
      pairs.append((texts, kept, np.asarray(continuation, np.int32)))
    scored = score_continuations(self._subject, [pair[1:] for pair in pairs])
    for (texts, _, _), one in zip(pairs, scored, strict=True):
      if texts is not None:
        self.cache_hook.add_partial("loglikelihood", texts, tuple(one))
    return [(one.log_prob, one.greedy) for one in scored]

  def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
    """Log-likelihood of whole texts, in windows of `max_length` that do not overlap (as the harness's own models)."""
    windows, owners = [], []
    for owner, request in enumerate(requests):
      tokens = self._tokenizer.encode(request.args[0])  # the BOS, if there is one, is the window's prefix
      for window in get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, context_len=1):
        windows.append((None, *make_disjoint_window(window)))
        owners.append(owner)
    totals = np.zeros(len(requests))
    for owner, (log_prob, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
      totals[owner] += log_prob
    return totals.tolist()

  def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
    """Greedy answers, each up to the first of its stop strings. Raises ConfigError where a task asks for sampling."""
    answers = [""] * len(requests)
    by_size: dict[int, list[int]] = {}
    settings = [normalize_gen_kwargs(request.args[1], MAX_NEW_TOKENS) for request in requests]
    for i, setting in enumerate(settings):
      if setting["do_sample"] and setting.get("temperature", 1.0) > 0:
        raise ConfigError("a task asks for sampling; the model drope_jax decodes greedily")
      by_size.setdefault(setting["max_gen_toks"], []).append(i)
    for size, indices in by_size.items():
      room = self.max_length - size
      if room < 1:
        raise ConfigError(f"a task generates {size} tokens; length={self.max_length} leaves none for the prompt")
      prompts = [self._kept(np.asarray(self.tok_encode(requests[i].args[0]), np.int32), room) for i in indices]
      for i, text in zip(indices, complete(self._subject, prompts, size), strict=True):
        answers[i] = _until(text, settings[i]["until"])
    for request, answer in zip(requests, answers, strict=True):
      self.cache_hook.add_partial("generate_until", request.args, answer)
    return answers

  def _kept(self, prompt: np.ndarray, room: int) -> np.ndarray:
    """The last `room` tokens; the first time that some are cut off, a warning says so."""
    if len(prompt) > room and not self._cut:
      self._cut = True
      logger.warning(
        "a prompt of %d tokens is truncated on the left: %d fit into length=%d", len(prompt), room, self.max_length
      )
    return prompt[-room:]


def _until(text: str, stops: Sequence[str]) -> str:
  for stop in filter(None, stops):
    text = text.split(stop)[0]
  return text


def main() -> None:
  """The command `lm_eval`, whose flags and `--help` are its own."""
  from lm_eval.__main__ import cli_evaluate

  cli_evaluate()


if __name__ == "__main__":
  cli.run_foreign(main)

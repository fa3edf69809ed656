"""Text from a checkpoint: `python -m experiments.generate --checkpoint=DIR --prompt="Once upon a time"`.

All prompts (`--prompt` and `--prompt_file`, each as often as wanted) are answered together, as one batch; the answers
are shown in the order of the prompts, as they come. How fast it was is told on stderr at the end.
"""

import itertools
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import jax
import numpy as np
from absl import flags

from drope_jax import checkpoint
from drope_jax.config import ComputeConfig, ConfigError
from drope_jax.data.tokenizers import Tokenizer, load_tokenizer
from drope_jax.evaluate.methods import Inference, allowed_methods, inference
from drope_jax.generate import Generation
from experiments import cli

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Workdir of a run, or an imported checkpoint.", required=True)
STEP = flags.DEFINE_integer("step", None, "Step of the checkpoint; its last by default.")
PROMPT = flags.DEFINE_multi_string("prompt", [], "Text to continue; may be given several times.")
PROMPT_FILE = flags.DEFINE_multi_string("prompt_file", [], "File whose whole text is a prompt; likewise.")
MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 128, "Tokens to add at most.", lower_bound=1)
TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "0: the most likely token; above: sampling.", lower_bound=0)
TOP_P = flags.DEFINE_float("top_p", 1.0, "Sample from the most likely tokens that together reach this probability.")
SEED = flags.DEFINE_integer("seed", 0, "Of the sampling.")
METHOD = flags.DEFINE_string(
  "method",
  None,
  "Of drope_jax/evaluate/methods.py, for the longest prompt and its answer; default: drope if --c is given, else the "
  "model as it was trained.",
)
COEFFICIENT = flags.DEFINE_float("c", None, "c of beta = 1 + c ln s, which method drope needs.")
BOS = flags.DEFINE_bool("bos", False, "Begin each prompt with the tokenizer's BOS, as Llama 2 was trained.")
DTYPE = flags.DEFINE_enum("dtype", "auto", ["auto", "float32", "bfloat16"], "Of the activations.")
PREFILL_CHUNK = flags.DEFINE_integer("prefill_chunk", 512, "Prompt tokens read at one time.", lower_bound=1)
flags.register_validator("top_p", lambda top_p: 0 < top_p <= 1, "must lie in (0, 1]")

CONTEXT_TOKENS = 8  # of the prompt, decoded with an answer: some tokenizers drop the space that a text begins with

logger = logging.getLogger("experiments.generate")


class Screen:
  """Writes the answers in the order of the prompts: each as it grows, once those before it are whole."""

  def __init__(self, tokenizer: Tokenizer, prompts: Sequence[Sequence[int]], headings: Sequence[str], out: TextIO):
    self._tokenizer, self._headings, self._out = tokenizer, headings, out
    self._tails = [list(prompt[-CONTEXT_TOKENS:]) for prompt in prompts]
    self._answers: list[list[int]] = [[] for _ in prompts]
    self._current = -1  # the answer being written
    self._begin_next()

  def show(self, pieces: Sequence[Sequence[int]], ended: Sequence[bool]) -> None:
    """Takes the new tokens of each answer, and whether they were its last, and writes what can be written."""
    for answer, piece in zip(self._answers, pieces, strict=True):
      answer.extend(piece)
    while self._current < len(self._answers):
      self._write(whole=ended[self._current])
      if not ended[self._current]:
        return
      self._out.write("\n")
      self._begin_next()

  def _begin_next(self) -> None:
    self._current, self._written = self._current + 1, ""
    if self._current < len(self._headings):
      self._out.write(self._headings[self._current])

  def _write(self, whole: bool) -> None:
    tail, answer = self._tails[self._current], self._answers[self._current]
    text = self._tokenizer.decode([*tail, *answer])[len(self._tokenizer.decode(tail)) :]
    if not whole:
      text = text.rstrip("\N{REPLACEMENT CHARACTER}")  # a character whose last bytes are still to come
    self._out.write(text[len(self._written) :])
    self._out.flush()
    self._written = text


def read_prompts(texts: Sequence[str], files: Sequence[str]) -> list[str]:
  """The prompts of the flags. Raises ConfigError if there is none, one is empty, or a file cannot be read."""
  prompts = list(texts)
  for name in files:
    try:
      prompts.append(Path(name).read_text())
    except (OSError, UnicodeDecodeError) as error:
      raise ConfigError(f"--prompt_file: {name} cannot be read ({error})") from error
  if not prompts:
    raise ConfigError("--prompt or --prompt_file is needed")
  for number, prompt in enumerate(prompts, 1):
    if not prompt:
      raise ConfigError(f"prompt {number} is empty")
  return prompts


def choose(trained: checkpoint.Checkpoint, method: str | None, c: float | None, length: int) -> tuple[str, Inference]:
  """The method of the flags at `length` tokens, and what it runs."""
  if method is None:
    method = "drope" if c is not None else allowed_methods(trained.model)[0]
  if c is not None and method != "drope":
    raise ConfigError(f"--c is {c}, which method {method!r} does not read; leave it out, or choose drope")
  return method, inference(method, trained.model, trained.context, length, c)


def _encode(tokenizer: Tokenizer, prompts: Sequence[str], bos: bool) -> list[list[int]]:
  if not bos:
    return [tokenizer.encode(prompt) for prompt in prompts]
  if tokenizer.bos_id is None:
    raise ConfigError("--bos: the checkpoint's tokenizer has no token that begins a document")
  return [[tokenizer.bos_id, *tokenizer.encode(prompt)] for prompt in prompts]


def _headings(prompts: Sequence[str]) -> list[str]:
  """What stands above each answer: nothing if there is only one."""
  if len(prompts) == 1:
    return [""]
  shown = [" ".join(prompt.split()) for prompt in prompts]
  return [f"--- {i} of {len(shown)}: {text[:60]}\n" for i, text in enumerate(shown, 1)]


def _speed(tokens: int, seconds: float) -> str:
  return f"{tokens:,} tokens in {seconds:.2f} s ({tokens / seconds:,.1f} tokens/s)"


def main() -> None:
  texts = read_prompts(PROMPT.value, PROMPT_FILE.value)
  loaded = checkpoint.load(CHECKPOINT.value, STEP.value)
  tokenizer = load_tokenizer(CHECKPOINT.value)
  prompts = _encode(tokenizer, texts, BOS.value)
  length = max(map(len, prompts)) + MAX_NEW_TOKENS.value
  method, how = choose(loaded, METHOD.value, COEFFICIENT.value, length)
  try:
    seen = [how.seen(np.array(prompt), MAX_NEW_TOKENS.value) for prompt in prompts]
  except ValueError as error:
    raise ConfigError(f"--max_new_tokens is {MAX_NEW_TOKENS.value}: {error}") from error

  batch = Generation(
    loaded.params,
    how.config,
    seen,
    max_new_tokens=MAX_NEW_TOKENS.value,
    temperature=TEMPERATURE.value,
    top_p=TOP_P.value,
    key=jax.random.key(SEED.value),
    eos_id=tokenizer.eos_id,
    logit_scale=how.logit_scale,
    compute=ComputeConfig(dtype=DTYPE.value),
    prefill_chunk=PREFILL_CHUNK.value,
  )
  times = [time.monotonic()]
  batch.compile()
  times.append(time.monotonic())
  batch.prefill()
  times.append(time.monotonic())
  screen = Screen(tokenizer, prompts, _headings(texts), sys.stdout)
  generated = 0
  while not batch.finished:
    pieces = batch.decode(1)
    generated += sum(map(len, pieces))
    screen.show(pieces, batch.ended)
  times.append(time.monotonic())

  compiling, reading, answering = (after - before for before, after in itertools.pairwise(times))
  extension = length / loaded.context
  logger.info("method %s, beta %.3f, at %.3gx the training context", method, how.logit_scale, extension)
  logger.info("prompts: %s", _speed(sum(map(len, seen)), reading))
  logger.info("answers: %s; before that, %.1f s of compiling", _speed(generated, answering), compiling)


if __name__ == "__main__":
  cli.run(main)

"""Generates text from a checkpoint: `python -m experiments.generate --checkpoint=DIR --prompt="Once upon a time"`.

`--prompt` and `--prompt_file` may be repeated; answers are shown in the order of the prompts, as they come. Each prompt
is answered as it would be alone, with random draws of its own if sampled: settings that a method takes from the length,
such as beta or YaRN's factor, depend on that prompt and its answer only. Prompts with equal settings form one batch:
all prompts within the training context, and beyond it those of one length (with --method=dynamic_yarn and other methods
without a factor of their own: all). The speed is printed on stderr at the end.
"""

import codecs
import contextlib
import logging
import re
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, MutableMapping, Sequence
from pathlib import Path
from typing import TextIO

import jax
import numpy as np
from absl import flags

from drope_jax import checkpoint, cli
from drope_jax.config import ComputeConfig, ModelConfig
from drope_jax.data import chat
from drope_jax.data.tokenizers import Tokenizer, load_tokenizer
from drope_jax.errors import ConfigError
from drope_jax.evaluate.methods import Inference, allowed_methods, inference
from drope_jax.generation import Generation

CHECKPOINT = cli.define_path("checkpoint", None, "Workdir of a run, or an imported checkpoint.", required=True)
STEP = flags.DEFINE_integer("step", None, "Step of the checkpoint; its last by default.", lower_bound=0)
PROMPT = flags.DEFINE_multi_string("prompt", [], "Text to continue; may be given several times.")
PROMPT_FILE = cli.define_path_list("prompt_file", "File whose whole text is a prompt; may be given several times.")
MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 128, "Most tokens to generate per prompt.", lower_bound=1)
TEMPERATURE = cli.define_float("temperature", 0.0, "0: take the most likely token; above 0: sample.", lower_bound=0)
TOP_P = cli.define_float("top_p", 1.0, "Sample from the most likely tokens that together reach this probability.")
SEED = cli.define_seed("For sampling.")
METHOD = flags.DEFINE_string(
  "method",
  None,
  "Of drope_jax/evaluate/methods.py, applied to each prompt and its answer; default: drope if --c is given, else the "
  "model as it was trained.",
)
COEFFICIENT = cli.define_float("c", None, "c of beta = 1 + c ln s; required by method drope.")
BOS = flags.DEFINE_bool("bos", False, "Begin each prompt with the tokenizer's BOS, as Llama 2 was trained.")
CHAT = flags.DEFINE_bool("chat", False, "Each prompt is a user's message, written by the tokenizer's chat template.")
DTYPE = flags.DEFINE_enum("dtype", "auto", ["auto", "float32", "bfloat16"], "Of the activations.")
PREFILL_CHUNK = flags.DEFINE_integer(
  "prefill_chunk",
  None,
  "Tokens of each prompt read at a time; default: up to 512, or more for fewer than 8 prompts.",
  lower_bound=1,
)
flags.register_validator("top_p", lambda top_p: 0 < top_p <= 1, "must lie in (0, 1]")

logger = logging.getLogger("experiments.generate")


class Screen:
  """Writes the answers in the order of the prompts: each as it grows, once those before it are complete.

  A token may end within a character; the character is written when its last byte arrives.
  """

  def __init__(self, tokenizer: Tokenizer, headings: Sequence[str], out: TextIO):
    self._tokenizer, self._headings, self._out = tokenizer, headings, out
    self._answers: list[list[int]] = [[] for _ in headings]  # the tokens of each that are not yet written
    self._current = -1  # the answer being written
    self._begin_next()

  def show(self, pieces: Sequence[Sequence[int]], ended: Sequence[bool]) -> None:
    """Takes the new tokens of each answer, and whether it has ended, and writes what can be written."""
    for answer, piece in zip(self._answers, pieces, strict=True):
      answer.extend(piece)
    while self._current < len(self._answers):
      self._write(whole=ended[self._current])
      if not ended[self._current]:
        return
      self._out.write("\n")
      self._begin_next()

  def _begin_next(self) -> None:
    self._current, self._characters = self._current + 1, codecs.getincrementaldecoder("utf-8")(errors="replace")
    if self._current < len(self._headings):
      self._out.write(self._headings[self._current])

  def _write(self, whole: bool) -> None:
    pieces = [self._tokenizer.piece(token) for token in self._answers[self._current]]
    self._answers[self._current] = []
    self._out.write(self._characters.decode(b"".join(pieces), final=whole))
    self._out.flush()


def read_prompts(texts: Sequence[str], files: Sequence[str]) -> list[str]:
  """The prompts of the flags. Raises ConfigError if there is none, one is empty, or a file cannot be read."""
  prompts = list(texts)
  for name in files:
    try:
      prompts.append(Path(name).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
      raise ConfigError(f"--prompt_file: {name} cannot be read ({error})") from error
  if not prompts:
    raise ConfigError("--prompt or --prompt_file is needed")
  for number, prompt in enumerate(prompts, 1):
    if not prompt:
      raise ConfigError(f"--prompt: prompt {number} is empty")
    if re.search("[\ud800-\udfff]", prompt):  # Python decodes other bytes of the command line to surrogates
      raise ConfigError(f"--prompt: prompt {number} is not UTF-8")
  return prompts


def choose(trained: ModelConfig, method: str | None, c: float | None) -> str:
  """The method that the flags ask for."""
  if method is None:
    return "drope" if c is not None else allowed_methods(trained)[0]
  if c is not None and method != "drope":
    raise ConfigError(f"--c is {c}, which method {method!r} does not read; leave it out, or choose drope")
  return method


def encode_prompts(tokenizer: Tokenizer, prompts: Sequence[str], bos: bool, as_chat: bool) -> list[list[int]]:
  """The tokens of each prompt.

  Args:
    bos: whether each begins with the tokenizer's BOS; a template may have written it already.
    as_chat: whether each is a user's message, to be put into the tokenizer's chat template.

  Raises:
    ConfigError: the tokenizer has no such token or template.
  """
  if as_chat:
    texts = [chat.render(tokenizer, [{"role": "user", "content": prompt}]) for prompt in prompts]
    encoded = [tokenizer.encode(text, special_tokens=True) for text in texts]
  else:
    encoded = [tokenizer.encode(prompt) for prompt in prompts]
  if not bos:
    return encoded
  if tokenizer.bos_id is None:
    raise ConfigError("--bos: the checkpoint's tokenizer has no token that begins a document")
  return [tokens if tokens[:1] == [tokenizer.bos_id] else [tokenizer.bos_id, *tokens] for tokens in encoded]


def _headings(prompts: Sequence[str]) -> list[str]:
  """The heading of each answer; empty if there is only one."""
  if len(prompts) == 1:
    return [""]
  shown = [" ".join(prompt.split()) for prompt in prompts]
  return [f"--- {i} of {len(shown)}: {text[:60]}\n" for i, text in enumerate(shown, 1)]


def _batch(
  loaded: checkpoint.Checkpoint, how: Inference, prompts: Sequence[np.ndarray], eos_ids: Sequence[int], number: int
) -> Generation:
  """The generation of these prompts with the settings of the flags; `number` sets the random draws of the batch."""
  return Generation(
    loaded.params,
    how.config,
    prompts,
    max_new_tokens=MAX_NEW_TOKENS.value,
    temperature=TEMPERATURE.value,
    top_p=TOP_P.value,
    key=jax.random.fold_in(jax.random.key(SEED.value), number),
    eos_id=eos_ids,
    logit_scale=how.logit_scale,
    compute=ComputeConfig(dtype=DTYPE.value),
    prefill_chunk=PREFILL_CHUNK.value,
  )


@contextlib.contextmanager
def _timed(seconds: MutableMapping[str, float], what: str) -> Iterator[None]:
  """Adds the seconds that pass within to `seconds[what]`."""
  start = time.monotonic()
  yield
  seconds[what] += time.monotonic() - start


def _speed(tokens: int, seconds: float) -> str:
  return f"{tokens:,} tokens in {seconds:.2f} s ({tokens / seconds:,.1f} tokens/s)"


def main() -> None:
  texts = read_prompts(PROMPT.value, PROMPT_FILE.value)
  loaded = checkpoint.load(CHECKPOINT.value, STEP.value)
  tokenizer = load_tokenizer(CHECKPOINT.value)
  prompts = encode_prompts(tokenizer, texts, BOS.value, CHAT.value)
  method, c, new_tokens = choose(loaded.model, METHOD.value, COEFFICIENT.value), COEFFICIENT.value, MAX_NEW_TOKENS.value
  lengths = [len(prompt) + new_tokens for prompt in prompts]
  groups: dict[Inference, list[int]] = {}  # the prompts of each batch, by their settings
  for i, length in enumerate(lengths):
    groups.setdefault(inference(method, loaded.model, loaded.context, length, c), []).append(i)
  try:
    seen = {i: how.seen(np.array(prompts[i]), new_tokens) for how, group in groups.items() for i in group}
  except ValueError as error:
    raise ConfigError(f"--max_new_tokens is {new_tokens}: {error}") from error

  screen, ended = Screen(tokenizer, _headings(texts), sys.stdout), [False] * len(prompts)
  generated = 0
  seconds: dict[str, float] = defaultdict(float)
  for how, group in groups.items():
    with _timed(seconds, "compiling"):
      batch = _batch(loaded, how, [seen[i] for i in group], tokenizer.eos_ids, number=group[0])
      batch.compile()
    with _timed(seconds, "reading"):
      batch.prefill()
    with _timed(seconds, "answering"):
      while not batch.finished:
        pieces: list[list[int]] = [[] for _ in prompts]
        for i, piece, whole in zip(group, batch.decode(1), batch.ended, strict=True):
          pieces[i], ended[i] = piece, whole
          generated += len(piece)
        screen.show(pieces, ended)

  for how, group in groups.items():
    extension = max(lengths[i] for i in group) / loaded.context
    which = "" if len(groups) == 1 else f" (prompt {', '.join(str(i + 1) for i in group)})"
    logger.info("method %s, beta %.3f, at %.3gx the training context%s", method, how.logit_scale, extension, which)
  logger.info("prompts: %s", _speed(sum(map(len, seen.values())), seconds["reading"]))
  answers = _speed(generated, seconds["answering"])
  logger.info("answers: %s; before that, %.1f s of compiling", answers, seconds["compiling"])


if __name__ == "__main__":
  cli.run(main, computes=True, saves_memory="half of --max_new_tokens, or of the prompts,")

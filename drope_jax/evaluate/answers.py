"""Greedy answers to many prompts, batched by length, and logged as they are generated."""

from collections.abc import Sequence

import numpy as np

from drope_jax.evaluate.samples import digest
from drope_jax.evaluate.subject import Subject, batches
from drope_jax.generation import generate


def complete(subject: Subject, prompts: Sequence[np.ndarray], max_new_tokens: int) -> list[str]:
  """The text that a model generates for each prompt (token ids), up to EOS or `max_new_tokens`.

  A cropped model sees the last tokens of a prompt that leave room for `max_new_tokens` within its window; a task's
  `check` makes sure that there are some.
  """
  seen = [subject.how.seen(prompt, max_new_tokens) for prompt in prompts]
  rows = continuations(subject, seen, max_new_tokens, subject.tokenizer.eos_ids)
  return [subject.tokenizer.decode(row) for row in rows]


def continuations(
  subject: Subject, prompts: Sequence[np.ndarray], max_new_tokens: int, eos_ids: Sequence[int] | None
) -> list[list[int]]:
  """The tokens that a model generates for each prompt, uncropped; answers in `subject.log` are not generated again."""
  answers = [subject.log.find(i, prompt) if subject.log else None for i, prompt in enumerate(prompts)]
  missing = [i for i, answer in enumerate(answers) if answer is None]
  lengths = [len(prompts[i]) + max_new_tokens for i in missing]
  done, total = 0, sum(lengths)
  for batch in batches(lengths, subject.batch_tokens):
    indices = [missing[place] for place in batch.indices]
    filled = indices + indices[:1] * (batch.rows - len(indices))  # padded, so that there is one compiled shape
    rows = generate(
      subject.params,
      subject.how.config,
      [prompts[i] for i in filled],
      max_new_tokens=max_new_tokens,
      eos_id=eos_ids,
      logit_scale=subject.how.logit_scale,
      compute=subject.compute,
    )[: len(indices)]
    for i, row in zip(indices, rows, strict=True):
      answers[i] = row
    if subject.log:
      subject.log.append(
        {"index": i, "prompt": digest(prompts[i]), "tokens": row, "text": subject.tokenizer.decode(row)}
        for i, row in zip(indices, rows, strict=True)
      )
    done += sum(lengths[place] for place in batch.indices)
    subject.progress(done / total)
  return [answer for answer in answers if answer is not None]

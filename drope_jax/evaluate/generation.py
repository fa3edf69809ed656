"""Greedy answers to many prompts, batched by length, kept as they come."""

from collections.abc import Sequence

import numpy as np

from drope_jax.evaluate.samples import digest
from drope_jax.evaluate.tasks import Subject, batches
from drope_jax.generate import generate


def complete(subject: Subject, prompts: Sequence[np.ndarray], max_new_tokens: int) -> list[str]:
  """The text a model adds to each prompt, up to its EOS or `max_new_tokens`; prompts are token ids.

  What `subject.log` holds is not generated again. A cropped model sees the last tokens of a prompt that leave room for
  `max_new_tokens` within its window; a task's `check` has made sure that there are some.
  """
  tokenizer = subject.tokenizer
  seen = [subject.how.seen(prompt, max_new_tokens) for prompt in prompts]
  answers: list[list[int] | None] = [
    subject.log.find(i, prompt) if subject.log else None for i, prompt in enumerate(seen)
  ]
  missing = [i for i, answer in enumerate(answers) if answer is None]
  lengths = [len(seen[i]) + max_new_tokens for i in missing]
  done, total = 0, sum(lengths)
  for batch in batches(lengths, subject.batch_tokens):
    indices = [missing[place] for place in batch]
    rows = generate(
      subject.params,
      subject.how.config,
      [seen[i] for i in indices],
      max_new_tokens=max_new_tokens,
      eos_id=tokenizer.eos_id,
      logit_scale=subject.how.logit_scale,
      compute=subject.compute,
    )
    for i, row in zip(indices, rows, strict=True):
      answers[i] = row
    if subject.log:
      subject.log.append(
        {"index": i, "prompt": digest(seen[i]), "tokens": row, "text": tokenizer.decode(row)}
        for i, row in zip(indices, rows, strict=True)
      )
    done += sum(lengths[place] for place in batch)
    subject.progress(done / total)
  return [tokenizer.decode(answer) for answer in answers if answer is not None]

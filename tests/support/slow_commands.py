"""`--import`ed by commands to slow them down in the middle of writing; the file `$REACHED` appears at that moment."""

import os
import sys
import time
from pathlib import Path

import safetensors.numpy

from drope_jax import checkpoint
from drope_jax.data import corpus
from drope_jax.evaluate.tasks import perplexity
from drope_jax.interop import exporting


def _after(original):
  def slow(*arguments, **keywords):
    made = original(*arguments, **keywords)
    Path(os.environ["REACHED"]).touch()
    time.sleep(100)
    return made

  return slow


checkpoint.save_weights = _after(checkpoint.save_weights)
exporting.save_file = _after(safetensors.numpy.save_file)
corpus.TextCorpus._generate_examples = _after(corpus.TextCorpus._generate_examples)
perplexity.position_losses = _after(perplexity.position_losses)

command = sys.modules["__main__"]
if command.__spec__ is not None and command.__spec__.name == "experiments.prose":
  command.gather = lambda debs: []
  command.split = lambda documents: {"train": ["a"], "heldout": ["b"], "fit": ["c"]}

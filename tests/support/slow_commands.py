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
perplexity.position_losses = _after(perplexity.position_losses)

command = sys.modules["__main__"]
name = command.__spec__.name if command.__spec__ is not None else ""
if name in ("experiments.prose", "experiments.recall_corpus"):
  builder = corpus._builder()
  builder._generate_examples = _after(builder._generate_examples)
if name == "experiments.prose":
  command.gather = lambda debs: []
  command.split = lambda documents: {"train": ["a"], "heldout": ["b"], "fit": ["c"]}

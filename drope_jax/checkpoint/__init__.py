"""Checkpoints of a run: an orbax composite of `params`, `opt_state`, `data` and `meta` per step.

`params` is a separate item, so that weights can be loaded alone, on any mesh, without knowing the optimizer. `meta` is
JSON: step, tokens, seconds, the run's complete config, the library versions, and digests of everything (digests.py),
which are checked on loading. An imported pretrained model is a single step 0 with `params` and `meta`, which then holds
the model's config, its context and its origin.
"""

from drope_jax.checkpoint.reading import (
  Checkpoint,
  SavedStep,
  abstract_params,
  last_of,
  load,
  open_manager,
  open_step,
  steps_of,
)
from drope_jax.checkpoint.resuming import EXTENDABLE, check_ours, refuse_other_run, resume
from drope_jax.checkpoint.writing import TrainState, check_saved, finish, save, save_weights, writing

__all__ = [
  "EXTENDABLE",
  "Checkpoint",
  "SavedStep",
  "TrainState",
  "abstract_params",
  "check_ours",
  "check_saved",
  "finish",
  "last_of",
  "load",
  "open_manager",
  "open_step",
  "refuse_other_run",
  "resume",
  "save",
  "save_weights",
  "steps_of",
  "writing",
]

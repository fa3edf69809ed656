"""Runs that add parts to the model they start from: announced, recorded, resumed exactly, refused where they are."""

import dataclasses
import logging

import jax
import numpy as np
import pytest
from support.interrupting import terminate, when_step_is_logged
from support.tiny_run import losses, tiny_run

from drope_jax import checkpoint
from drope_jax.config import InitConfig
from drope_jax.errors import ConfigError
from drope_jax.optimizers import Staged
from drope_jax.train import train
from drope_jax.training.run import resolve
from drope_jax.transitions import Drop, Fade, Keep


def added(corpus, start, **changes):
  init = InitConfig(checkpoint=str(start), token_shift=True, logn_scale=True, **changes)
  optim = {"optimizer": Staged(steps=4)}  # queries and keys alone until after the interruption
  return tiny_run(corpus, init=init, optim=optim, steps=6)


def test_parts_are_added_and_trained_and_resuming_is_exact(corpus, rope, tmp_path, monkeypatch, caplog):
  config = added(corpus, rope, transition=Drop())
  with caplog.at_level(logging.INFO):
    train(config, tmp_path / "straight")
  assert "token_shift added (all zero), logn_scale added (all zero), optimizer state fresh" in caplog.text
  when_step_is_logged(monkeypatch, 2, terminate)
  assert train(config, tmp_path / "stopped") == (3, False)
  held = checkpoint.load(tmp_path / "stopped")
  assert held.model.token_shift and held.model.logn_scale
  assert not np.any(held.params["layers"]["token_shift"])
  np.testing.assert_array_equal(held.params["layers"]["v"], checkpoint.load(rope).params["layers"]["v"])
  assert train(config, tmp_path / "stopped") == (6, True)
  assert losses(tmp_path / "stopped") == losses(tmp_path / "straight")
  ours, theirs = (checkpoint.load(tmp_path / name).params for name in ("stopped", "straight"))
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)
  assert all(np.all(ours["layers"][name]) for name in ("token_shift", "logn_scale"))
  with pytest.raises(ConfigError, match=r"InitConfig\.token_shift: the model of .* has it already"):
    resolve(added(corpus, tmp_path / "straight", transition=Keep()))


def test_a_fade_trains_the_checkpoints_rotations_with_the_new_parts(corpus, rope):
  run = resolve(added(corpus, rope, transition=Fade(share=0.5)))
  assert run.trained == dataclasses.replace(run.source, token_shift=True, logn_scale=True)
  assert run.model == dataclasses.replace(run.trained, positions=None)

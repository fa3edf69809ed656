"""The sizes of studies, as settings of branching.BranchingStudy: for two CPU cores, for one GPU, and the paper's.

`mini` has the model, the text and the rates of the quickstart. `small` is for one GPU: the trunk has a constant rate,
and each tail decays to zero. It reads the corpus in `data`, the same for all seeds, which is made from the dataset
`text` if it does not exist (`python -m experiments.prose --out=data/prose`; see experiments/recall_corpus.py). The
others have the paper's models and budgets, mainly to be compiled ahead of time (`drope_jax.aot
--config=STUDY:SIZE/RUN`): the 494M model on FineWeb (configs/pretrain.py), and pretrained models to be recalibrated
(configs/recalibrate.py).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

from drope_jax.config import ComputeConfig, ModelConfig
from drope_jax.positions import RoPE
from experiments.configs import pretrain, recalibrate
from experiments.studies import quickstart
from experiments.studies.branching import BranchingStudy
from experiments.studies.quickstart import DOCSTRINGS

T = TypeVar("T", bound=BranchingStudy)
Size = Callable[[], dict[str, Any]]  # makes settings of BranchingStudy


def mini() -> dict[str, Any]:
  quick = quickstart.get_config()
  return {
    "model": quick.model,
    "context": quick.context,
    "batch_size": quick.batch_size,
    "trunk_steps": quick.pretrain_steps,
    "tail_steps": quick.recalibrate_steps,
    "peak_lr": quick.peak_lr,
    "tail_lr": quick.recalibrate_lr,
    "warmup_steps": quick.warmup_steps,
    "tail_warmup_steps": quick.warmup_steps,
    "text": DOCSTRINGS,
    "compute": ComputeConfig(scan_layers=False),  # on CPUs few layers are faster unrolled
  }


def small() -> dict[str, Any]:
  model = ModelConfig(
    vocab_size=4096,
    d_model=384,
    num_layers=8,
    num_heads=6,
    num_kv_heads=6,
    head_dim=64,
    d_ff=1024,
    positions=RoPE(theta=10_000.0),
    init_std=0.05,  # about 1 / sqrt(d_model), as in the quickstart, so that retrieval is learnt early
  )
  return {
    "model": model,
    "context": 256,
    "batch_size": 256,
    "trunk_steps": 1144,
    "tail_steps": 382,
    "schedule": "wsd",
    "peak_lr": 2e-3,
    "tail_lr": 2e-3,
    "warmup_steps": 50,
    "tail_warmup_steps": 20,
    "data": "data/recall_prose",
    "text": "data/prose",
    "tokenize": True,
    "compute": ComputeConfig(dtype="bfloat16", scan_layers=False),
    "documents": 128,
    "needles_per_depth": 200,
  }


def paper() -> dict[str, Any]:
  """The trunk and tails of configs/pretrain.py: rope_14k and drope."""
  trunk, tail = pretrain.get_config("rope_14k"), pretrain.get_config("drope")
  return {
    "model": trunk.model,
    "context": trunk.data.context,
    "batch_size": trunk.data.batch_size,
    "trunk_steps": trunk.steps,
    "tail_steps": tail.steps,
    "peak_lr": trunk.optim.peak_lr,
    "tail_lr": tail.optim.peak_lr,
    "warmup_steps": trunk.optim.warmup_steps,
    "tail_warmup_steps": tail.optim.warmup_steps,
    "data": "data/fineweb",
    "compute": trunk.compute,
    "documents": 128,
    "needles_per_depth": 200,
    "samples": 500,
  }


def recalibrated(recipe: str) -> dict[str, Any]:
  """A pretrained model as the trunk, with the budget, rate and QK-norm of a recipe of configs/recalibrate.py."""
  config = recalibrate.get_config(recipe)
  base = recalibrate.RECIPES[recipe].base
  return {
    "model": recalibrate.BASES[base].model,
    "context": config.data.context,
    "batch_size": config.data.batch_size,
    "trunk_steps": 1,  # unused: the trunk is imported
    "tail_steps": config.steps,
    "peak_lr": config.optim.peak_lr,
    "tail_lr": config.optim.peak_lr,
    "warmup_steps": config.optim.warmup_steps,
    "tail_warmup_steps": config.optim.warmup_steps,
    "qk_norm": recalibrate.RECIPES[recipe].qk_norm,
    "checkpoint": f"runs/{base}/checkpoint",
    "data": config.data.directory,
    "compute": config.compute,
    "mesh": config.mesh,
    "documents": 128,
    "needles_per_depth": 200,
    "samples": 500,
  }


def of(cls: type[T], size: Size, **changes: Any) -> Callable[[], T]:
  """A study at a size, with the study's own changes to it."""
  return lambda: cls(**size() | changes)


def of_recipe(cls: type[T], recipe: str, **changes: Any) -> Callable[[], T]:
  """A study of a pretrained model, with a recipe of configs/recalibrate.py."""
  return of(cls, lambda: recalibrated(recipe), **changes)


def shorter(size: Size, times: int) -> Size:
  """A size with the steps of trunk and tails divided by `times`, for studies with many runs."""

  def made() -> dict[str, Any]:
    settings = size()
    return settings | {name: settings[name] // times for name in ("trunk_steps", "tail_steps")}

  return made


def with_context(size: Size, context: int, theta: float) -> Size:
  """A size at another context, with as many tokens per step, and with another RoPE base.

  A corpus that is made for the size is another too, since its documents are as long as the context needs them.
  """

  def made() -> dict[str, Any]:
    settings = size()
    rows = settings["batch_size"] * settings["context"] // context
    model = dataclasses.replace(settings["model"], positions=RoPE(theta=theta))
    folder = {"data": f"{settings['data']}_{context}"} if {"data", "text"} <= settings.keys() else {}
    return settings | folder | {"context": context, "batch_size": rows, "model": model}

  return made

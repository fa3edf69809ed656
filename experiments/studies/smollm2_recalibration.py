"""A real model recalibrated: SmolLM2-135M, dropped and trained on; each run has a control that keeps RoPE.

Paper: tables 2 and 11 (QK-norm and the rate), with another model, and with the control that they lack.

`python -m experiments.study --config=experiments/studies/smollm2_recalibration.py --workdir=runs/recalibration`, after
`python -m experiments.fetch_smollm2` (the model) and `python -m experiments.prose --out=data/prose` (the text). The two
recipes are those of experiments/configs/recalibrate.py: QK-norm and the high rate, and neither. Partial drops, which
are ours and not the paper's, use the second. The study needs an accelerator; `--config.steps` and `--config.batch_size`
set the budget, and `--only` names the runs.

Seven runs of 400 steps, 0.10B tokens each. That is 10 epochs of data/prose; more steps need a larger
`--config.dataset` (4,000 would be 98 epochs of this one). Parameters: 134.5M. FLOPs per token (PaLM, T 8,192): 2.506e9;
a run: 2.63e17. Numbers to expect: docs/results/smollm2.md (200 steps of 8 rows, without QK-norm: half a
turn 0.050 nats above RoPE continued in context, the full drop 1.897; beyond it RoPE continued with YaRN is ahead).
"""

import dataclasses
from pathlib import Path

from drope_jax import checkpoint
from drope_jax.config import ComputeConfig, TrainConfig
from drope_jax.transitions import Transition
from experiments.configs import recalibrate
from experiments.plan import Arm, EvalPlan, Study, check_at_least_one, require
from experiments.studies.branching import control
from experiments.studies.partial_drop import dropped, partial

RECIPES = {"qk_norm": "smollm2_135m", "plain": "smollm2_135m_moderate"}  # name in this study -> name of the config
LABELS = {"qk_norm": "QK-norm, 1e-3", "plain": "3e-4"}
PARTIAL_RECIPE = "plain"  # the pilot of the partial drop had no QK-norm


@dataclasses.dataclass(unsafe_hash=True, kw_only=True)
class Recalibration:
  """The settings, as `--config.NAME=VALUE`."""

  checkpoint: str = "runs/smollm2_135m/checkpoint"
  dataset: str = "data/prose"  # with the splits `train`, and `heldout` and `fit` of long documents
  steps: int = 400  # of each run
  turns: tuple[float, ...] = (0.5, 1.0, 2.0)  # one partial drop each
  batch_size: int = 32  # rows, each as long as the model's context
  extensions: tuple[int, ...] = (1, 2, 4)  # multiples of the model's context
  documents: int = 8  # held out, to measure the loss on
  budgets: int = 5  # number of measurements of the loss in context during a run, for its curve
  needles_per_depth: int = 20
  block: int = 2048  # positions averaged in each point of the loss by position
  compute: ComputeConfig = dataclasses.field(default_factory=lambda: ComputeConfig(remat="full"))
  seed: int = 0

  def __post_init__(self) -> None:
    check_at_least_one(self, "steps", "batch_size", "extensions", "documents", "budgets", "needles_per_depth", "block")

  def reading(self, path: str) -> "Recalibration":
    return dataclasses.replace(self, dataset=path)

  def study(self, workdir: Path) -> Study:
    require(self, checkpoint="experiments.fetch_smollm2", dataset="experiments.prose --out=DIR")
    context = checkpoint.open_step(self.checkpoint).context
    lengths = [extension * context for extension in self.extensions]
    branches = [(recipe, branch) for recipe in RECIPES for branch in (control(), dropped())]
    branches += [(PARTIAL_RECIPE, partial(turns)) for turns in self.turns]
    runs, arms, rows = {}, [], []
    for recipe, branch in branches:
      run, label = f"{branch.run}_{recipe}", f"{branch.label} ({LABELS[recipe]})"
      runs[run] = self._run(RECIPES[recipe], context, branch.transition)
      arms.append(Arm(label, (run,)))
      rows += dataclasses.replace(branch, run=run, label=label).rows()
    return Study(
      title="A pretrained model, dropped and recalibrated, beside the same model trained on",
      seed=self.seed,
      train_context=context,
      prepare=lambda: None,
      runs=runs,
      arms=arms,
      rows=rows,
      lengths=lengths,
      tasks=("perplexity", "needles"),
      eval_data=EvalPlan(
        tokenizer=self.checkpoint,
        longest=max(lengths),
        dataset=self.dataset,
        num_documents=self.documents,
        needles_per_depth=self.needles_per_depth,
        block=self.block,
        seed=self.seed,
      ),
    )

  def _run(self, recipe: str, context: int, transition: Transition) -> TrainConfig:
    """The recipe with these settings and a warmup of at most a tenth of the steps."""
    config = recalibrate.get_config(recipe)
    assert config.init is not None
    return dataclasses.replace(
      config,
      init=dataclasses.replace(config.init, checkpoint=self.checkpoint, transition=transition),
      data=dataclasses.replace(config.data, directory=self.dataset, context=context, batch_size=self.batch_size),
      optim=dataclasses.replace(config.optim, warmup_steps=min(config.optim.warmup_steps, self.steps // 10)),
      compute=self.compute,
      steps=self.steps,
      seed=self.seed,
      log_every=10,
      eval_every=max(self.steps // self.budgets, 1),
      eval_documents=self.documents,
    )


def get_config() -> Recalibration:
  return Recalibration()

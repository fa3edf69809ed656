"""How much recalibration a drop needs: its cost in context after budgets from nothing to more than the trunk had.

Paper: figures 9 and 10 (SmolLM-360M after 30, 60 and 120B tokens) and the claim that 0.8 % of the pretraining's tokens
win back 95 %. Its missing control is a model trained on with RoPE for as many tokens. Here every budget is a run of its
own, with a complete schedule, and RoPE is continued for the same budget. Runs `..._0` are measured without any
recalibration. Models that keep rotations are measured with YaRN too.

`python -m experiments.study --config=experiments/studies/recalibration_budget.py:SIZE --workdir=DIR --seeds=0,1,2`.
There is one trunk per seed, and for each budget RoPE continued, the full drop, and the partial drops of `turns`. The
size `mini_turns` has other turns; with the `--runs=DIR` of `mini`, trunk and controls are trained only once. `small`
has one partial drop and two budgets. `paper_360m` reads imported weights and the files of the six benchmarks of figures
9 and 10 (`--config.multiple_choice=DIR`); QK-norm is inserted wherever it trains, as in the paper.

| size       |  parameters |     T | runs | rows |     tokens | FLOPs (PaLM) |     minutes (on) |
| :--------- | ----------: | ----: | ---: | ---: | ---------: | -----------: | ---------------: |
| mini       |     935,040 |   128 |   17 |   35 |       8.4M |      5.40e13 | 10 (2 CPU cores) |
| mini_turns |     935,040 |   128 |   17 |   40 |       8.4M |      5.40e13 | 11 (2 CPU cores) |
| small      |  15,735,168 |   256 |    7 |   15 |     131.2M |      1.36e16 |     5 (one H200) |
| paper      | 494,005,120 | 1,024 |   17 |   35 |  46,137.3M |      1.49e20 |                  |
| paper_360m | 361,862,080 | 2,048 |   16 |   35 | 900,802.3M |      2.64e21 |                  |

Tokens and FLOPs (PaLM) are totals over the runs of a seed. Numbers to expect: docs/results/recalibration_budget.md.
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from drope_jax.transitions import Drop, Keep, PartialDrop
from experiments.plan import check_at_least_one
from experiments.studies import sizes
from experiments.studies.branching import PARTIAL, Branch, BranchingStudy, getter, tail
from experiments.studies.partial_drop import partial


@dataclasses.dataclass(unsafe_hash=True, kw_only=True)
class Budget(BranchingStudy):
  """The settings, as `--config.NAME=VALUE`."""

  title: ClassVar[str] = "Loss in context by recalibration budget"

  steps: tuple[int, ...]  # the budgets of the tails, besides 0
  turns: tuple[float, ...] = (1.0, 2.0)  # of the partial drops
  drops: bool = True  # whether to include the full drop

  def __post_init__(self) -> None:
    super().__post_init__()
    check_at_least_one(self, "steps")

  def branches(self) -> Sequence[Branch]:
    ways = {
      "control": (Keep(), "RoPE, continued", PARTIAL),
      **({"drop": (Drop(), "dropped", ("nope",))} if self.drops else {}),
      **{f"turns_{turns:g}": (PartialDrop(turns=turns), partial(turns).label, PARTIAL) for turns in self.turns},
    }
    return [
      tail(f"{name}_{steps}", f"{label}, {steps:,} steps", how, methods, steps=steps)
      for steps in (0, *self.steps)
      for name, (how, label, methods) in ways.items()
    ]


_MINI = {"steps": (125, 250, 500, 1000), "needles_per_depth": 40}
SIZES = {
  "mini": sizes.of(Budget, sizes.mini, **_MINI),
  "mini_turns": sizes.of(Budget, sizes.mini, **_MINI, turns=(0.35, 0.5, 4.0), drops=False),
  "small": sizes.of(Budget, sizes.small, steps=(95, 191), turns=(1.0,), needles_per_depth=100),
  "paper": sizes.of(Budget, sizes.paper, steps=(500, 1000, 2000, 4000)),
  "paper_360m": sizes.of_recipe(
    Budget,
    "smollm_360m_120b",
    steps=(4_768, 30_000, 60_000, 120_000),
    extensions=(1,),
    tasks=("perplexity", "multiple_choice"),
    multiple_choice="data/multiple_choice",
  ),
}
get_config = getter(SIZES)

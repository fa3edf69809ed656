"""What the drop costs within the context (paper: table 5, figures 9 and 10).

The paper's averages over ARC-Easy, ARC-Challenge, HellaSwag, OpenBookQA, PIQA and WinoGrande: SmolLM-360M 53.1 as it is
and 53.4 with DroPE; SmolLM-1.7B 60.25 and 60.62. DroPE was trained further, its base was not. Added here are the
control that they lack, RoPE trained on for the same tokens (`control`), and partial drops, which are ours.

`python -m experiments.study --config=experiments/studies/table5_in_context.py:SIZE --workdir=DIR --seeds=0,1,2`. The
sizes `paper...` read an imported model and the tasks' files (`--config.multiple_choice=DIR`, see
drope_jax/evaluate/tasks/multiple_choice.py). `mini` and `small` train a trunk of their own instead of the pretrained
model, and measure the loss, needles, copying by distance, and which assignment wins instead of those tasks.

| size       |    parameters |     T | runs | rows |     tokens | FLOPs (PaLM) |    minutes (on) |
| :--------- | ------------: | ----: | ---: | ---: | ---------: | -----------: | --------------: |
| mini       |       935,040 |   128 |    5 |    5 |       1.8M |      1.15e13 | 2 (2 CPU cores) |
| small      |    15,735,168 |   256 |    5 |    5 |     175.1M |      1.82e16 |    4 (one H200) |
| paper      |   361,862,080 | 2,048 |    3 |    4 | 377,487.4M |      1.10e21 |                 |
| paper_1_7b | 1,711,376,384 | 2,048 |    3 |    4 |  59,998.5M |      6.89e20 |                 |

Tokens and FLOPs (PaLM) are totals over the runs of a seed. Numbers to expect: docs/results/table5_in_context.md.
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from drope_jax.transitions import Drop, Keep
from experiments.studies import sizes
from experiments.studies.branching import Branch, BranchingStudy, getter, tail
from experiments.studies.partial_drop import partial


@dataclasses.dataclass(unsafe_hash=True, kw_only=True)
class InContext(BranchingStudy):
  """The settings, as `--config.NAME=VALUE`."""

  title: ClassVar[str] = "What the drop costs within the context (paper: table 5)"

  turns: tuple[float, ...] = (0.5, 1.0)  # of one partial drop each
  extensions: tuple[float, ...] = (1,)
  tasks: tuple[str, ...] = ("perplexity", "needles", "induction", "copy", "order")

  def branches(self) -> Sequence[Branch]:
    return [
      tail("base", "as it is", Keep(), ("rope",), steps=0),
      tail("control", "RoPE, continued", Keep(), ("rope",)),
      tail("drop", "DroPE", Drop(), ("nope",)),
      *(partial(turns, ("rope",)) for turns in self.turns),
    ]


_PAPER = {"turns": (0.5,), "tasks": ("perplexity", "multiple_choice"), "multiple_choice": "data/multiple_choice"}
SIZES = {
  "mini": sizes.of(InContext, sizes.mini, samples=500, needles_per_depth=100),
  "small": sizes.of(InContext, sizes.small, samples=500),
  "paper": sizes.of_recipe(InContext, "smollm_360m_120b", **_PAPER),
  "paper_1_7b": sizes.of_recipe(InContext, "smollm_1_7b", **_PAPER),
}
get_config = getter(SIZES)

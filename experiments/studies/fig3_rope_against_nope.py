"""RoPE against NoPE from scratch, and their gap by the number of tokens seen (paper: figure 3).

In the paper RoPE's training loss is below NoPE's throughout 16B tokens. Here the held-out loss is measured 40 times per
run, so that the gap can be plotted against tokens. A control that the paper lacks is a model that rotates only the
pairs that turn at least once in the context (`partial`): it shows whether training needs the slow rotations.

`python -m experiments.study --config=experiments/studies/fig3_rope_against_nope.py:SIZE --workdir=DIR --seeds=0,1,2`;
the report's loss curves are the figure, its table has the final values.

| size  |  parameters |     T | runs | rows |    tokens | FLOPs (PaLM) |    minutes (on) |
| :---- | ----------: | ----: | ---: | ---: | --------: | -----------: | --------------: |
| mini  |     935,040 |   128 |    3 |    3 |     12.3M |      7.85e13 | 6 (2 CPU cores) |
| small |  15,735,168 |   256 |    3 |    3 |    300.0M |      3.11e16 |    5 (one H200) |
| paper | 494,005,120 | 1,024 |    3 |    3 | 50,331.6M |      1.62e20 |                 |

Tokens and FLOPs (PaLM) are totals over the runs of a seed. Numbers to expect: docs/results/fig3_rope_against_nope.md.
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from drope_jax.transitions import PartialDrop
from experiments.studies import sizes
from experiments.studies.branching import Branch, BranchingStudy, getter, scratch


@dataclasses.dataclass(unsafe_hash=True, kw_only=True)
class Gap(BranchingStudy):
  """The settings, as `--config.NAME=VALUE`."""

  title: ClassVar[str] = "RoPE against NoPE from scratch (paper: figure 3)"

  def branches(self) -> Sequence[Branch]:
    partial = PartialDrop(turns=1.0).apply(self.model, self.context).positions
    return [
      scratch("rope", "RoPE", self.model.positions, ("rope",)),
      scratch("nope", "NoPE", None, ("nope",)),
      scratch("partial", "RoPE from 1 turn on", partial, ("rope",)),
    ]


_CURVES = {"extensions": (1,), "budgets": 40}
SIZES = {
  "mini": sizes.of(Gap, sizes.mini, **_CURVES, trunk_steps=3000, tail_steps=1000),
  "small": sizes.of(Gap, sizes.small, **_CURVES),
  "paper": sizes.of(Gap, sizes.paper, **_CURVES, tasks=("perplexity",)),
}
get_config = getter(SIZES)

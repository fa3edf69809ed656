"""When to drop: never, late, in the middle, or from the start (paper: table 6).

The paper's validation perplexities after 16,000 steps, dropped at step 0 (NoPE), 8,000, 14,000 and never: 23.77, 22.42,
21.73, 21.72. Added here are the controls that it lacks: RoPE continued from each branching point (`control`,
`control_half`), to separate the effect of the drop from that of the new schedule that comes with it.

`python -m experiments.study --config=experiments/studies/table6_when_to_drop.py:SIZE --workdir=DIR --seeds=0,1,2`.
All arms see as many tokens. With a cosine schedule, a trunk completes its own before the tail begins; the paper does
not say whether its trunk did.

| size  |  parameters |     T | runs | rows |    tokens | FLOPs (PaLM) |    minutes (on) |
| :---- | ----------: | ----: | ---: | ---: | --------: | -----------: | --------------: |
| mini  |     935,040 |   128 |    8 |    6 |      4.9M |      3.11e13 | 4 (2 CPU cores) |
| small |  15,735,168 |   256 |    8 |    6 |    158.1M |      1.64e16 |    4 (one H200) |
| paper | 494,005,120 | 1,024 |    8 |    6 | 77,594.6M |      2.50e20 |                 |

Tokens and FLOPs (PaLM) are totals over the runs of a seed. Numbers to expect: docs/results/table6_when_to_drop.md.
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from drope_jax.transitions import Drop, Keep
from experiments.studies import sizes
from experiments.studies.branching import Branch, BranchingStudy, control, getter, scratch, tail


@dataclasses.dataclass(unsafe_hash=True, kw_only=True)
class WhenToDrop(BranchingStudy):
  """The settings, as `--config.NAME=VALUE`."""

  title: ClassVar[str] = "When to drop the embedding (paper: table 6)"

  def branches(self) -> Sequence[Branch]:
    total = self.trunk_steps + self.tail_steps
    half = total // 2
    rest = {"start": "trunk_half", "steps": total - half}
    return [
      control(("rope",)),
      scratch("rope", "RoPE, never dropped", self.model.positions, ("rope",)),
      tail("drop", "dropped late", Drop(), ("nope",)),
      scratch("trunk_half", "half of the trunk", self.model.positions, is_trunk=True, steps=half),
      tail("control_half", "RoPE, continued from half", Keep(), ("rope",), **rest),
      tail("drop_half", "dropped at half", Drop(), ("nope",), **rest),
      scratch("nope", "NoPE from scratch", None, ("nope",)),
    ]


SIZES = {
  "mini": sizes.of(WhenToDrop, sizes.mini, extensions=(1, 8)),
  "small": sizes.of(WhenToDrop, sizes.shorter(sizes.small, 3), extensions=(1, 8), needles_per_depth=40),
  "paper": sizes.of(WhenToDrop, sizes.paper, extensions=(1,), tasks=("perplexity",)),
}
get_config = getter(SIZES)

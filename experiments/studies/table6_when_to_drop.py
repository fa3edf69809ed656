"""When to drop: never, late, in the middle, or from the start (paper: table 6).

The paper's validation perplexities after 16,000 steps, dropped at step 0 (NoPE), 8,000, 14,000 and never: 23.77, 22.42,
21.73, 21.72. Added here are the controls that it lacks, to separate the effect of the drop from that of the new
schedule that comes with it: RoPE continued from each branching point (`control`, `control_half`), and NoPE that begins
a new schedule there (`nope_continued`, `nope_half`).

`python -m experiments.study --config=experiments/studies/table6_when_to_drop.py:SIZE --workdir=DIR --seeds=0,1,2`.
All arms see as many tokens. With a cosine schedule, a trunk completes its own before the tail begins; the paper does
not say whether its trunk did.

| size  |  parameters |     T | runs | rows |     tokens | FLOPs (PaLM) |    minutes (on) |
| :---- | ----------: | ----: | ---: | ---: | ---------: | -----------: | --------------: |
| mini  |     935,040 |   128 |   12 |    8 |       6.9M |      4.42e13 | 5 (2 CPU cores) |
| small |  15,735,168 |   256 |   12 |    8 |     224.7M |      2.33e16 |    6 (one H200) |
| paper | 494,005,120 | 1,024 |   12 |    8 | 111,149.1M |      3.59e20 |                 |

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
    rope, total = self.model.positions, self.trunk_steps + self.tail_steps
    half = total // 2
    rest = total - half
    return [
      control(("rope",)),
      scratch("rope", "RoPE, never dropped", rope, ("rope",)),
      tail("drop", "dropped late", Drop(), ("nope",)),
      scratch("trunk_half", "half of the trunk", rope, is_trunk=True, steps=half),
      tail("control_half", "RoPE, continued from half", Keep(), ("rope",), start="trunk_half", steps=rest),
      tail("drop_half", "dropped at half", Drop(), ("nope",), start="trunk_half", steps=rest),
      scratch("nope", "NoPE from scratch", None, ("nope",)),
      scratch("nope_trunk", "NoPE, trunk", None, is_trunk=True),
      tail("nope_continued", "NoPE, continued", Keep(), ("nope",), start="nope_trunk"),
      scratch("nope_trunk_half", "NoPE, half of the trunk", None, is_trunk=True, steps=half),
      tail("nope_half", "NoPE, continued from half", Keep(), ("nope",), start="nope_trunk_half", steps=rest),
    ]


SIZES = {
  "mini": sizes.of(WhenToDrop, sizes.mini, extensions=(1, 8)),
  "small": sizes.of(WhenToDrop, sizes.shorter(sizes.small, 3), extensions=(1, 8), needles_per_depth=40),
  "paper": sizes.of(WhenToDrop, sizes.paper, extensions=(1,), tasks=("perplexity",)),
}
get_config = getter(SIZES)

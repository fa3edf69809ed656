"""How the loss recovers from the drop: DroPE against RoPE and NoPE during training (paper: figure 2).

The paper drops at step 14,000 of 16,000; at the end its DroPE is level with RoPE and below NoPE. The controls that the
paper lacks branch off a trunk at the same step, with the same new schedule: RoPE (`control`), and NoPE from a trunk
without an embedding (`nope_continued`), since models from scratch have one schedule and DroPE two. The paper does not
say which loss figure 2 shows; here both are recorded, the training loss and, `budgets` times per run, the held-out
loss.

`python -m experiments.study --config=experiments/studies/fig2_recovery.py:SIZE --workdir=DIR --seeds=0,1,2`; the
report's loss and recovery curves are the figure, its table has the final values. All arms see as many tokens.

| size  |  parameters |     T | runs | rows |    tokens | FLOPs (PaLM) |    minutes (on) |
| :---- | ----------: | ----: | ---: | ---: | --------: | -----------: | --------------: |
| mini  |     935,040 |   128 |    7 |    5 |      4.4M |      2.78e13 | 3 (2 CPU cores) |
| small |  15,735,168 |   256 |    7 |    5 |    212.5M |      2.21e16 |    4 (one H200) |
| paper | 494,005,120 | 1,024 |    7 |    5 | 69,206.0M |      2.23e20 |                 |

Tokens and FLOPs (PaLM) are totals over the runs of a seed. Numbers to expect: docs/results/fig2_recovery.md.
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from drope_jax.transitions import Drop, Keep
from experiments.studies import sizes
from experiments.studies.branching import Branch, BranchingStudy, control, getter, scratch, tail


@dataclasses.dataclass(unsafe_hash=True, kw_only=True)
class Recovery(BranchingStudy):
  """The settings, as `--config.NAME=VALUE`."""

  title: ClassVar[str] = "Recovery from the drop (paper: figure 2)"

  def branches(self) -> Sequence[Branch]:
    return [
      control(("rope",)),
      tail("drop", "DroPE", Drop(), ("nope",)),
      scratch("rope", "RoPE", self.model.positions, ("rope",)),
      scratch("nope", "NoPE", None, ("nope",)),
      scratch("nope_trunk", "NoPE, trunk", None, is_trunk=True),
      tail("nope_continued", "NoPE, continued", Keep(), ("nope",), start="nope_trunk"),
    ]


_ONLY_LOSS = {"extensions": (1,), "tasks": ("perplexity",)}
SIZES = {
  "mini": sizes.of(Recovery, sizes.mini, **_ONLY_LOSS, budgets=25),
  "small": sizes.of(Recovery, sizes.shorter(sizes.small, 2), **_ONLY_LOSS, budgets=20),
  "paper": sizes.of(Recovery, sizes.paper, **_ONLY_LOSS, budgets=40),
}
get_config = getter(SIZES)

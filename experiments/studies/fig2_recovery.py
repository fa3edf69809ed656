"""How the loss recovers from the drop: DroPE against RoPE and NoPE during training (paper: figure 2).

The paper drops at step 14,000 of 16,000; at the end its DroPE is level with RoPE and below NoPE. The control that the
paper lacks is RoPE that branches off at the same step, with the same new schedule (`control`). The paper does not say
which loss figure 2 shows; here both are recorded, the training loss and, `budgets` times per run, the held-out loss.
Models from scratch have one schedule and DroPE two; table6_when_to_drop.py has NoPE with two.

`python -m experiments.study --config=experiments/studies/fig2_recovery.py:SIZE --workdir=DIR --seeds=0,1,2`; the
report's loss and recovery curves are the figure, its table has the final values. All arms see as many tokens.

| size  |  parameters |     T | runs | rows |    tokens | FLOPs (PaLM) |    minutes (on) |
| :---- | ----------: | ----: | ---: | ---: | --------: | -----------: | --------------: |
| mini  |     935,040 |   128 |    5 |    4 |      3.3M |      2.13e13 | 2 (2 CPU cores) |
| small |  15,735,168 |   256 |    5 |    4 |    162.5M |      1.69e16 |    3 (one H200) |
| paper | 494,005,120 | 1,024 |    5 |    4 | 52,428.8M |      1.69e20 |                 |

Tokens and FLOPs (PaLM) are totals over the runs of a seed. Numbers to expect: docs/results/fig2_recovery.md.
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from drope_jax.transitions import Drop
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
    ]


_ONLY_LOSS = {"extensions": (1,), "tasks": ("perplexity",)}
SIZES = {
  "mini": sizes.of(Recovery, sizes.mini, **_ONLY_LOSS, budgets=25),
  "small": sizes.of(Recovery, sizes.shorter(sizes.small, 2), **_ONLY_LOSS, budgets=20),
  "paper": sizes.of(Recovery, sizes.paper, **_ONLY_LOSS, budgets=40),
}
get_config = getter(SIZES)

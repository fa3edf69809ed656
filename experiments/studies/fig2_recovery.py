"""How the loss recovers from the drop: DroPE against RoPE and NoPE through the training (paper: figure 2).

The paper's DroPE is dropped at step 14,000 of 16,000, is level with RoPE at the end, and below NoPE. Beside it stands
what it lacks: RoPE that branches off at the same step, with the same new schedule (`control`). Which loss is in
figure 2 the paper does not say; here both are recorded, that of training and, `budgets` times a run, held-out loss.

`python -m experiments.study --config=experiments/studies/fig2_recovery.py:SIZE --workdir=DIR --seeds=0,1,2`; the
report's loss and recovery curves are the figure, its table has the ends. All arms see as many tokens.

| size  |  parameters |     T | runs | rows |    tokens | FLOPs (PaLM) |    minutes (on) |
| :---- | ----------: | ----: | ---: | ---: | --------: | -----------: | --------------: |
| mini  |     935,040 |   128 |    5 |    4 |      3.3M |      2.13e13 | 2 (2 CPU cores) |
| small |  15,735,168 |   256 |    5 |    4 |    162.5M |      1.69e16 |    5 (one H200) |
| paper | 494,005,120 | 1,024 |    5 |    4 | 52,428.8M |      1.69e20 |                 |

Tokens and FLOPs (PaLM) are of all runs of a seed. Numbers to expect: docs/results/fig2_recovery.md.
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from drope_jax.transitions import Drop
from experiments.studies import sizes
from experiments.studies.shapes import Branch, Shape, control, getter, scratch, tail


@dataclasses.dataclass(unsafe_hash=True, kw_only=True)
class Recovery(Shape):
  """Everything that can be set, as `--config.NAME=VALUE`."""

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

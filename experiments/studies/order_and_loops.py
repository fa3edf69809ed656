"""What a model without positions may lose: order, copying from afar, and answers that do not repeat themselves.

Paper: none of its tables. Others saw a dropped model prefer the first of several assignments to the latest, copy less
the farther back the original is, and loop more often in long answers. Measured here: which assignment wins (`order`),
copying by distance (`induction`, `copy`), and the share of long greedy answers that end in repetition (`loops`), for
the control (RoPE continued), the full drop, the partial drops, which are ours, and NoPE from scratch. `small` has one
partial drop, from half a turn on.

`python -m experiments.study --config=experiments/studies/order_and_loops.py:SIZE --workdir=DIR --seeds=0,1,2`.

| size  |  parameters |     T | runs | rows |    tokens | FLOPs (PaLM) |    minutes (on) |
| :---- | ----------: | ----: | ---: | ---: | --------: | -----------: | --------------: |
| mini  |     935,040 |   128 |    6 |    7 |      2.8M |      1.80e13 | 3 (2 CPU cores) |
| small |  15,735,168 |   256 |    5 |    6 |    250.1M |      2.60e16 |    5 (one H200) |
| paper | 494,005,120 | 1,024 |    6 |    7 | 39,845.9M |      1.29e20 |                 |

Tokens and FLOPs (PaLM) are totals over the runs of a seed. Numbers to expect: docs/results/order_and_loops.md.
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from drope_jax.transitions import Drop
from experiments.studies import sizes
from experiments.studies.branching import DROPPED, Branch, BranchingStudy, control, getter, scratch, tail
from experiments.studies.partial_drop import partial


@dataclasses.dataclass(unsafe_hash=True, kw_only=True)
class OrderAndLoops(BranchingStudy):
  """The settings, as `--config.NAME=VALUE`."""

  title: ClassVar[str] = "Order, copying by distance, and endless repetition"

  tasks: tuple[str, ...] = ("order", "induction", "copy", "loops")
  turns: tuple[float, ...] = (0.5, 1.0)  # of one partial drop each

  def branches(self) -> Sequence[Branch]:
    return [
      control(("rope", "yarn")),
      tail("drop", "DroPE", Drop(), DROPPED),
      *(partial(turns, ("rope",)) for turns in self.turns),
      scratch("nope", "NoPE from scratch", None, ("nope",)),
    ]


SIZES = {
  "mini": sizes.of(OrderAndLoops, sizes.mini, extensions=(1, 2, 4)),
  "small": sizes.of(OrderAndLoops, sizes.small, extensions=(1, 2, 4), samples=200, turns=(0.5,)),
  "paper": sizes.of(OrderAndLoops, sizes.paper, extensions=(1, 2, 4)),
}
get_config = getter(SIZES)

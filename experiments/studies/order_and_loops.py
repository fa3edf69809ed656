"""What a model without positions may lose: order, copying from afar, and answers that do not repeat themselves.

Paper: none of its tables. Others saw a dropped model prefer the first of several assignments to the latest, copy less
the farther back the original is, and loop more often in long answers. Measured here: which assignment wins (`order`),
copying by distance (`induction`, `copy`), and the share of long greedy answers that end in repetition (`loops`), for
the control (RoPE continued), the full drop, the partial drop, which is ours, and NoPE from scratch.

`python -m experiments.study --config=experiments/studies/order_and_loops.py:SIZE --workdir=DIR --seeds=0,1,2`.

| size  |  parameters |     T | runs | rows |    tokens | FLOPs (PaLM) |    minutes (on) |
| :---- | ----------: | ----: | ---: | ---: | --------: | -----------: | --------------: |
| mini  |     935,040 |   128 |    5 |    6 |      2.6M |      1.64e13 | 3 (2 CPU cores) |
| small |  15,735,168 |   256 |    5 |    6 |    250.1M |      2.60e16 |    8 (one H200) |
| paper | 494,005,120 | 1,024 |    5 |    6 | 37,748.7M |      1.22e20 |                 |

Tokens and FLOPs (PaLM) are totals over the runs of a seed. Numbers to expect: docs/results/order_and_loops.md.
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from drope_jax.transitions import Drop, PartialDrop
from experiments.studies import sizes
from experiments.studies.branching import DROPPED, Branch, BranchingStudy, control, getter, scratch, tail


@dataclasses.dataclass(unsafe_hash=True, kw_only=True)
class OrderAndLoops(BranchingStudy):
  """The settings, as `--config.NAME=VALUE`."""

  title: ClassVar[str] = "Order, copying by distance, and endless repetition"

  tasks: tuple[str, ...] = ("order", "induction", "copy", "loops")

  def branches(self) -> Sequence[Branch]:
    return [
      control(("rope", "yarn")),
      tail("drop", "DroPE", Drop(), DROPPED),
      tail("turns_1", "kept from 1 turn on", PartialDrop(turns=1.0), ("rope",)),
      scratch("nope", "NoPE from scratch", None, ("nope",)),
    ]


SIZES = {
  "mini": sizes.of(OrderAndLoops, sizes.mini, extensions=(1, 2, 4)),
  "small": sizes.of(OrderAndLoops, sizes.small, extensions=(1, 2, 4), samples=200),
  "paper": sizes.of(OrderAndLoops, sizes.paper, extensions=(1, 2, 4)),
}
get_config = getter(SIZES)

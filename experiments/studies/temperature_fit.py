"""The temperature of attention beyond the context, on and off (paper: appendix C.2, without a table).

The paper fits beta = 1 + c ln s on held-out text: c is 0.412 for its models from scratch and 0.103 for SmolLM. It shows
no result without it, and does not say whether its baselines had one. Measured here: DroPE with beta 1, with the fitted
c, and with both of the paper's; NoPE from scratch with and without it; and the control, RoPE continued, as it is and
with YaRN, each also with the paper's c, to tell a gain of the dropped model from one that every model would have.

`python -m experiments.study --config=experiments/studies/temperature_fit.py:SIZE --workdir=DIR --seeds=0,1,2`; the
report has the grid of the fit, with the loss at each beta and length.

| size  |  parameters |     T | runs | rows |    tokens | FLOPs (PaLM) |    minutes (on) |
| :---- | ----------: | ----: | ---: | ---: | --------: | -----------: | --------------: |
| mini  |     935,040 |   128 |    4 |   12 |      2.3M |      1.47e13 | 3 (2 CPU cores) |
| small |  15,735,168 |   256 |    4 |   12 |    225.1M |      2.34e16 |    5 (one H200) |
| paper | 494,005,120 | 1,024 |    4 |   12 | 35,651.6M |      1.15e20 |                 |

Tokens and FLOPs (PaLM) are totals over the runs of a seed. Numbers to expect: docs/results/temperature_fit.md. With
15.7M parameters, five seeds, a fitted beta cut the loss at 8 times the context from 5.13 to 3.79
(docs/results/partial_drop_small.md).
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from drope_jax.drope import FROM_SCRATCH_COEFFICIENT, SMOLLM_COEFFICIENT
from drope_jax.transitions import Drop
from experiments.studies import sizes
from experiments.studies.branching import Branch, BranchingStudy, control, getter, scratch, tail

PAPERS = (SMOLLM_COEFFICIENT, FROM_SCRATCH_COEFFICIENT)


@dataclasses.dataclass(unsafe_hash=True, kw_only=True)
class Temperature(BranchingStudy):
  """The settings, as `--config.NAME=VALUE`."""

  title: ClassVar[str] = "The temperature of attention beyond the context (paper: appendix C.2)"

  def branches(self) -> Sequence[Branch]:
    heated = tuple(f"{method}+{c:g}" for method in ("rope", "yarn") for c in PAPERS)
    return [
      control(("rope", "yarn", *heated)),
      tail("drop", "DroPE", Drop(), ("nope", "drope", *(f"drope:{c:g}" for c in PAPERS))),
      scratch("nope", "NoPE from scratch", None, ("nope", "drope")),
    ]


SIZES = {
  "mini": sizes.of(Temperature, sizes.mini, extensions=(1, 2, 4, 8)),
  "small": sizes.of(Temperature, sizes.small, extensions=(1, 4, 8), needles_per_depth=100),
  "paper": sizes.of(Temperature, sizes.paper, extensions=(1, 2, 4, 8)),
}
get_config = getter(SIZES)

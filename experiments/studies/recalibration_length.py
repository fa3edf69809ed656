"""A learnt log-n scale on the attention logits, beside the paper's fitted temperature: aimed at length, not at cost.

Paper: after the drop it fits one number c for the whole model, on held-out texts of the lengths that are then measured
(appendix C.2). Here each head learns s in 1 + s ln n, where n is the number of keys that a query sees, during the
recalibration at the original context (drope_jax/additions.py). No longer text is read. The control, RoPE continued, and
the partial drop are also trained with this scale, in runs of their own.

`python -m experiments.study --config=experiments/studies/recalibration_length.py:SIZE --workdir=DIR
--seeds=0,1,2,3,4`; with the `--runs=DIR` of recalibration.py, trunk, control and full drop are trained only once. All
tails see the same tokens in the same order.

| size  |                 parameters |     T | runs | rows |    tokens | FLOPs (PaLM) |     minutes (on) |
| :---- | -------------------------: | ----: | ---: | ---: | --------: | -----------: | ---------------: |
| mini  |         935,040 to 935,056 |   128 |    7 |   11 |      2.3M |      1.47e13 | 11 (2 CPU cores) |
| small |   15,735,168 to 15,735,216 |   256 |    7 |   11 |    150.1M |      1.56e16 |     5 (one H200) |
| paper | 494,005,120 to 494,005,456 | 1,024 |    7 |   11 | 27,263.0M |      8.80e19 |                  |

Tokens and FLOPs (PaLM) are totals over the runs of a seed. Numbers to expect: docs/results/recalibration_length.md.
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from drope_jax.transitions import Drop, Keep, PartialDrop, Transition
from experiments.studies import sizes
from experiments.studies.branching import Branch, BranchingStudy, control, getter, tail
from experiments.studies.partial_drop import partial


@dataclasses.dataclass(unsafe_hash=True, kw_only=True)
class LengthRecalibration(BranchingStudy):
  """The settings, as `--config.NAME=VALUE`."""

  title: ClassVar[str] = "A log-n scale learnt in recalibration, and the fitted temperature"

  turns: tuple[float, ...] = (1.0,)  # of the partial drops

  def branches(self) -> Sequence[Branch]:
    return [
      control(("rope", "yarn")),
      tail("drop", "dropped", Drop(), ("nope", "drope")),
      *map(partial, self.turns),
      _scaled("control_logn", "RoPE, continued, log-n scale", Keep(), ("rope", "yarn")),
      _scaled("drop_logn", "dropped, log-n scale", Drop(), ("nope", "drope")),
      *(
        _scaled(f"turns_{turns:g}_logn", f"{partial(turns).label}, log-n scale", PartialDrop(turns=turns), ("rope",))
        for turns in self.turns
      ),
    ]


def _scaled(run: str, label: str, how: Transition, methods: Sequence[str]) -> Branch:
  return tail(run, label, how, methods, init={"logn_scale": True})


SIZES = {
  "mini": sizes.of(LengthRecalibration, sizes.mini, needles_per_depth=100, extensions=(1, 2, 4, 8, 16)),
  "small": sizes.of(LengthRecalibration, sizes.small, needles_per_depth=100, tail_steps=191),
  "paper": sizes.of(LengthRecalibration, sizes.paper),
}
get_config = getter(SIZES)

"""The controls that the paper lacks: RoPE given every chance that the dropped model has (its reviewers asked for them).

Paper: the baselines of tables 1 to 3 and 10, none of which was trained further. Here RoPE is trained on from the same
trunk for the same tokens: at several rates (`rates` times the tail's), with Adam's moments kept, and rescaled by YaRN
or NTK; and for as many FLOPs as the costliest arm, the drop with a teacher, whose forward pass adds a third. The
dropped model gets the same rates, so that neither is favoured. `small` tries twice the rate alone, and its tails have
191 steps instead of 382.

`python -m experiments.study --config=experiments/studies/controls.py:SIZE --workdir=DIR --seeds=0,1,2,3,4`, and then
`python -m experiments.seeds DIR/seed-* --control=LABEL` for differences from another of the controls.

| size  |  parameters |     T | runs | rows |    tokens | FLOPs (PaLM) |    minutes (on) |
| :---- | ----------: | ----: | ---: | ---: | --------: | -----------: | --------------: |
| mini  |     935,040 |   128 |   12 |   14 |      3.7M |      2.38e13 | 5 (2 CPU cores) |
| small |  15,735,168 |   256 |   10 |   12 |    191.0M |      2.02e16 |    6 (one H200) |
| paper | 494,005,120 | 1,024 |   12 |   14 | 38,307.6M |      1.25e20 |                 |

Tokens and FLOPs (PaLM) are totals over the runs of a seed. Numbers to expect: docs/results/controls.md.
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from drope_jax.objective import Distill
from drope_jax.scalings import NTK, YaRN
from drope_jax.transitions import Drop, Keep, Replace
from experiments.studies import sizes
from experiments.studies.branching import DROPPED, Branch, BranchingStudy, control, getter, tail
from experiments.studies.partial_drop import rope_of

TEACHER_UNTIL = 0.8  # share of the steps


@dataclasses.dataclass(unsafe_hash=True, kw_only=True)
class Controls(BranchingStudy):
  """The settings, as `--config.NAME=VALUE`."""

  title: ClassVar[str] = "Controls for the drop: RoPE continued at other rates, budgets and scalings"

  rates: tuple[float, ...] = (0.3, 2.0)  # learning rates besides the tail's, as multiples of it

  def branches(self) -> Sequence[Branch]:
    longest = float(max(self.extensions))
    rope, scaled = rope_of(self.model), {"yarn": YaRN(longest, self.context), "ntk": NTK(longest)}
    by_rate = [
      tail(f"{name}_rate_{rate:g}", f"{label}, rate × {rate:g}", how, (method,), optim={"peak_lr": self.tail_lr * rate})
      for rate in self.rates
      for name, label, how, method in (
        ("control", "RoPE, continued", Keep(), "rope"),
        ("drop", "DroPE", Drop(), "nope"),
      )
    ]
    rescaled = [
      tail(f"{name}_continued", f"RoPE + {type(how).__name__}, continued", Replace(rope.rescaled(how)), ("rope",))
      for name, how in scaled.items()
    ]
    return [
      control(),
      tail("drop", "DroPE", Drop(), DROPPED),
      *by_rate,
      tail("control_moments", "RoPE, continued, moments kept", Keep(), ("rope",), init={"keep_optimizer": True}),
      *rescaled,
      tail("drop_taught", "DroPE, distilled", Drop(), ("nope",), settings={"objective": Distill(until=TEACHER_UNTIL)}),
      control_flops(self.tail_steps),
    ]


def taught_steps(steps: int) -> int:
  """As many steps without a teacher as take the FLOPs of `steps` with one, whose forward pass adds a third."""
  return round(steps * (1 + TEACHER_UNTIL / 3))


def control_flops(steps: int) -> Branch:
  """The control of `steps` with a teacher at equal FLOPs."""
  return tail("control_flops", "RoPE, continued for a teacher's FLOPs", Keep(), ("rope",), steps=taught_steps(steps))


SIZES = {
  "mini": sizes.of(Controls, sizes.mini),
  "small": sizes.of(Controls, sizes.small, rates=(2.0,), needles_per_depth=40, tail_steps=191),
  "paper": sizes.of(Controls, sizes.paper),
}
get_config = getter(SIZES)

"""Cheap drops that keep some local order: partial drops, windowed rotations, token shift. Hybrids, and not DroPE.

Paper: it calls p-RoPE and RNoPE-SWA complementary and tests neither. With `--runs=DIR` this study shares trunk, control
and full drop with recalibration.py. Tried here: keeping the pairs that make half a turn, one turn or two within the
context, one turn also with a teacher, and for as many FLOPs without one; keeping RoPE in three of four layers, with
windows of an eighth or a quarter of the context; and adding to each key a learnt share of the key before it
(drope_jax/additions.py), after a full drop, after a partial drop and, as the control, while RoPE is continued. `small`
leaves out half a turn, and its tails have 150 steps instead of 382.

`python -m experiments.study --config=experiments/studies/recalibration_hybrid.py:SIZE --workdir=DIR
--seeds=0,1,2,3,4`. All tails see the same tokens in the same order.

| size  |                 parameters |     T | runs | rows |    tokens | FLOPs (PaLM) |    minutes (on) |
| :---- | -------------------------: | ----: | ---: | ---: | --------: | -----------: | --------------: |
| mini  |         935,040 to 935,044 |   128 |   14 |   17 |      4.2M |      2.75e13 | 8 (2 CPU cores) |
| small |   15,735,168 to 15,735,176 |   256 |   13 |   15 |    198.2M |      2.08e16 |    7 (one H200) |
| paper | 494,005,120 to 494,005,144 | 1,024 |   14 |   17 | 43,060.8M |      1.41e20 |                 |

Tokens and FLOPs (PaLM) are totals over the runs of a seed. Numbers to expect: docs/results/recalibration_hybrid.md.
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from drope_jax.objective import Distill
from drope_jax.transitions import Drop, Keep, KeepWindows, PartialDrop, Transition
from experiments.studies import sizes
from experiments.studies.branching import Branch, BranchingStudy, control, getter, tail
from experiments.studies.controls import TEACHER_UNTIL, control_flops, taught_steps
from experiments.studies.partial_drop import partial


@dataclasses.dataclass(unsafe_hash=True, kw_only=True)
class HybridRecalibration(BranchingStudy):
  """The settings, as `--config.NAME=VALUE`."""

  title: ClassVar[str] = "Drops that keep some rotations or some layers"

  turns: tuple[float, ...] = (0.5, 1.0, 2.0)
  windows: tuple[int, ...] = (8, 4)  # each is the context divided by this

  def branches(self) -> Sequence[Branch]:
    windowed = [
      tail(f"window_{share}", f"RoPE in windows of 1/{share}", KeepWindows(self.context // share), ("pattern",))
      for share in self.windows
    ]
    one_turn, taught = PartialDrop(turns=1.0), {"objective": Distill(until=TEACHER_UNTIL)}
    longer = partial(1.0, ("rope",), steps=taught_steps(self.tail_steps))
    return [
      control(("rope", "yarn")),
      tail("drop", "dropped", Drop(), ("nope",)),
      *map(partial, self.turns),
      tail("turns_1_taught", "kept from 1 turn on, distilled", one_turn, ("rope",), settings=taught),
      dataclasses.replace(longer, run="turns_1_flops", label=f"{longer.label}, for a teacher's FLOPs"),
      control_flops(self.tail_steps),
      *windowed,
      _shifted("drop_shift", "dropped, token shift", Drop(), "nope"),
      _shifted("turns_1_shift", "kept from 1 turn on, token shift", one_turn, "rope"),
      _shifted("control_shift", "RoPE, continued, token shift", Keep(), "rope"),
    ]


def _shifted(run: str, label: str, how: Transition, method: str) -> Branch:
  return tail(run, label, how, (method,), init={"token_shift": True})


SIZES = {
  "mini": sizes.of(HybridRecalibration, sizes.mini, needles_per_depth=100),
  "small": sizes.of(HybridRecalibration, sizes.small, turns=(1.0, 2.0), needles_per_depth=100, tail_steps=150),
  "paper": sizes.of(HybridRecalibration, sizes.paper),
}
get_config = getter(SIZES)

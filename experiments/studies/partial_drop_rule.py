"""Does the number of turns matter, or the number of pairs? The partial drop's rule at other contexts and RoPE bases.

`PartialDrop(turns=1)` keeps 6 of 16 pairs at a context of 128 and base 1e4. If the rule matters, and not that number,
then it must also hold where it keeps another number: at base 1e5 it keeps 5, at context 256 it keeps 7, and with both
it keeps 6 again. Half and twice the turns are run too, and, where none of these keeps 6 pairs, the 6 fastest
(`fastest_6`). The hypothesis was that at every context and base the rule's cost in context is the smallest that keeps
the needles at 8 times; at mini_256 it is refuted (docs/results/partial_drop_rule_256.md). `small` and `small_512` have
one base each, one turn alone, and the 13 fastest pairs.

Paper: none of its tables; it drops all rotations. The control for each base is RoPE continued.

`python -m experiments.study --config=experiments/studies/partial_drop_rule.py:SIZE --workdir=DIR --seeds=0,1,2`; one
trunk per base, and a size per context.

| size      |  parameters |     T | runs | rows |    tokens | FLOPs (PaLM) |     minutes (on) |
| :-------- | ----------: | ----: | ---: | ---: | --------: | -----------: | ---------------: |
| mini      |     935,040 |   128 |    6 |   10 |      2.0M |      1.31e13 |  3 (2 CPU cores) |
| mini_256  |     935,040 |   256 |   12 |   20 |      4.1M |      2.94e13 | 10 (2 CPU cores) |
| small     |  15,735,168 |   256 |    5 |    7 |    175.1M |      1.82e16 |     4 (one H200) |
| small_512 |  15,735,168 |   512 |    5 |    7 |    175.1M |      1.98e16 |     4 (one H200) |
| paper     | 494,005,120 | 1,024 |   14 |   22 | 54,526.0M |      1.76e20 |                  |

Tokens and FLOPs (PaLM) are totals over the runs of a seed. Numbers to expect: docs/results/partial_drop_rule.md.
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from drope_jax.transitions import Drop, Keep, PartialDrop, Transition
from experiments.studies import sizes
from experiments.studies.branching import KEPT, PARTIAL, Branch, BranchingStudy, getter, scratch, tail
from experiments.studies.partial_drop import partial, rope_of


@dataclasses.dataclass(unsafe_hash=True, kw_only=True)
class Rule(BranchingStudy):
  """The settings, as `--config.NAME=VALUE`."""

  title: ClassVar[str] = "The partial drop at other contexts and RoPE bases"

  thetas: tuple[float, ...] = (1e4, 1e5)
  turns: tuple[float, ...] = (0.5, 1.0, 2.0)
  fastest: int = 6  # the pairs that one turn keeps with head_dim 32, context 128 and base 1e4

  def branches(self) -> Sequence[Branch]:
    return [branch for theta in self.thetas for branch in self._of(theta)]

  def _of(self, theta: float) -> list[Branch]:
    name = f"theta_{theta:.0e}".replace("e+0", "e")
    base, said = f"{name}_trunk", f"base {theta:.0e}".replace("e+0", "e")
    rope = dataclasses.replace(rope_of(self.model), theta=theta)
    ways: dict[str, tuple[Transition, str, Sequence[str]]] = {
      "control": (Keep(), "RoPE, continued", KEPT),
      "drop": (Drop(), "dropped", ("nope",)),
      **{f"turns_{turns:g}": (PartialDrop(turns=turns), partial(turns).label, PARTIAL) for turns in self.turns},
    }
    counted = PartialDrop(fastest=self.fastest)
    trunk = dataclasses.replace(self.model, positions=rope)
    by_turns = [PartialDrop(turns=turns).apply(trunk, self.context) for turns in self.turns]
    if counted.apply(trunk, self.context) not in by_turns:
      ways[f"fastest_{self.fastest}"] = (counted, f"{self.fastest} fastest pairs", ("rope",))
    tails = [
      tail(f"{name}_{run}", f"{label} ({said})", how, methods, start=base)
      for run, (how, label, methods) in ways.items()
    ]
    return [scratch(base, f"trunk ({said})", rope, is_trunk=True), *tails]


SIZES = {
  "mini": sizes.of(Rule, sizes.mini, thetas=(1e5,), needles_per_depth=40),
  "mini_256": sizes.of(Rule, sizes.with_context(sizes.mini, 256, 1e4), needles_per_depth=40),
  "small": sizes.of(Rule, sizes.small, fastest=13, turns=(1.0,), thetas=(1e5,)),
  "small_512": sizes.of(Rule, sizes.with_context(sizes.small, 512, 1e4), fastest=13, turns=(1.0,), thetas=(1e4,)),
  "paper": sizes.of(Rule, sizes.paper, fastest=12, thetas=(1e4, 1e5)),
}
get_config = getter(SIZES)

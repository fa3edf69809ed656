"""Ways to make the full drop cheap, compared with the plain drop and RoPE continued: pure DroPE, no rotation is kept.

Paper: its recalibration (section 5, appendix C.1) is the row `drop`; it tries no other, though its reviewers asked for
a gradual removal. Tried here: (1) the learning rate, Adam's moments kept, Muon; (2) fades, the slow pairs first, all at
once, or by a theta that grows to infinity; (3) distillation from the trunk, on logits, on the outputs of attention, or
on these for a fifth of the steps and then on logits; (4) dropping the layers one after the other, the late ones first,
or training queries and keys alone for a tenth of the steps; and a fade with a teacher. Two runs without a teacher take
as many FLOPs as one with it. Models that keep some rotations, windows or a token shift are hybrids, in
recalibration_hybrid.py; a learnt log-n scale, which aims at length, is in recalibration_length.py. `small` leaves out
the lower rates (with Adam's moments too) and the fade over a quarter of the steps; its tails have 100 steps, not 382.

`python -m experiments.study --config=experiments/studies/recalibration.py:SIZE --workdir=DIR --seeds=0,1,2,3,4`. All
tails see the same tokens in the same order; the report has the recovery curve of each.

| size  |  parameters |     T | runs | rows |    tokens | FLOPs (PaLM) |    minutes (on) |
| :---- | ----------: | ----: | ---: | ---: | --------: | -----------: | --------------: |
| mini  |     935,040 |   128 |   22 |   21 |      6.3M |      4.16e13 | 7 (2 CPU cores) |
| small |  15,735,168 |   256 |   17 |   16 |    183.4M |      1.96e16 |    7 (one H200) |
| paper | 494,005,120 | 1,024 |   22 |   21 | 59,838.0M |      1.99e20 |                 |

Tokens and FLOPs (PaLM, including the teacher's forward passes) are totals over the runs of a seed. Numbers to expect:
docs/results/recalibration.md.
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from drope_jax.objective import Distill, InTurn
from drope_jax.optimizers import Muon, Staged
from drope_jax.transitions import Drop, Fade, Transition
from experiments.studies import sizes
from experiments.studies.branching import Branch, BranchingStudy, control, getter, tail
from experiments.studies.controls import TEACHER_UNTIL, control_flops, taught_steps


@dataclasses.dataclass(unsafe_hash=True, kw_only=True)
class PureRecalibration(BranchingStudy):
  """The settings, as `--config.NAME=VALUE`."""

  title: ClassVar[str] = "Ways to recalibrate after the full drop"

  rates: tuple[float, ...] = (0.1, 0.3, 2.0)  # learning rates besides the tail's, as multiples of it
  rates_with_moments: tuple[float, ...] = (0.1, 0.3)  # likewise, with the trunk's Adam moments kept
  fades: tuple[float, ...] = (0.25, 0.5)  # shares of the steps

  def branches(self) -> Sequence[Branch]:
    on_logits, on_attention = Distill(until=TEACHER_UNTIL), Distill(what="attention", until=0.2)
    in_turn = InTurn(first=on_attention, then=on_logits, share=on_attention.until)
    slow_first = Fade(share=0.5, order="slow_first")
    alone = Staged(first=("q", "k"), steps=max(self.tail_steps // 10, 1))
    return [
      control(("rope",)),
      _pure("drop", "dropped"),
      *(_pure(f"rate_{rate:g}", f"rate × {rate:g}", optim={"peak_lr": self.tail_lr * rate}) for rate in self.rates),
      *([] if self.checkpoint else map(self._with_moments, (1.0, *self.rates_with_moments))),
      _pure("muon", "Muon", optim={"optimizer": Muon()}),
      *(_pure(f"slow_first_{s:g}", f"faded, slow first, {s:g}", Fade(share=s, order="slow_first")) for s in self.fades),
      _pure("fade", "faded, all at once, 0.5", Fade(share=0.5)),
      _pure("fade_theta", "faded, theta to infinity, 0.5", Fade(share=0.5, order="theta")),
      _pure("late_first", "faded, late layers first, 0.5", Fade(share=0.5, order="late_first")),
      _pure("queries_keys_first", "q and k alone for a tenth", optim={"optimizer": alone}),
      _pure("taught", "distilled (logits)", settings={"objective": on_logits}),
      _pure("taught_attention", "distilled (attention)", settings={"objective": on_attention}),
      _pure("taught_in_turn", "distilled (attention, then logits)", settings={"objective": in_turn}),
      _pure("fade_taught", "faded, slow first, and distilled", slow_first, settings={"objective": on_logits}),
      _pure("drop_flops", "dropped, for a teacher's FLOPs", steps=taught_steps(self.tail_steps)),
      control_flops(self.tail_steps),
    ]

  def _with_moments(self, rate: float) -> Branch:
    name, label = ("moments", "moments kept") if rate == 1 else (f"moments_{rate:g}", f"moments kept, rate × {rate:g}")
    return _pure(name, label, init={"keep_optimizer": True}, optim={"peak_lr": self.tail_lr * rate})


def _pure(run: str, label: str, how: Transition | None = None, **more: object) -> Branch:
  return tail(run, label, how or Drop(), ("nope",), **more)


_SMALL = {"rates": (2.0,), "rates_with_moments": (), "fades": (0.5,), "needles_per_depth": 40, "tail_steps": 100}
SIZES = {
  "mini": sizes.of(PureRecalibration, sizes.mini),
  "small": sizes.of(PureRecalibration, sizes.small, **_SMALL),
  "paper": sizes.of(PureRecalibration, sizes.paper),
}
get_config = getter(SIZES)

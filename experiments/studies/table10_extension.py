"""Needles at 2, 4 and 8 times the context, beside factors that were searched for (paper: table 10).

The paper, SmolLM-360M: NTK 29.84, 14.37, 7.19; YaRN 48.25, 25.62, 12.18; LongRoPE2 44.20, 26.20, 16.45; DroPE 74.92,
55.00, 52.20 %. Beside its rows stands what they lack: RoPE trained on for the same tokens (`control`), with the same
rescalings.

`python -m experiments.study --config=experiments/studies/table10_extension.py:SIZE --workdir=DIR --seeds=0,1,2`.
LongRoPE2's row wants its factors, one per pair: `python -m experiments.factor_search` finds them on the control, and
`--config.longrope='(1.0, 1.3, ...)'` adds the row. The original also fine-tunes with them; the paper does not say how
it made that row. `mini` and `small` have a trunk of their own, and facts by topic as needles.

| size  |  parameters |     T | runs | rows |     tokens | FLOPs (PaLM) |    minutes (on) |
| :---- | ----------: | ----: | ---: | ---: | ---------: | -----------: | --------------: |
| mini  |     935,040 |   128 |    3 |    8 |       1.3M |      8.18e12 | 3 (2 CPU cores) |
| small |  15,735,168 |   256 |    3 |    8 |     125.0M |      1.30e16 |    5 (one H200) |
| paper | 361,862,080 | 2,048 |    2 |    8 | 251,658.2M |      7.36e20 |                 |

Tokens and FLOPs (PaLM) are of all runs of a seed. Numbers to expect: not yet run.
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from drope_jax.scalings import LongRoPE
from drope_jax.transitions import Replace
from experiments.studies import sizes
from experiments.studies.partial_drop import rope_of
from experiments.studies.shapes import Branch, getter, tail
from experiments.studies.table2_table3_longbench import LongTasks


@dataclasses.dataclass(unsafe_hash=True, kw_only=True)
class Extension(LongTasks):
  """Everything that can be set, as `--config.NAME=VALUE`."""

  title: ClassVar[str] = "Needles at 2, 4 and 8 times the context (paper: table 10)"

  methods: tuple[str, ...] = ("rope", "ntk", "yarn")
  longrope: tuple[float, ...] = ()  # factors of the pairs, the fastest first, for all lengths; none: no such row
  extensions: tuple[float, ...] = (2, 4, 8)

  def branches(self) -> Sequence[Branch]:
    branches = list(super().branches())
    if self.longrope:
      longest = float(max(self.extensions))
      searched = Replace(rope_of(self.model).rescaled(LongRoPE(self.longrope, self.longrope, self.context, longest)))
      branches.append(tail("longrope", "control + searched factors", searched, ("rope",), start="control", steps=0))
    return branches


SIZES = {
  "mini": sizes.of(Extension, sizes.mini, needles_per_depth=100),
  "small": sizes.of(Extension, sizes.small),
  "paper": sizes.of_recipe(Extension, "smollm_360m_120b", tasks=("niah_single_2",), qk_norm=True),
}
get_config = getter(SIZES)

"""Is YaRN no more than a crop? Loss and needles from 1 to 2 times the context (paper: figure 5).

In the paper both YaRN and a model that is shown only the last tokens keep the perplexity of RoPE beyond its context,
and neither finds needles further back. Two rows are added to the paper's three: the dropped model, and YaRN trained on
for the same tokens (`yarn_continued`), to rule out that YaRN acts like a crop for lack of training.

`python -m experiments.study --config=experiments/studies/fig5_yarn_is_a_crop.py:SIZE --workdir=DIR --seeds=0,1,2`; the
report's table and its plot by length are the figure.

| size  |  parameters |     T | runs | rows |    tokens | FLOPs (PaLM) |    minutes (on) |
| :---- | ----------: | ----: | ---: | ---: | --------: | -----------: | --------------: |
| mini  |     935,040 |   128 |    4 |    6 |      1.5M |      9.81e12 | 2 (2 CPU cores) |
| small |  15,735,168 |   256 |    4 |    6 |    150.1M |      1.56e16 |    3 (one H200) |
| paper | 494,005,120 | 1,024 |    4 |    6 | 20,971.5M |      6.77e19 |                 |

Tokens and FLOPs (PaLM) are totals over the runs of a seed. Numbers to expect: docs/results/fig5_yarn_is_a_crop.md.
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from drope_jax.scalings import YaRN
from drope_jax.transitions import Drop, Replace
from experiments.studies import sizes
from experiments.studies.branching import DROPPED, Branch, BranchingStudy, control, getter, tail
from experiments.studies.partial_drop import rope_of


@dataclasses.dataclass(unsafe_hash=True, kw_only=True)
class Crop(BranchingStudy):
  """The settings, as `--config.NAME=VALUE`."""

  title: ClassVar[str] = "YaRN against cropping (paper: figure 5)"

  extensions: tuple[float, ...] = (1, 1.25, 1.5, 1.75, 2)

  def branches(self) -> Sequence[Branch]:
    yarn = YaRN(float(max(self.extensions)), self.context)
    return [
      control(("rope", "yarn", "crop")),
      tail("yarn_continued", "RoPE + YaRN, continued", Replace(rope_of(self.model).rescaled(yarn)), ("rope",)),
      tail("drop", "DroPE", Drop(), DROPPED),
    ]


SIZES = {
  "mini": sizes.of(Crop, sizes.mini),
  "small": sizes.of(Crop, sizes.small),
  "paper": sizes.of(Crop, sizes.paper, tasks=("perplexity", "niah_single_2")),
}
get_config = getter(SIZES)

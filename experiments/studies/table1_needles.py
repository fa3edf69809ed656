"""Needles beyond the training context, with every method (paper: table 1 and figure 1).

The paper finds, at twice the context, 28.0, 41.6 and 23.3 % of multi-query, multi-key and multi-value needles with
DroPE, and fewer with RoPE (0), PI (0), NTK (21.1, 19.4, 16.5), YaRN (17.8, 0.5, 14.6), ALiBi, NoPE and RNoPE-SWA. Added
here is the control that it lacks: RoPE that branches off where DroPE does, trained on for the same tokens (`control`).

`python -m experiments.study --config=experiments/studies/table1_needles.py:SIZE --workdir=DIR --seeds=0,1,2`. Runs:
`rope`, `nope`, `alibi` and `rnope_swa` from scratch for all of the tokens; `trunk`, and from it `control` and `drop`.
`mini` and `small` find facts by topic (task `needles`): four facts are hidden and one is asked for, as in multi-key.
Only `paper` uses RULER's three variants: they ask for seven-digit numbers, with instructions that are longer than the
context of `mini`, and models of these sizes do not answer them (docs/results/quickstart.md).

| size  |  parameters |     T | runs | rows |    tokens | FLOPs (PaLM) |    minutes (on) |
| :---- | ----------: | ----: | ---: | ---: | --------: | -----------: | --------------: |
| mini  |     935,040 |   128 |    7 |   13 |      5.4M |      3.44e13 | 5 (2 CPU cores) |
| small |  15,735,168 |   256 |    7 |   13 |    174.8M |      1.81e16 |    5 (one H200) |
| paper | 494,005,120 | 1,024 |    7 |   13 | 85,983.2M |      2.78e20 |                 |

Tokens and FLOPs (PaLM) are totals over the runs of a seed. RNoPE-SWA has windows of a quarter of the context; the paper
does not state its own. Numbers to expect: docs/results/table1_needles.md (the quickstart has most of the rows of
`mini`).
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from drope_jax.positions import ALiBi, rnope_swa
from drope_jax.transitions import Drop
from experiments.studies import sizes
from experiments.studies.branching import DROPPED, Branch, BranchingStudy, control, getter, scratch, tail

RULER = ("niah_multiquery", "niah_multikey_1", "niah_multivalue")


@dataclasses.dataclass(unsafe_hash=True, kw_only=True)
class Needles(BranchingStudy):
  """The settings, as `--config.NAME=VALUE`."""

  title: ClassVar[str] = "Needles beyond the training context (paper: table 1)"

  def branches(self) -> Sequence[Branch]:
    return [
      scratch("rope", "RoPE", self.model.positions, ("rope", "pi", "ntk", "yarn", "crop")),
      control(("rope", "yarn")),
      tail("drop", "DroPE", Drop(), DROPPED),
      scratch("nope", "NoPE", None, DROPPED),
      scratch("alibi", "ALiBi", ALiBi(), ("alibi",)),
      scratch("rnope_swa", "RNoPE-SWA", rnope_swa(window=self.context // 4), ("pattern",)),
    ]


SIZES = {
  "mini": sizes.of(Needles, sizes.mini, extensions=(1, 2, 4, 8)),
  "small": sizes.of(Needles, sizes.shorter(sizes.small, 3), extensions=(1, 2, 8), needles_per_depth=100),
  "paper": sizes.of(Needles, sizes.paper, extensions=(1, 2), tasks=("perplexity", *RULER)),
}
get_config = getter(SIZES)

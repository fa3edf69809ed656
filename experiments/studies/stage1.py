"""Other embeddings than RoPE before the drop: ALiBi, partial RoPE, RNoPE-SWA.

Paper: section 6 says that they can take RoPE's place in DroPE, and does not test it. Each kind has a trunk of its own;
one tail drops the embedding, and one keeps it as the control.

`python -m experiments.study --config=experiments/studies/stage1.py:SIZE --workdir=DIR --seeds=0,1,2`. RNoPE-SWA keeps
its windows when its rotations are dropped; partial RoPE rotates only the pairs that turn at least once in the context.
`small` has half of that size's steps, so that four trunks fit into its time.

| size  |  parameters |     T | runs | rows |    tokens | FLOPs (PaLM) |    minutes (on) |
| :---- | ----------: | ----: | ---: | ---: | --------: | -----------: | --------------: |
| mini  |     935,040 |   128 |   12 |   12 |      5.1M |      3.27e13 | 5 (2 CPU cores) |
| small |  15,735,168 |   256 |   12 |   12 |    250.1M |      2.60e16 |    7 (one H200) |
| paper | 494,005,120 | 1,024 |   12 |   12 | 75,497.5M |      2.44e20 |                 |

Tokens and FLOPs (PaLM) are totals over the runs of a seed. Numbers to expect: docs/results/stage1.md.
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from drope_jax.positions import ALiBi, Positions, rnope_swa
from drope_jax.transitions import Drop, Keep, PartialDrop
from experiments.studies import sizes
from experiments.studies.branching import DROPPED, Branch, BranchingStudy, getter, scratch, tail


@dataclasses.dataclass(unsafe_hash=True, kw_only=True)
class Stage1(BranchingStudy):
  """The settings, as `--config.NAME=VALUE`."""

  title: ClassVar[str] = "Other embeddings before the drop (paper: section 6)"

  kinds: tuple[str, ...] = ("rope", "alibi", "partial", "rnope_swa")

  def branches(self) -> Sequence[Branch]:
    return [branch for kind in self.kinds for branch in self._of(kind)]

  def _of(self, kind: str) -> list[Branch]:
    embeddings: dict[str, tuple[str, Positions, str]] = {
      "rope": ("RoPE", self.model.positions, "rope"),
      "alibi": ("ALiBi", ALiBi(), "alibi"),
      "partial": ("partial RoPE", PartialDrop(turns=1.0).apply(self.model, self.context).positions, "rope"),
      "rnope_swa": ("RNoPE-SWA", rnope_swa(window=self.context // 4), "pattern"),
    }
    label, positions, method = embeddings[kind]
    trunk = f"{kind}_trunk"
    return [
      scratch(trunk, f"{label}, trunk", positions, is_trunk=True),
      tail(f"{kind}_kept", f"{label}, continued", Keep(), (method,), start=trunk),
      tail(f"{kind}_dropped", f"{label}, dropped", Drop(), DROPPED, start=trunk),
    ]


SIZES = {
  "mini": sizes.of(Stage1, sizes.mini),
  "small": sizes.of(Stage1, sizes.shorter(sizes.small, 2), needles_per_depth=40),
  "paper": sizes.of(Stage1, sizes.paper),
}
get_config = getter(SIZES)

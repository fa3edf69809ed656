"""A real model beyond its context, without training: SmolLM2-135M at up to 16,384 tokens, twice its 8,192.

Paper: the rows of table 2 that need no training, here by perplexity and of another model (the paper has no SmolLM2).

`python -m experiments.study --config=experiments/studies/smollm2_lengths.py --workdir=runs/smollm2_lengths`, after
`python -m experiments.fetch_smollm2` (the model) and `python -m experiments.prose --out=data/prose` (the text). RoPE as
it is and rescaled by PI, NTK and YaRN, and the same weights with all rotations dropped, or only those that make fewer
than `turns` turns (which is ours and not the paper's): recalibration would start from these. Any imported model with
RoPE will do (`--config.checkpoint`), at any multiples of its context.

No token is trained on; each of the 7 rows reads 16,384 and 8,192 tokens. Parameters: 134.5M. FLOPs per token, forward
(PaLM, T 16,384): 1.401e9. Numbers to expect (docs/results/smollm2.md, loss in nats, positions 14,336 to 16,383): RoPE
6.85, PI 3.95, NTK 2.85, YaRN 2.81, dropped 6.10.
"""

import dataclasses
from pathlib import Path

from drope_jax import checkpoint
from drope_jax.transitions import Drop, PartialDrop
from experiments.plan import Arm, EvalPlan, Pretrained, Row, Study, check_at_least_one, require
from experiments.studies.partial_drop import partial


@dataclasses.dataclass(unsafe_hash=True, kw_only=True)
class Lengths:
  """The settings, as `--config.NAME=VALUE`."""

  checkpoint: str = "runs/smollm2_135m/checkpoint"
  dataset: str = "data/prose"  # with a split `heldout` of long documents
  extensions: tuple[int, ...] = (1, 2)  # multiples of the model's context
  turns: tuple[float, ...] = (1.0, 2.0)  # one partial drop each
  documents: int = 1  # read one at a time: more of them take more time, not more memory
  block: int = 2048  # positions averaged in each point of the loss by position

  def __post_init__(self) -> None:
    check_at_least_one(self, "extensions", "documents", "block")

  def reading(self, path: str) -> "Lengths":
    return dataclasses.replace(self, dataset=path)

  def study(self, workdir: Path) -> Study:
    require(self, checkpoint="experiments.fetch_smollm2", dataset="experiments.prose --out=DIR")
    context = checkpoint.open_step(self.checkpoint).context
    lengths = [extension * context for extension in self.extensions]
    dropped = {"dropped": Pretrained(self.checkpoint, Drop())}
    labels = {"dropped": "Dropped, not recalibrated"}
    for turns in self.turns:
      run = f"turns_{turns:g}"
      dropped[run] = Pretrained(self.checkpoint, PartialDrop(turns=turns))
      labels[run] = f"{partial(turns).label}, not recalibrated"
    return Study(
      title=f"A pretrained model at up to {max(self.extensions)} times its context, without training",
      seed=0,
      train_context=context,
      prepare=lambda: None,
      runs={"rope": Pretrained(self.checkpoint), **dropped},
      arms=(Arm("RoPE", ("rope",)), *(Arm(labels[run], (run,)) for run in dropped)),
      rows=(
        Row("rope", "rope", "RoPE"),
        Row("rope", "pi", "RoPE + PI"),
        Row("rope", "ntk", "RoPE + NTK"),
        Row("rope", "yarn", "RoPE + YaRN"),
        *(Row(run, "nope" if run == "dropped" else "rope", labels[run]) for run in dropped),
      ),
      lengths=lengths,
      tasks=("perplexity",),
      eval_data=EvalPlan(
        tokenizer=self.checkpoint,
        longest=max(lengths),
        dataset=self.dataset,
        num_documents=self.documents,
        block=self.block,
      ),
    )


def get_config() -> Lengths:
  return Lengths()

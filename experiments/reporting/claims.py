"""What the paper (arXiv 2512.12167) claims, what is claimed here, and the comparisons that test each."""

from typing import NamedTuple

Model = tuple[str, str]  # run and method of a row


class Comparison(NamedTuple):
  """A difference, first less second, between two rows of a study, and where the claim puts it."""

  study: str  # its page in docs/results: a study at mini, or at the size that the name ends with
  first: Model
  second: Model
  task: str
  metric: str
  extension: float  # length as a multiple of the training context
  above: float | None = None  # the claim: the difference is larger than this
  below: float | None = None  # and smaller than this
  second_extension: float | None = None  # None: both are at the same length


class Claim(NamedTuple):
  """A statement that measurements can support or refute."""

  text: str
  where: str  # in the paper
  comparisons: tuple[Comparison, ...] = ()
  tests: str = ""  # a file of tests that show it, of what is a matter of mathematics
  wants: str = ""  # what testing it would take, where nothing here does


MARGIN = 0.02  # nats, 2 % of perplexity: what "as good as" allows
SHARE = 0.05  # of needles, likewise
CONTROL, YARN, NTK, CROP = ("control", "rope"), ("control", "yarn"), ("control", "ntk"), ("control", "crop")
DROPPED, FITTED, NOPE = ("drop", "nope"), ("drop", "drope"), ("nope", "nope")
PARTIAL, HALF, TWICE = ("turns_1", "rope"), ("turns_0.5", "rope"), ("turns_2", "rope")
TAUGHT = ("turns_1_taught", "rope")
SMALL = "partial_drop_small"
BASE = "theta_1e5"  # what the runs of partial_drop_rule begin with


def less(study: str, first: Model, second: Model, extension: float, margin: float = 0.0) -> Comparison:
  """The loss of the first is lower, or higher by no more than the margin."""
  return Comparison(study, first, second, "perplexity", "loss", extension, below=margin)


def more(study: str, first: Model, second: Model, extension: float, margin: float = 0.0) -> Comparison:
  """The first finds more needles, or fewer by no more than the margin."""
  return Comparison(study, first, second, "needles", "accuracy", extension, above=-margin)


def kept(study: str, model: Model, extension: float) -> Comparison:
  """The model finds as many needles as in context, or fewer by no more than the share that counts as equal."""
  return more(study, model, model, extension, SHARE)._replace(second_extension=1)


PAPER = (
  Claim(
    "Beyond its context, DroPE finds more needles than RoPE under PI, NTK and YaRN.",
    "table 1, figure 1",
    tuple(more("table1_needles", FITTED, ("rope", how), 2) for how in ("pi", "ntk", "yarn")),
  ),
  Claim(
    "DroPE also finds more than models pretrained with NoPE, ALiBi or RNoPE-SWA.",
    "table 1, figure 1",
    tuple(more("table1_needles", FITTED, one, 2) for one in (NOPE, ("alibi", "alibi"), ("rnope_swa", "pattern"))),
  ),
  Claim(
    "DroPE stays ahead at 4× and 8×; here against YaRN on RoPE continued for as many tokens, a control that the paper "
    "lacks.",
    "table 10",
    tuple(more(study, FITTED, YARN, times) for study in ("table10_extension", "controls", SMALL) for times in (4, 8)),
  ),
  Claim(
    "DroPE finds more needles than RoPE with factors searched as LongRoPE2 does (without LongRoPE2's training).",
    "table 10",
    tuple(more("table10_extension", FITTED, ("longrope", "rope"), times) for times in (2, 4, 8)),
  ),
  Claim(
    "In context, recalibration brings the dropped model level with RoPE (within 0.02 nats of RoPE continued).",
    "figure 2, table 6",
    (
      *(less(study, DROPPED, CONTROL, 1, MARGIN) for study in ("fig2_recovery", "controls", SMALL)),
      less("recalibration_budget", ("drop_1000", "nope"), ("control_1000", "rope"), 1, MARGIN),
    ),
  ),
  Claim(
    "In context, the dropped model has a lower loss than NoPE from scratch on as many tokens (which has one schedule, "
    "the dropped model two).",
    "figure 2, table 6",
    tuple(less(study, DROPPED, NOPE, 1) for study in ("fig2_recovery", "table6_when_to_drop")),
  ),
  Claim(
    "In context, the dropped model has a lower loss than NoPE trained in the same two schedules, a control that the "
    "paper lacks.",
    "figure 2, table 6",
    (
      less("table6_when_to_drop", DROPPED, ("nope_continued", "nope"), 1),
      less("table6_when_to_drop", ("drop_half", "nope"), ("nope_half", "nope"), 1),
    ),
  ),
  Claim(
    "The later the drop, the lower the loss (here each drop begins a new schedule, so that two things differ).",
    "table 6",
    (
      less("table6_when_to_drop", DROPPED, ("drop_half", "nope"), 1),
      less("table6_when_to_drop", ("drop_half", "nope"), NOPE, 1),
    ),
  ),
  Claim(
    "A model with RoPE has a lower loss than one without after the same tokens.",
    "figure 3, observation 1",
    tuple(less(study, ("rope", "rope"), NOPE, 1) for study in ("fig3_rope_against_nope", "fig2_recovery")),
  ),
  Claim(
    "On a constant sequence NoPE has no positional bias and no gradient towards one; RoPE has both.",
    "propositions 3.2 and 3.3",
    tests="tests/test_theory.py",
  ),
  Claim(
    "Without positions, a layer's attention is the more even, and what it gives the more alike, the more alike its "
    "inputs are.",
    "lemmas B.3 to B.7",
    tests="tests/test_prefix_spread.py",
  ),
  Claim(
    "Without positions, inputs that are nearly alike stay so through the layers, and the positional bias and its "
    "gradients stay as small as their spread. (The tests take the spread of the residual, and random models for what "
    "the paper says with high probability.)",
    "theorem 3.4",
    tests="tests/test_prefix_spread.py",
  ),
  Claim(
    "Without positions, a layer turns the spread Δ of its inputs into at most A₁Δ + A₂Δ²; if Δ is at most "
    "min{1, A₁/A₂} at first, it grows by at most 2A₁ per layer.",
    "lemmas B.8 and B.9",
    wants="`tests/test_prefix_spread.py`",
  ),
  Claim(
    "The gradients of the positional bias have the paper's closed forms.",
    "appendix B, equation B.10",
    tests="tests/test_theory.py",
  ),
  Claim(
    "At initialisation the gradients towards positional heads are larger with RoPE, in every layer, and the gap grows "
    "with depth.",
    "figure 4",
    wants="`experiments/studies/fig4_bias_gradients.py:paper`",
  ),
  Claim(
    "PI, NTK and YaRN slow down the slow rotations by the extension factor; NTK and YaRN leave the fast ones.",
    "figures 6 and 11",
    tests="tests/experiments/test_figures.py",
  ),
  Claim(
    "YaRN acts like cropping: at 2× its loss is within 0.02 nats of the cropped model's.",
    "figure 5",
    (Comparison("fig5_yarn_is_a_crop", YARN, CROP, "perplexity", "loss", 2, -MARGIN, MARGIN),),
  ),
  Claim(
    "YaRN acts like cropping: at 2× it finds no more needles (within 5 points).",
    "figure 5",
    (Comparison("fig5_yarn_is_a_crop", YARN, CROP, "needles", "accuracy", 2, below=SHARE),),
  ),
  Claim(
    "YaRN leaves positional heads as they are and shifts semantic ones.",
    "figures 7 and 8, observation 2",
    wants="`experiments/studies/fig7_positional_head.py` and `fig8_semantic_head.py` on a pretrained model",
  ),
  Claim(
    "DroPE is ahead on LongBench.",
    "tables 2, 3 and 7 to 9",
    wants="LongBench and SmolLM-360M or larger: `experiments/studies/table2_table3_longbench.py:paper`; in its place "
    "there are [made-up tasks](table2_table3_longbench.md)",
  ),
  Claim(
    "Needles within the context are still found, within 5 points of RoPE continued (a stand-in for six benchmarks).",
    "table 5",
    tuple(more(study, DROPPED, CONTROL, 1, SHARE) for study in ("table5_in_context", "controls", SMALL)),
  ),
  Claim(
    "95 % of SmolLM-360M's scores are back after less than 1 % of its training tokens.",
    "section 5.1, figures 9 and 10",
    wants="SmolLM-360M and 5B tokens: `experiments/configs/recalibrate.py:smollm_360m_30b`",
  ),
  Claim(
    "At the highest of three rates, recalibration ends lower with QK-norm than without.",
    "table 11, figure 12",
    (less("table11_qk_norm_by_rate", ("drop_full_0.01", "nope"), ("drop_none_0.01", "nope"), 1),),
  ),
  Claim(
    "With QK-norm, the highest of three rates is the best.",
    "table 11",
    tuple(
      less("table11_qk_norm_by_rate", ("drop_full_0.01", "nope"), (f"drop_full_{rate}", "nope"), 1)
      for rate in ("0.003", "0.0003")
    ),
  ),
  Claim(
    "A temperature that grows with the length lowers the dropped model's loss beyond its context.",
    "appendix C.2",
    tuple(less(study, FITTED, DROPPED, 8) for study in ("temperature_fit", "controls", SMALL)),
  ),
)

OURS = (
  Claim(
    "The partial drop at one turn (rotations that make a full turn within the context are kept) costs less than 0.02 "
    "nats in context, against RoPE continued.",
    "",
    tuple(less(study, PARTIAL, CONTROL, 1, MARGIN) for study in ("partial_drop", "partial_drop_half", SMALL)),
  ),
  Claim(
    "At 4× and 8× one turn finds more needles than RoPE continued, as it is and under NTK and YaRN.",
    "",
    tuple(
      more(study, PARTIAL, one, times)
      for study in ("partial_drop", SMALL)
      for times in (4, 8)
      for one in (CONTROL, NTK, YARN)
    ),
  ),
  Claim(
    "One turn keeps its needles: at 4× and 8× it finds as many as in context (within 5 points).",
    "",
    tuple(kept(study, PARTIAL, times) for study in ("partial_drop", SMALL) for times in (4, 8)),
  ),
  Claim(
    "At 8× one turn finds as many needles as the full drop with its fitted β (within 5 points).",
    "",
    tuple(more(study, PARTIAL, FITTED, 8, SHARE) for study in ("partial_drop", SMALL)),
  ),
  Claim(
    "At 8× the loss of one turn is lower than that of RoPE continued with YaRN.",
    "",
    tuple(less(study, PARTIAL, YARN, 8) for study in ("partial_drop", SMALL)),
  ),
  Claim(
    "Recalibration lowers the loss of one turn in context: clipped and not trained on, the model has a higher one.",
    "",
    (less("partial_drop", PARTIAL, ("clipped", "rope"), 1),),
  ),
  Claim(
    "Recalibration of one turn gains needles at 8×.",
    "",
    (more("partial_drop", PARTIAL, ("clipped", "rope"), 8),),
  ),
  Claim(
    "Kept from two turns on, the model costs less than 0.02 nats in context.",
    "",
    tuple(less(study, TWICE, CONTROL, 1, MARGIN) for study in ("partial_drop", SMALL)),
  ),
  Claim(
    "Two turns keep their needles: at 4× and 8× they find as many as in context (within 5 points).",
    "",
    tuple(kept(study, TWICE, times) for study in ("partial_drop", SMALL) for times in (4, 8)),
  ),
  Claim(
    "SmolLM2-135M: half a turn costs less than 0.02 nats in context after 13M tokens.",
    "",
    wants="`experiments/studies/smollm2_recalibration.py`",
  ),
  Claim(
    "SmolLM2-135M: after 13M tokens two turns find more needles at 4× than RoPE continued with YaRN.",
    "",
    wants="`experiments/studies/smollm2_recalibration.py`",
  ),
  Claim(
    "After four times as many steps a full turn's loss at 8× is lower than that of RoPE continued.",
    "",
    (less("recalibration_budget", ("turns_1_1000", "rope"), ("control_1000", "rope"), 8),),
  ),
  Claim(
    "After four times as many steps a full turn's loss at 8× is lower than that of RoPE continued with YaRN.",
    "",
    (less("recalibration_budget", ("turns_1_1000", "rope"), ("control_1000", "yarn"), 8),),
  ),
  Claim(
    "After four times as many steps a full turn finds more needles at 8× than RoPE continued with YaRN.",
    "",
    (more("recalibration_budget", ("turns_1_1000", "rope"), ("control_1000", "yarn"), 8),),
  ),
  Claim(
    "Half a turn costs less than 0.02 nats in context without any recalibration, and after 125 to 1,000 steps of it.",
    "",
    tuple(
      less("recalibration_budget_turns", (f"turns_0.5_{n}", "rope"), (f"control_{n}", "rope"), 1, MARGIN)
      for n in (0, 125, 250, 500, 1000)
    ),
  ),
  Claim(
    "With a teacher a full turn costs less than 0.02 nats in context, against RoPE continued without one on the same "
    "tokens.",
    "",
    (less("recalibration_hybrid", TAUGHT, CONTROL, 1, MARGIN),),
  ),
  Claim(
    "At equal FLOPs, a full turn with a teacher costs less than 0.02 nats in context, and no more than without.",
    "",
    (
      less("recalibration_hybrid", TAUGHT, ("control_flops", "rope"), 1, MARGIN),
      less("recalibration_hybrid", TAUGHT, ("turns_1_flops", "rope"), 1),
    ),
  ),
  Claim(
    "Half a turn (the threshold that looked best in the first runs at `mini`) costs less than 0.02 nats in context "
    "on seeds that did not choose it.",
    "",
    (less("partial_drop_half", HALF, CONTROL, 1, MARGIN),),
  ),
  Claim(
    "On seeds that did not choose it, half a turn keeps its needles: at 4× and 8× it finds as many as in context "
    "(within 5 points).",
    "",
    tuple(kept("partial_drop_half", HALF, times) for times in (4, 8)),
  ),
  Claim(
    "On seeds that did not choose it, half a turn finds more needles at 8× than RoPE continued, as it is and under NTK "
    "and YaRN.",
    "",
    tuple(more("partial_drop_half", HALF, one, 8) for one in (CONTROL, NTK, YARN)),
  ),
  Claim(
    "With base 1e5 half a turn costs less than 0.02 nats in context.",
    "",
    (less("partial_drop_rule", (f"{BASE}_turns_0.5", "rope"), (f"{BASE}_control", "rope"), 1, MARGIN),),
  ),
  Claim(
    "At twice the context half a turn costs less than 0.02 nats with either base.",
    "",
    tuple(
      less("partial_drop_rule_256", (f"{base}_turns_0.5", "rope"), (f"{base}_control", "rope"), 1, MARGIN)
      for base in ("theta_1e4", BASE)
    ),
  ),
  Claim(
    "At twice the context two turns find more needles at 8× than RoPE continued under YaRN, with either base.",
    "",
    tuple(
      more("partial_drop_rule_256", (f"{base}_turns_2", "rope"), (f"{base}_control", "yarn"), 8)
      for base in ("theta_1e4", BASE)
    ),
  ),
  Claim(
    "With base 1e5 a full turn costs less than 0.02 nats.",
    "",
    (less("partial_drop_rule", (f"{BASE}_turns_1", "rope"), (f"{BASE}_control", "rope"), 1, MARGIN),),
  ),
  Claim(
    "With base 1e5 half a turn finds more needles at 8× than RoPE continued, as it is and under YaRN.",
    "",
    tuple(
      more("partial_drop_rule", (f"{BASE}_turns_0.5", "rope"), (f"{BASE}_control", how), 8) for how in ("rope", "yarn")
    ),
  ),
)

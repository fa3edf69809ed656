"""A table has the same contents in Markdown, CSV and LaTeX; its files are deleted with the report that names them."""

import csv
import io

import matplotlib.pyplot as plt
import pytest

from drope_jax.markdown import code, plain
from experiments.reporting.table import MISSING, Cell, Column, Table
from experiments.reporting.writing import save, write_markdown

TABLE = Table(
  "needles_accuracy",
  [Column("accuracy", "row"), Column("1× (128), n = 200", "accuracy at 128"), "kind", "level"],
  [
    [
      plain("a_b & c*"),
      Cell("**0.900 (0.850 to 0.950)**", 0.9, {"low": 0.85, "high": 0.95, "n": 200, "sd": None}),
      "drop",
      Cell("1×"),
    ],
    [code("run_1"), Cell("1.2T", 1_234_567_890_123), MISSING, MISSING],
    ["β = 1 | 50 %", MISSING, "", MISSING],
  ],
)


def test_csv_has_one_value_per_cell_and_its_own_headings():
  rows = list(csv.reader(io.StringIO(TABLE.csv)))
  name = "accuracy at 128"
  assert rows[0] == ["row", name, f"{name} low", f"{name} high", f"{name} n", "kind"]
  assert rows[1] == ["a_b & c*", "0.9", "0.85", "0.95", "200", "drop"]
  assert rows[2] == ["run_1", "1234567890123", "", "", "", "–"]
  assert rows[3] == ["β = 1 | 50 %", "", "", "", "", ""]


def test_latex_is_escaped_and_has_the_rules_of_booktabs():
  needs, *lines = TABLE.latex.splitlines()
  assert needs == r"% Needs \usepackage{booktabs} in the preamble."
  assert lines[0] == r"\begin{tabular}{lrrr}" and lines[-1] == r"\end{tabular}"
  assert [line for line in lines if line.endswith("rule")] == [r"\toprule", r"\midrule", r"\bottomrule"]
  assert lines[4] == r"a\_b \& c* & \textbf{0.900 (0.850 to 0.950)} & drop & 1$\times$ \\"
  assert lines[6] == r"$\beta$ = 1 \textbar{} 50 \% & -- &  & -- \\"


@pytest.mark.parametrize(
  ("text", "latex"),
  [
    ("a_b & 5 % {c} #1 $x$ ~^\\", r"a\_b \& 5 \% \{c\} \#1 \$x\$ \textasciitilde{}\textasciicircum{}\textbackslash{}"),
    ("2× ± 1 – “β” ≥ 1…", r"2$\times$ $\pm$ 1 -- ``$\beta$'' $\geq$ 1\ldots{}"),
    ("a < b | c > `d`", r"a \textless{} b \textbar{} c \textgreater{} \textasciigrave{}d\textasciigrave{}"),
    ("--steps---", "-{}-steps-{}-{}-"),
    ("[1, 2] *", "{}[1, 2] *"),
    ("*", "{}*"),
    ("é Ångström ž", "é Ångström ž"),
    ("ł Ł ą 北 🚀", "ł Ł [U+0105] [U+5317] [U+1F680]"),
    ("", ""),
  ],
)
def test_text_is_what_pdflatex_compiles_and_prints_as_it_is(text, latex):
  table = Table("one", [code(text) if text else ""], [])
  assert table.latex.splitlines()[3] == rf"{latex} \\"


def test_markdown_keeps_its_columns():
  lines = TABLE.markdown.splitlines()
  assert lines[1] == "|:--|--:|--:|--:|" and lines[2] == r"| a_b & c\* | **0.900 (0.850 to 0.950)** | drop | 1× |"
  assert lines[4].startswith(r"| β = 1 \| 50 % |")


def test_files_of_tables_that_a_report_no_longer_has_go_and_others_stay(tmp_path):
  path = tmp_path / "report.md"
  write_markdown(path, ["# One", TABLE, TABLE._replace(name="other/name")])
  (tmp_path / "tables" / "mine.csv").write_text("precious")
  names = {
    "mine.csv",
    *(f"{name}.{suffix}" for name in ("needles_accuracy", "other-name") for suffix in ("csv", "tex")),
  }
  assert {one.name for one in (tmp_path / "tables").iterdir()} == names
  write_markdown(path, ["# One", TABLE])
  kept = {"mine.csv", "needles_accuracy.csv", "needles_accuracy.tex"}
  assert {one.name for one in (tmp_path / "tables").iterdir()} == kept
  assert "[CSV](tables/needles_accuracy.csv)" in path.read_text()


@pytest.mark.parametrize(("suffix", "begin"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_a_picture_is_the_same_bytes_in_each_format(tmp_path, suffix, begin):
  found = []
  for name in ("a", "b"):
    canvas, axes = plt.subplots(figsize=(2, 1))
    axes.plot([1, 2], [3, 4])
    (tmp_path / name).mkdir()
    save(canvas, tmp_path / name, "picture", (suffix,))
    found.append((tmp_path / name / f"picture.{suffix}").read_bytes())
  assert found[0] == found[1] and found[0].startswith(begin)

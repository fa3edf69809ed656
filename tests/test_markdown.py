"""Text of others in Markdown and YAML stays text."""

import html.parser
import json
import re

import pytest
import yaml as reader
from support.checkpoints import write_checkpoint
from support.study_records import LOSSES, figures, write_study
from support.tiny_run import tiny_model

from drope_jax.evaluate import results
from drope_jax.interop.__main__ import main as interop
from drope_jax.markdown import block, code, plain, yaml
from drope_jax.positions import RoPE
from experiments.report import write_report

HARMFUL = [
  "<script>alert(1)</script>",
  "<img src=x onerror=alert(1)>",
  "[link](javascript:alert(1))",
  "![picture](http://x/y.png)",
  "a | b | c",
  "**bold** _slanted_ `code` ~~struck~~ $mathematics$",
  "# heading",
  "- item",
  "1. item",
  "two\nlines\n\n# and a heading",
  "&lt;b&gt; &#60;",
  "`` two backticks ` one",
  "end\\",
  "\u2028separator\u2029 \x00\x1b[31m",
  "---\nlicense: other",
]


class _Tags(html.parser.HTMLParser):
  def __init__(self):
    super().__init__()
    self.found = []

  def handle_starttag(self, tag, attributes):
    self.found.append(tag)


@pytest.mark.parametrize("text", HARMFUL)
def test_markup_is_escaped(text):
  shown = plain(text)
  assert "\n" not in shown and not re.search(r"(?<!\\)(?:\\\\)*[`*<>\[\]|~$]", shown)
  assert not re.match(r"[#+>-]|\d+[.)]", shown)
  unescaped = re.sub(r"\\(.)", r"\1", shown)
  assert unescaped == re.sub(r"[\x00-\x1f\u2028\u2029]+", " ", text).strip()  # nothing is lost


@pytest.mark.parametrize("text", HARMFUL)
def test_code_ends_where_its_text_does(text):
  for shown in (code(text), block(text)):
    fence = re.match("`+", shown)[0]
    inside = shown[len(fence) : -len(fence)]
    assert shown.endswith(fence) and fence not in re.findall("`+", inside)
  assert "\n" not in code(text)


@pytest.mark.parametrize("text", [*HARMFUL, "apache-2.0", "no", "1.0", "null", "a: b", "- a", "", "llama2"])
def test_a_value_of_yaml_is_read_as_it_was(text):
  assert reader.safe_load(f"license: {yaml(text)}\nafter: 3\n") == {"license": text, "after": 3}


def test_what_needs_no_escape_is_left_alone():
  for text in ("RoPE + YaRN", "DroPE, β = 1", "rope_continued, nope", "2 CPU cores, 4 GiB", "Llama-2-7b.Q4_1"):
    assert plain(text) == text
  assert yaml("apache-2.0") == "apache-2.0"


def test_a_report_shows_names_of_others_as_text(tmp_path):
  write_study(tmp_path)
  results.append(tmp_path / "results.jsonl", figures({"DroPE": LOSSES["DroPE"]}, {}))
  clean = write_report(tmp_path).read_text()
  for name in ("study.json", "results.jsonl"):
    path = tmp_path / name
    text = path.read_text().replace('"perplexity"', '"p <script>|\\n# x $y$"')
    path.write_text(
      text.replace('"label": "DroPE"', '"label": "<b>|\\n# x $y$"').replace("Dropping", "<i>\\n# Dropping")
    )
  harmed = write_report(tmp_path).read_text()
  for report in (clean, harmed):
    tags = _Tags()
    tags.feed(re.sub(r"\\<", "", report))
    assert set(tags.found) <= {"details", "summary"}
  headings = [re.findall(r"^#+ ", text, re.MULTILINE) for text in (clean, harmed)]
  assert headings[0] == headings[1]


def test_an_export_shows_names_of_others_as_text(tmp_path):
  folder = tmp_path / "in"
  write_checkpoint(tiny_model(positions=RoPE()), folder)
  meta = folder / "checkpoints" / "0" / "meta" / "metadata"
  data = json.loads(meta.read_text())
  data["origin"] |= {"name": "<script>\n# x", "license": "mit\nevil: true", "sha256": {"a`<b>": "0"}}
  data.pop("digest", None)
  meta.write_text(json.dumps(data))
  assert interop(["export", str(folder), str(tmp_path / "out")]) == 0
  head, body = (tmp_path / "out" / "README.md").read_text().removeprefix("---\n").split("\n---\n", 1)
  assert reader.safe_load(head) == {"library_name": "transformers", "license": "mit\nevil: true"}
  assert not re.search(r"(?<!\\)<", body) and len(re.findall("^# ", body, re.MULTILINE)) == 1

"""Links of the documentation: they lead somewhere, and from the README to the answers of a newcomer's questions."""

import re

import pytest
from support.pages import PAGES, ROOT, anchors_of, links_of, name_of

README, QUESTIONS = ROOT / "README.md", ROOT / "docs" / "questions.md"


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_links_lead_somewhere(path):
  for target, anchor in links_of(path):
    assert target.exists(), f"{name_of(path)} links to {target}, which is not there"
    assert ROOT in (target, *target.parents), f"{name_of(path)} links to {target}, outside of the repository"
    if anchor:
      assert anchor in anchors_of(target), (
        f"{name_of(path)} links to #{anchor} of {target.name}; no heading is called so"
      )


def clicks():
  """How many clicks from the README each page of the documentation is away."""
  away, waiting = {README: 0}, [README]
  while waiting:
    page = waiting.pop(0)
    for target, _ in links_of(page):
      if target.suffix == ".md" and target.exists() and target not in away:
        away[target] = away[page] + 1
        waiting.append(target)
  return away


def test_every_question_has_its_answer_within_two_clicks():
  rows = re.findall(r"^\| (.*\?) \| \[.*\]\((.*)\) \| (\d) \|$", QUESTIONS.read_text(), re.MULTILINE)
  assert len(rows) >= 12
  away = clicks()
  for question, link, number in rows:
    target = (QUESTIONS.parent / link.partition("#")[0]).resolve()
    assert away.get(target) == int(number) <= 2, f"{question} {away.get(target)} clicks to {target.name}"


def test_every_page_is_reached_from_the_readme():
  lost = {name_of(path) for path in PAGES} - {name_of(path) for path in clicks() if ROOT in path.parents}
  assert not lost, f"no link leads to {lost}"

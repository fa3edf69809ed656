"""The figures of the pages are those that their scripts make, and the method's page says what they show."""

import math
import re
from pathlib import Path

import numpy as np
import pytest

from docs.figures import drope, method
from drope_jax.positions import RoPE
from drope_jax.transitions import PartialDrop

FIGURES = Path(__file__).parents[2] / "docs" / "figures"


def test_the_drawing_is_that_of_its_script():
  assert (FIGURES / "drope.svg").read_text() == drope.drawing()


def test_the_turns_that_the_page_names_are_those_of_the_quickstart():
  turns = method.CONTEXT * method.omegas(RoPE(method.THETA)) / (2 * math.pi)
  page = (FIGURES.parent / "method.md").read_text()
  assert f"{turns[3]:.1f} times" in page and "a fifth of a turn" in page
  np.testing.assert_allclose(turns[8], 0.2, atol=0.01)
  assert PartialDrop(turns=1.0).apply(method.model(), method.CONTEXT).positions.pairs == (turns >= 1).sum() == 6


@pytest.mark.slow
def test_the_script_makes_every_figure_of_the_page(monkeypatch, tmp_path):
  monkeypatch.setattr(method, "HERE", tmp_path)
  method.main()
  named = set(re.findall(r"figures/(\w+\.svg)", (FIGURES.parent / "method.md").read_text()))
  assert {path.name for path in tmp_path.iterdir()} == named
  assert named <= {path.name for path in FIGURES.iterdir()}

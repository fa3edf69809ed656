"""Equations as MathML, which browsers show by themselves: a page needs no script from the network."""

from typing import Any

from docutils import nodes
from docutils.utils.math import latex2mathml
from sphinx.application import Sphinx


def _inline(writer: Any, node: nodes.math) -> None:
  writer.body.append(latex2mathml.tex2mathml(node.astext()))
  raise nodes.SkipNode


def _block(writer: Any, node: nodes.math_block) -> None:
  writer.body.append(f'<div class="math">{latex2mathml.tex2mathml(node.astext(), as_block=True)}</div>')
  raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
  app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
  return {"parallel_read_safe": True, "parallel_write_safe": True}

"""Sphinx builds this site, without a network: `python -m sphinx -W --keep-going docs docs/_build`."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "_ext")]

import drope_jax  # noqa: E402

project = "drope_jax"
author = "the drope_jax contributors"
release = version = drope_jax.__version__

extensions = [
  "myst_nb",  # Markdown pages, and notebooks as they were saved
  "sphinx.ext.autodoc",
  "sphinx.ext.napoleon",
  "sphinx.ext.viewcode",
  "sphinx_copybutton",
  "docstrings",
  "mathml",
]
exclude_patterns = ["_build", "_ext", "jupyter_execute", "**.ipynb_checkpoints"]

myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4
nb_execution_mode = "off"

smartquotes = False  # which would make one dash of the two before a flag
default_role = "literal"  # docstrings write `name`, as Markdown does
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True}
maximum_signature_line_length = 100
napoleon_numpy_docstring = False
napoleon_use_ivar = True
nitpicky = True
# No network, and so no inventories of other projects; what they define is not linked.
# Nor are the types that only the library itself makes.
nitpick_ignore_regex = [
  (r"py:.*", r"(?!drope_jax\.).*"),
  (r"py:.*", r".*\._\w+|.*\.T"),
  (
    r"py:.*",
    r"drope_jax\.data\.(recall\.Lines|sources\.array_record\.Records|sources\.files\.StoredFile|sources\.tokens\.TokenShards)",
  ),
  (r"py:.*", r"drope_jax\.interop\.(sources|hf_config|keys)\.\w+"),
  (r"py:.*", r"drope_jax\.evaluate\.(recorder\.Recorder|progress\.Progress|ruler_prompts\.Material)"),
]

html_theme = "furo"
html_title = f"drope_jax {release}"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_math_renderer = "mathml"
html_show_sphinx = False
html_show_copyright = False
copybutton_exclude = ".linenos, .gp, .go"

"""Commands of drope_jax, and the studies and configs that they run; they work from a clone."""

import sys

from drope_jax import cpu

COMPUTING = (  # the commands that run models
  "evaluate",
  "factor_search",
  "generate",
  "quickstart",
  "studies.fig4_bias_gradients",
  "studies.fig7_positional_head",
  "studies.fig8_semantic_head",
  "study",
  "train",
)

# Python sets argv[0] to "-m" while it imports the package of a command: here none of the libraries that a second start
# would have to import again is there yet.
_asked = {f"{__name__}.{name}" for name in COMPUTING} & set(sys.orig_argv)
if sys.argv[:1] == ["-m"] and _asked and "--help" not in sys.argv:
  cpu.restart(command=True)

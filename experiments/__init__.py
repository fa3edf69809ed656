"""The commands of drope_jax, and the studies and configs that they run; they need a clone of the repository."""

import sys

from drope_jax import cpu

COMPUTING = (  # the commands that run models
  "evaluate",
  "factor_search",
  "generate",
  "quickstart",
  "study",
  "train",
)

# argv[0] is "-m" while Python imports the package of a command. This is the cheapest moment to restart the process: no
# library that the restarted one would have to import again has been loaded yet.
_asked = {f"{__name__}.{name}" for name in COMPUTING} & set(sys.orig_argv)
if sys.argv[:1] == ["-m"] and _asked and "--help" not in sys.argv:
  cpu.restart(command=True)

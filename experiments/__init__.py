"""Commands of drope_jax, and the studies and configs that they run; they work from a clone."""

import sys

from drope_jax import cpu

COMPUTING = ("evaluate", "generate", "quickstart", "study", "train")  # the commands that run models

# Python sets argv[0] to "-m" while it imports the package of a command: here none of the libraries that a second start
# would have to import again is there yet.
_asked = {f"{__name__}.{name}" for name in COMPUTING} & set(sys.orig_argv)
if sys.argv[:1] == ["-m"] and _asked and "--help" not in sys.argv:
  cpu.restart()

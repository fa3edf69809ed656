"""Programs that a command compiles are kept for its next start, in JAX's compilation cache."""

import hashlib
import os
import platform
from collections.abc import Mapping
from pathlib import Path

import jax

_LIMIT = 2 << 30  # bytes of all programs that are kept; JAX removes those that were used least recently
# Programs that took less are not kept: they are many, and each further one makes it slower to keep another. JAX's own
# second leaves out all but the largest, as the digests of a checkpoint, whose programs take 0.3 s together.
_LEAST_SECONDS = 0.02


def directory(environment: Mapping[str, str] | None = None) -> Path:
  """Where programs are kept: in the user's cache, apart for each kind of CPU.

  A program that XLA has compiled for one CPU may use instructions that another, which sees the same home, does not
  have.
  """
  environment = os.environ if environment is None else environment
  home = Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache")
  return home / "drope_jax" / "compiled" / hashlib.sha256(_cpu().encode()).hexdigest()[:12]


def keep() -> None:
  """Turns JAX's compilation cache on, unless the environment or the program has said where it is, or that it is off."""
  chosen, on = (getattr(jax.config, name) for name in ("jax_compilation_cache_dir", "jax_enable_compilation_cache"))
  if chosen is None and on:
    jax.config.update("jax_compilation_cache_dir", str(directory()))
    ours = {"jax_compilation_cache_max_size": _LIMIT, "jax_persistent_cache_min_compile_time_secs": _LEAST_SECONDS}
    for name, value in ours.items():
      if name.upper() not in os.environ:  # a user who has set it knows why
        jax.config.update(name, value)


def _cpu() -> str:
  """The model and the instructions of this machine's CPU."""
  path = Path("/proc/cpuinfo")
  if not path.exists():
    return platform.processor() or platform.machine()
  lines = path.read_text(errors="replace").splitlines()
  return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}))

"""Keeps the programs that a command compiles for its next start, in JAX's compilation cache."""

import hashlib
import os
import platform
from collections.abc import Mapping
from pathlib import Path

import jax

_LIMIT = 2 << 30  # bytes of the cache; JAX removes the least recently used programs
# Programs that compile faster are not kept: there are many, and adding to the cache gets slower with each. JAX's
# default of one second would exclude all but the largest, for example the digests of a checkpoint, which take 0.3 s in
# total.
_LEAST_SECONDS = 0.02


def directory(environment: Mapping[str, str] | None = None) -> Path:
  """The directory of the programs: in the user's cache, separate for each kind of CPU.

  A program that XLA compiled for one CPU may use instructions that another CPU with the same home directory lacks.
  """
  environment = os.environ if environment is None else environment
  home = Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache")
  return home / "drope_jax" / "compiled" / hashlib.sha256(_cpu().encode()).hexdigest()[:12]


def keep() -> None:
  """Turns JAX's compilation cache on, unless it was configured or turned off by the environment or the program."""
  chosen, on = (getattr(jax.config, name) for name in ("jax_compilation_cache_dir", "jax_enable_compilation_cache"))
  if chosen is None and on:
    jax.config.update("jax_compilation_cache_dir", str(directory()))
    ours = {"jax_compilation_cache_max_size": _LIMIT, "jax_persistent_cache_min_compile_time_secs": _LEAST_SECONDS}
    for name, value in ours.items():
      if name.upper() not in os.environ:  # the user's own setting is kept
        jax.config.update(name, value)


def _cpu() -> str:
  """The model and the instruction sets of this machine's CPU."""
  path = Path("/proc/cpuinfo")
  if not path.exists():
    return platform.processor() or platform.machine()
  lines = path.read_text(errors="replace").splitlines()
  return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}))

"""What all commands share: running them, their flags, config overrides, and how they are stopped."""

from drope_jax.cli.flags import (
  define_config,
  define_float,
  define_list,
  define_mesh,
  define_path,
  define_path_list,
  define_seed,
  mesh_config,
  settings,
)
from drope_jax.cli.frame import Parser, command_line, run, run_first, run_foreign, run_parsed
from drope_jax.cli.paths import argument as path_argument
from drope_jax.cli.signals import Terminated

__all__ = [
  "Parser",
  "Terminated",
  "command_line",
  "define_config",
  "define_float",
  "define_list",
  "define_mesh",
  "define_path",
  "define_path_list",
  "define_seed",
  "mesh_config",
  "path_argument",
  "run",
  "run_first",
  "run_foreign",
  "run_parsed",
  "settings",
]

"""A command with a flag of each kind, run by tests/cli: prints what they are, and the transitions of a user's own."""

import dataclasses
import json

from absl import flags

from drope_jax import cli
from drope_jax.transitions import Transition
from drope_jax.values import members

PATH = cli.define_path("path", "here", "A path.")
NUMBER = cli.define_float("number", 1.0, "A number.", lower_bound=0)
ITEMS = cli.define_list("some_items", ["a"], "Items.")
SEED = cli.define_seed("A seed.")
SWITCH = flags.DEFINE_bool("a_switch", False, "A switch.")
MESH = cli.define_mesh("Devices")


def main() -> None:
  mesh = cli.mesh_config(MESH)
  own = [name for name in members(Transition) if ":" in name]
  values = [flag.value for flag in (PATH, NUMBER, ITEMS, SEED, SWITCH)]
  print(json.dumps([*values, None if mesh is None else dataclasses.asdict(mesh), own]))


if __name__ == "__main__":
  cli.run(main)

"""`python -m drope_jax.interop import SRC DIR`: a Hugging Face folder (safetensors) or a .gguf file into a checkpoint.

DIR is then a checkpoint as any other: for `drope_jax.load`, `python -m experiments.evaluate --checkpoint=DIR`, and as
`--config.init.checkpoint=DIR` of a recalibration. Exit status: 0 done; 1 failed; 2 bad usage, or a model that is not
supported.
"""

import argparse
import logging
import sys
from collections.abc import Sequence

from absl import logging as absl_logging

from drope_jax.checkpoint import CheckpointError
from drope_jax.config import ConfigError
from drope_jax.interop.importing import import_model


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(prog="python -m drope_jax.interop")
  commands = parser.add_subparsers(dest="command", required=True)
  into = commands.add_parser("import", help="a pretrained model into a checkpoint")
  into.add_argument("source", metavar="SRC", help="folder with config.json and safetensors, or a .gguf file")
  into.add_argument("directory", metavar="DIR", help="where the checkpoint goes")
  into.add_argument("--tokenizer", metavar="PATH", help="a tokenizer.json (or its folder) instead of SRC's")
  return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs one command and returns its exit status."""
  args = _arguments(arguments)
  absl_logging.set_verbosity(absl_logging.ERROR)  # orbax tells of every file it touches
  logging.basicConfig(format="%(message)s")
  logging.getLogger("drope_jax").setLevel(logging.INFO)
  try:
    import_model(args.source, args.directory, tokenizer=args.tokenizer)
  except (ConfigError, CheckpointError, ModuleNotFoundError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 2 if isinstance(error, ConfigError) else 1
  return 0


if __name__ == "__main__":
  sys.exit(main())

"""Pretrained models in, extended models out.

`python -m drope_jax.interop import SRC DIR` converts a Hugging Face folder (safetensors) or a .gguf file to a
checkpoint, for `drope_jax.load`, `python -m experiments.evaluate --checkpoint=DIR`, and as
`--config.init.checkpoint=DIR` of a recalibration.

LoRA adapters (a PEFT folder) are merged into their model on import: SRC is their folder, and `--base` that of the
model, unless adapter_config.json names an existing folder.

`python -m drope_jax.interop export DIR DST` converts a checkpoint to a folder that stock transformers loads; the
formats are those of families.py. With `--format=gguf` it holds a model.gguf for stock llama.cpp, in an architecture of
gguf_architectures.py.

Example:

  python -m drope_jax.interop import path/to/SmolLM2-360M runs/smollm2_360m
  python -m drope_jax.interop export runs/drope runs/drope_hf --target-length=16384 --c=0.1

The weights pass through host memory, even if there is an accelerator; `import --mesh` shards them over the devices of
one host. Both commands refuse a DIR or DST that is not empty.

Exit status: 0 done; 1 failed; 2 bad usage, or a model that is not supported.
"""

import argparse
import sys
from collections.abc import Sequence

from drope_jax import cli
from drope_jax.interop.exporting import DTYPES, MOST_TOKENS, SHARD_BYTES, export_model
from drope_jax.interop.families import written
from drope_jax.interop.gguf_export import TYPES
from drope_jax.interop.importing import import_model
from drope_jax.sharding import host_mesh, make_mesh, parse_mesh


def _positive(text: str) -> int:
  number = int(text)
  if not 0 < number <= MOST_TOKENS:
    raise argparse.ArgumentTypeError(f"{text} is not in 1 to {MOST_TOKENS}")
  return number


def _bytes(text: str) -> int:
  if int(text) < 1:
    raise argparse.ArgumentTypeError(f"{text} is less than 1")
  return int(text)


def _parser() -> cli.Parser:
  parser = cli.Parser(prog="python -m drope_jax.interop", about=__doc__)
  commands = parser.add_subparsers(dest="command", required=True)
  into = commands.add_parser("import", help="a pretrained model into a checkpoint")
  into.add_argument(
    "source",
    type=cli.path_argument,
    metavar="SRC",
    help="folder with config.json and safetensors or adapters, or a .gguf file",
  )
  into.add_argument("directory", type=cli.path_argument, metavar="DIR", help="where the checkpoint goes")
  own = "a tokenizer.json (or its folder) instead of SRC's"
  into.add_argument("--tokenizer", type=cli.path_argument, metavar="PATH", help=own)
  base = "the model that SRC, a folder of LoRA adapters, was trained on: its Hugging Face folder or .gguf file"
  into.add_argument("--base", type=cli.path_argument, metavar="PATH", help=base)
  into.add_argument("--mesh", metavar="AXES", help="devices to load to: fsdp, or fsdp=4,tensor=2, or dp,context=2")
  out = commands.add_parser("export", help="a checkpoint into a folder for transformers or llama.cpp")
  out.add_argument("directory", type=cli.path_argument, metavar="DIR", help="workdir of a run, or an imported model")
  out.add_argument("target", type=cli.path_argument, metavar="DST", help="where the folder goes")
  formats = f"gguf, {', '.join(written())}, or one that was registered; by default the one that fits the model best"
  out.add_argument("--format", metavar="NAME", help=formats)
  length = (
    "tokens it is meant for (default: as it was trained); this scales no rotation: train with a transition for that"
  )
  out.add_argument("--target-length", type=_positive, metavar="N", help=length)
  beta = "fold in beta = 1 + c ln(target length / context), which a dropped model wants; without it beta is 1"
  out.add_argument("--c", type=float, help=beta)
  dtypes = ", ".join(dict.fromkeys((*DTYPES, *TYPES)))
  out.add_argument("--dtype", metavar="NAME", help=f"of the weights: {dtypes}; by default float32, in GGUF float16")
  out.add_argument("--shard-bytes", type=_bytes, default=SHARD_BYTES, metavar="N", help="largest file of weights")
  out.add_argument("--step", type=int, help="of the checkpoint; its last by default")
  out.add_argument(
    "--results", type=cli.path_argument, metavar="FILE", help="results.jsonl of an evaluation, for the model card"
  )
  return parser


def _run(args: argparse.Namespace) -> None:
  if args.command == "import":
    mesh = make_mesh(parse_mesh(args.mesh.split(","))) if args.mesh is not None else host_mesh()
    import_model(args.source, args.directory, tokenizer=args.tokenizer, base=args.base, mesh=mesh)
    return
  export_model(
    args.directory,
    args.target,
    format=args.format,
    target_length=args.target_length,
    c=args.c,
    dtype=args.dtype,
    shard_bytes=args.shard_bytes,
    step=args.step,
    results=args.results,
    mesh=host_mesh(),
  )


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs one command and returns its exit status."""
  return cli.run_parsed(_parser(), _run, arguments)


if __name__ == "__main__":
  sys.exit(main())

"""docs/reference/config.md: every class of settings with its fields, and the values that a field may take."""

import inspect
import re
import sys
from collections.abc import Iterable

from commands_page import in_cell, markdown
from fields import Field, fields_of

from drope_jax import config, model_config
from drope_jax.data.sources import Source
from drope_jax.evaluate import tasks
from drope_jax.evaluate.methods import METHODS
from drope_jax.interop import families
from drope_jax.objective import Objective
from drope_jax.optimizers import Optimizer
from drope_jax.positions import Embedding, Layer, LayerPattern
from drope_jax.scalings import Scaling
from drope_jax.sharding import PRESETS
from drope_jax.transitions import Transition
from drope_jax.values import Value, members, recorded_name
from experiments import plan
from experiments.studies.quickstart import Quickstart

HEAD = """# Config

Generated from the code by `python docs/_ext/reference.py`.

A config is a Python file with a function `get_config(ARG)` that returns one of these dataclasses. Flags set its fields:

- `--config.steps=100`
- `--config.model.positions=None`
- `--config.model.positions='RoPE(theta=1e5, scaling=YaRN(factor=8, original_context=1024))'`

An unknown field is an error that lists the fields, and a setting that cannot be is refused before anything runs. The
complete config of a run is in its `config.json`.
"""
RUN = (
  config.TrainConfig,
  config.InitConfig,
  config.DataConfig,
  config.OptimConfig,
  model_config.ModelConfig,
  model_config.QKNorm,
  model_config.ComputeConfig,
  model_config.MeshConfig,
)
# A field of such a type takes the members of the kind.
KINDS = {
  "Positions": Embedding,
  "Scalings": Scaling,
  "Transitions": Transition,
  "Objectives": Objective,
  "Optimizers": Optimizer,
  "Sources": Source,
}
STUDY = (plan.Study, plan.Arm, plan.Row, plan.Figures, Quickstart)
METHODS_HEAD = """Values of `--methods` ([drope_jax.evaluate.methods](api/evaluate.md)): `yarn:8` has factor 8 at
every length, and `yarn:8+0.1` runs at the temperature 1 + 0.1 ln s too.
"""
OWN = "A class of your own, given with `--import=FILE.py`, works like these: see [extending](../howto/extend.md)."


def is_ours(cls: type) -> bool:
  """Whether a class belongs to the library, and not to a user who imported it."""
  return ":" not in recorded_name(cls)


def page() -> str:
  """The whole page."""
  parts = [HEAD, "## A run\n", *(_section(cls) for cls in RUN), _presets()]
  for title, kind in KINDS.items():
    parts += [f"## {title}\n", f"{_about(kind)}\n"]
    parts += [_section(cls) for _, cls in sorted(members(kind).items()) if is_ours(cls)]
    if kind is Embedding:
      parts += [_section(LayerPattern), _section(Layer)]
  parts += ["## Methods\n", METHODS_HEAD]
  parts += [
    "| method | the model is run |\n|---|---|",
    *(f"| `{name}` | {said} |" for name, said in METHODS.items()),
    "",
  ]
  parts += ["## Tasks\n", *_tasks()]
  parts += ["## Families\n", f"{markdown(inspect.getdoc(families) or '')}"]
  parts += ["## A study\n", *(_section(cls) for cls in STUDY)]
  return "\n".join(parts)


def _about(kind: type[Value]) -> str:
  """The docstring of a kind says who derives from it; readers of this page learn how to."""
  return f"{(inspect.getdoc(kind) or '').splitlines()[0]} {OWN}"


def _section(cls: type) -> str:
  rows = [_row(field) for field in fields_of(cls)]
  table = ["| field | type | default | meaning |\n|---|---|---|---|", *rows, ""] if rows else ["It has no fields.\n"]
  return "\n".join([f"### {cls.__name__}\n", markdown(inspect.getdoc(cls) or ""), *table])


def _row(field: Field) -> str:
  default = f"`{_code(field.default)}`" if field.default else "required"
  return f"| `{field.name}` | {_type(field.type)} | {default} | {in_cell(_capitalised(field.meaning))} |"


def _capitalised(text: str) -> str:
  """A comment begins in lower case; what begins with a name stays as it is."""
  return text[0].upper() + text[1:] if re.match(r"[a-z]+\b(?![._(*])", text) and not re.match(r"s\b", text) else text


def _code(text: str) -> str:
  return text.replace("|", r"\|")


def _type(annotation: str) -> str:
  """A type, with links to the classes that this page has."""
  links = {cls.__name__: cls.__name__.lower() for cls in (*RUN, *STUDY, Layer, LayerPattern)}
  links |= {kind.__name__: title.lower() for title, kind in KINDS.items()} | {"Positions": "positions"}
  shown = []
  for part in re.split(r" \| (?![^\[]*\])", annotation):
    names = [name for name in re.findall(r"\w+", part) if name in links]
    shown.append(f"[{_code(part)}](#{links[names[0]]})".replace("[tuple[", r"[tuple\[") if names else f"`{part}`")
  return " or ".join(shown)


def _presets() -> str:
  rows = [f"| `{name}` | `{_sizes(mesh)}` |" for name, mesh in PRESETS.items()]
  about = "`--mesh=NAME`, in all commands; -1 is every device that is left.\n"
  return "\n".join(["#### Meshes by name\n", about, "| mesh | sizes |\n|---|---|", *rows, ""])


def _sizes(mesh: model_config.MeshConfig) -> str:
  return ", ".join(f"{name}={size}" for name, size in vars(mesh).items() if size != 1)


def _tasks() -> Iterable[str]:
  yield "Values of `--tasks`, by themselves or by the name of their group.\n"
  yield "| tasks | group | what is measured |\n|---|---|---|"
  groups = {name: group for group, names in tasks.task_groups().items() for name in names}
  by_class: dict[tuple[type, str], list[str]] = {}
  for name, (cls, *_) in tasks.task_classes().items():
    by_class.setdefault((cls, groups.get(name, "")), []).append(name)
  for (cls, group), names in by_class.items():
    if is_ours(cls):
      about = getattr(cls, "about", "") or _first_paragraph(sys.modules[cls.__module__].__doc__ or "")
      yield f"| {', '.join(f'`{name}`' for name in names)} | {f'`{group}`' if group else ''} | {in_cell(about)} |"
  yield ""


def _first_paragraph(docstring: str) -> str:
  return " ".join(inspect.cleandoc(docstring).split("\n\n")[0].split())

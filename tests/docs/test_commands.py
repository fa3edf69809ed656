"""Commands: `--help` and the reference say the same; what the pages name is there, with the flags that they give."""

import re
import shlex

import pytest
from support.pages import PAGES, ROOT, blocks_of, commands_in, name_of

from drope_jax.cli.help import help_text, screen_width
from experiments.commands import COMMANDS, HARNESS

SCREEN = 50  # lines of 120 columns
MODULES = [module for group in COMMANDS.values() for module in group]
NO_COMMAND = ("experiments.benchmarks.worker",)  # started by the others
CALL = re.compile(r"\bpython -m ((?:drope_jax|experiments)(?:\.[a-z_]\w*+)++)(?!\.[A-Z])")


def test_every_module_that_runs_is_a_command():
  files = [path for part in ("drope_jax", "experiments") for path in (ROOT / part).rglob("*.py")]
  names = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
    for path in files
    if re.search(r'^if __name__ == "__main__":', path.read_text(), re.MULTILINE)
  }
  assert names - set(NO_COMMAND) == set(MODULES)


@pytest.mark.parametrize("page", ["commands", "config"])
def test_the_reference_is_current(reference, page):
  written = (ROOT / "docs" / "reference" / f"{page}.md").read_text()
  assert written == reference["pages"][page], "run `python docs/_ext/reference.py`"


@pytest.mark.parametrize("module", [module for module in MODULES if module != HARNESS])
def test_help_fits_a_screen_and_has_an_example(reference, module):
  found = reference["commands"][module]
  lines = help_text(found["about"], found["declared"], 120).splitlines()
  assert len(lines) <= SCREEN and max(map(len, lines)) <= 120
  assert f"python -m {module} " in found["about"]
  assert all(flag.help for flag in found["declared"])


@pytest.mark.parametrize("module", ["experiments.evaluate", "experiments.study"])
def test_help_is_made_of_the_same_declarations(command, reference, module):
  ended, found = command(module, "--help"), reference["commands"][module]
  assert (ended.status, ended.stderr) == (0, "")
  assert ended.stdout == help_text(found["about"], found["declared"], screen_width()) + "\n"


@pytest.mark.parametrize(
  "words", [("experiments.report",), ("drope_jax.interop", "import"), ("drope_jax.interop", "export")]
)
def test_help_of_a_parser_has_every_flag(command, reference, words):
  module, *subcommand = words
  ended = command(*words, "--help")
  assert ended.status == 0 and ended.stderr == ""
  declared = [flag for flag in reference["commands"][module]["declared"] if [flag.subcommand] == (subcommand or [""])]
  assert declared and all(
    name in ended.stdout for flag in declared for name in flag.names[:1] or [flag.shown.split()[0]]
  )


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_the_commands_that_a_page_names_are_there(path):
  for module in CALL.findall(path.read_text()):
    assert module in MODULES, f"{name_of(path)} names python -m {module}"


def called(code):
  """The calls of commands in shell code, as words."""
  for line in commands_in(code):
    for match in CALL.finditer(line):
      words = shlex.split(re.split(r"\s(?:&&|\|\|?|;|>>?|2>&1|&)(?:\s|$)", line[match.start(1) :])[0], comments=True)
      yield [words[0], *(word for word in words[1:] if not re.fullmatch(r"\.\.\.|…", word))]


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_the_flags_that_a_page_gives_are_there(reference, path):
  for block in blocks_of(path):
    for module, *words in called(block.code) if block.language == "bash" else ():
      if module == HARNESS:
        continue
      declared = reference["commands"][module]["declared"]
      where = f"{name_of(path)}:{block.line}: python -m {module}"
      subcommands = {flag.subcommand for flag in declared} - {""}
      assert not subcommands or words[0] in subcommands, f"{where} needs one of {subcommands}"
      mine = [flag for flag in declared if flag.subcommand in ("", *words[:1])]
      names = {name for flag in mine for name in flag.names} | {"--help"}
      if any(flag.shown == "--config.A.B=VALUE" for flag in mine):
        words = [word for word in words if not word.startswith("--config.")]
      given = {word.partition("=")[0] for word in words if word.startswith("--")}
      assert given <= names, f"{where} has no {', '.join(given - names)}"
      needed = [flag.names for flag in mine if flag.required and flag.names]
      lacking = [flag_names[0] for flag_names in needed if not given & {*flag_names}]
      assert "--help" in given or not lacking, f"{where} needs {', '.join(lacking)}"

"""`--help` of every command: it ends with 0, fits a screen, and has an example and every flag."""

import importlib.util

import pytest

SCREEN = 50  # lines of 120 columns
COMMANDS = [
  ("experiments.train", "--workdir"),
  ("experiments.evaluate", "--methods"),
  ("experiments.generate", "--prompt"),
  ("experiments.quickstart", "--steps"),
  ("experiments.study", "--dry_run"),
  ("experiments.factor_search", "--generations"),
  ("experiments.page", "FILE"),
  ("experiments.studies.fig4_bias_gradients", "--layers"),
  ("experiments.studies.fig6_fig11_frequency_factors", "--factors"),
  ("experiments.studies.fig7_positional_head", "--dropped"),
  ("experiments.studies.fig8_semantic_head", "--dropped"),
  ("experiments.report", "DIR"),
  ("experiments.seeds", "DIR"),
  ("experiments.prose", "--debs"),
  ("experiments.fetch_smollm2", "--workdir"),
  ("experiments.benchmarks.train_step", "--rounds"),
  ("experiments.benchmarks.long_eval", "--lengths"),
  ("experiments.benchmarks.decode", "--new_tokens"),
  ("experiments.benchmarks.card", "--variants"),
  ("experiments.benchmarks.input", "--num_workers"),
  ("drope_jax.aot", "--topology"),
  ("drope_jax.interop", "import"),
]


@pytest.mark.parametrize(("module", "flag"), COMMANDS)
def test_help(command, module, flag):
  ended = command(module, "--help")
  assert (ended.status, ended.stderr) == (0, "")
  lines = ended.stdout.splitlines()
  assert len(lines) <= SCREEN and max(map(len, lines)) <= 120
  assert f"python -m {module}" in ended.stdout and flag in ended.stdout and "--import" in ended.stdout


@pytest.mark.parametrize("subcommand", ["import", "export"])
def test_help_of_a_subcommand(command, subcommand):
  ended = command("drope_jax.interop", subcommand, "--help")
  assert ended.status == 0 and "DIR" in ended.stdout


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="the extra `eval` is not installed")
def test_help_of_the_harness(command):
  ended = command("drope_jax.evaluate.harness", "run", "--help")
  assert ended.status == 0 and "--model_args" in ended.stdout

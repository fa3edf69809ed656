"""The commands experiments.study and experiments.quickstart: they name bad input."""

import pytest
from support.commands import ROOT


@pytest.mark.parametrize(
  ("overrides", "named"),
  [
    (["--config.contxt=3"], "contxt"),
    (["--config.context=0"], "context is 0"),
    (["--config.recall_share=1.5"], "Quickstart.recall_share is 1.5"),
    (["--config.extensions=()"], "Quickstart.extensions is ()"),
    (["--config.extensions=(0, 1)"], "Quickstart.extensions is (0, 1)"),
    (["--config.documents=0"], "Quickstart.documents is 0"),
    (["--config.needles_per_depth=0"], "Quickstart.needles_per_depth is 0"),
    (["--config.prose_limit=0"], "Quickstart.prose_limit is 0"),
    (["--config.packages=()"], "Quickstart.packages is ()"),
    (["--config.model.num_heads=3"], "ModelConfig.num_heads is 3"),
    (["--steps=0"], "steps"),
  ],
)
def test_quickstart_names_what_is_wrong_and_writes_nothing(command, tmp_path, overrides, named):
  ended = command("experiments.quickstart", f"--workdir={tmp_path / 'study'}", *overrides)
  assert named in ended.error()
  assert ended.status == 2
  assert not (tmp_path / "study").exists()


def test_quickstart_names_a_package_that_is_not_installed(command, tmp_path):
  overrides = ["--config.packages=('no_such_package',)"]
  ended = command("experiments.quickstart", f"--workdir={tmp_path / 'study'}", *overrides)
  assert "no_such_package" in ended.error()
  assert ended.status == 1
  assert not (tmp_path / "study" / "config.json").exists()  # with the name corrected it may begin there


@pytest.mark.parametrize(
  ("module", "config", "said"),
  [
    ("study", "configs/pretrain.py:rope", "the file has a TrainConfig; this command needs the settings of a study"),
    ("quickstart", "studies/smollm2_lengths.py", "the file has a Lengths; this command needs a Quickstart"),
  ],
)
def test_a_config_of_another_command(command, tmp_path, module, config, said):
  path = ROOT / "experiments" / config
  ended = command(f"experiments.{module}", f"--config={path}", f"--workdir={tmp_path / 'study'}")
  assert said in ended.error()
  assert ended.status == 2
  assert not (tmp_path / "study").exists()


def test_a_study_refuses_a_picture_format_that_is_none_before_it_begins(command, tmp_path):
  config = f"--config={ROOT / 'experiments' / 'studies' / 'fig2_recovery.py'}:mini"
  ended = command("experiments.study", config, f"--workdir={tmp_path / 'study'}", "--formats=png,gif")
  assert ended.status == 2 and "'gif' is not a picture format; allowed: png, svg, pdf" in ended.error()
  assert not (tmp_path / "study").exists()

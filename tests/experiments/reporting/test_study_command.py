"""The study that a command runs."""

import pytest

from experiments.reporting.study_command import parse


@pytest.mark.parametrize(
  ("command", "found"),
  [
    ("python -m experiments.study --config=experiments/studies/controls.py:mini --workdir=x", ("controls", "mini")),
    ("python -m experiments.study --workdir=x --config 'studies/controls.py' --seeds=0,1", ("controls", "")),
    ("experiments/launch/one_gpu.sh partial_drop:small_512 780 runs/x 1 2", ("partial_drop", "small_512")),
    ("experiments/launch/one_gpu.sh partial_drop 780 runs/x 1", ("partial_drop", "")),
    ("python -m experiments.train --config=experiments/configs/small.py:drope", ("", "")),
    ("", ("", "")),
  ],
)
def test_name_and_size_of_a_study(command, found):
  assert parse(command) == found

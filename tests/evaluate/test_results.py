import json
import math

import pytest

from drope_jax.errors import ResultsError
from drope_jax.evaluate.results import (
  ACCURACY,
  LOSS,
  Measurement,
  Result,
  append,
  at_depth,
  loss_between,
  measured,
  read,
)


def result(**changes) -> Result:
  fields = {"run": "drope", "method": "nope", "task": "needles", "context": 512, "extension": 4.0}
  return Result(**{**fields, "metric": ACCURACY, "value": 0.5, "n": 200, "seed": 3, **changes})


def test_what_is_appended_is_read_in_order(tmp_path):
  path = tmp_path / "results.jsonl"
  first, second = (
    [result(), result(metric=at_depth(ACCURACY, 0.25))],
    [result(task="perplexity", metric=LOSS, value=2.5)],
  )
  append(path, first)
  append(path, second)
  assert read(path) == first + second


def test_the_file_is_plain_json_lines_with_the_fields_of_the_contract(tmp_path):
  path = tmp_path / "results.jsonl"
  append(path, [result(), result()])
  lines = path.read_text().split("\n")
  assert lines.pop() == ""
  fields = ["run", "method", "task", "context", "extension", "metric", "value", "n", "seed"]
  fields += ["low", "high", "command", "settings"]
  assert [list(json.loads(line)) for line in lines] == [fields] * 2


def test_appending_leaves_earlier_bytes(tmp_path):
  path = tmp_path / "results.jsonl"
  append(path, [result()])
  before = path.read_bytes()
  append(path, [result(seed=4)])
  assert path.read_bytes().startswith(before)


def test_metric_names():
  assert loss_between(128, 192) == "loss@128-192"
  assert at_depth(ACCURACY, 0.25) == "accuracy@depth=0.25"
  assert at_depth(ACCURACY, 1.0) == "accuracy@depth=1"


def test_a_measurement_is_known_by_all_but_its_figures(tmp_path):
  path = tmp_path / "results.jsonl"
  assert measured(path) == set()
  append(path, [result(), result(metric=at_depth(ACCURACY, 0.5), value=1.0)])
  assert measured(path) == {Measurement("drope", "nope", "needles", 512, 3)}
  for change in ({"run": "r"}, {"method": "rope"}, {"task": "t"}, {"context": 1}, {"seed": 0}):
    assert result(**change).measurement not in measured(path)


def test_other_settings_are_another_measurement_whatever_their_order(tmp_path):
  path = tmp_path / "results.jsonl"
  append(path, [result(settings={"samples": 100, "beta": 1.25})])
  assert result(settings={"beta": 1.25, "samples": 100}).measurement in measured(path)
  for other in ({"samples": 200, "beta": 1.25}, {"samples": 100}, {}, None):
    assert result(settings=other).measurement not in measured(path)


def test_a_record_from_before_there_were_settings_is_read(tmp_path):
  path = tmp_path / "results.jsonl"
  record = {name: value for name, value in vars(result()).items() if name != "settings"}
  path.write_text(json.dumps(record) + "\n")
  assert read(path) == [result()] and read(path)[0].settings is None


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ("{", "Expecting"),
    ("5", "not a result"),
    ("", "Expecting"),
    ('{"run": "a"}', "method"),
    ("CHANGED value half", "Result.value"),
    ("CHANGED n 1.5", "Result.n"),
    ("CHANGED colour 1", "Result.colour"),
    ("\xff", "decode"),
  ],
)
def test_a_bad_record_is_named_by_file_and_line(tmp_path, line, message):
  if line.startswith("CHANGED"):
    _, field, value = line.split()
    record = vars(result()) | {field: float(value) if value != "half" else value}
    line = json.dumps(record)
  path = tmp_path / "results.jsonl"
  append(path, [result()])
  with path.open("a", encoding="latin-1") as file:
    file.write(line + "\n")
  with pytest.raises(ResultsError, match=rf"results.jsonl:2: .*{message}") as error:
    read(path)
  assert "\n" not in str(error.value)


def test_a_torn_last_line_is_left_out_and_taken_away(tmp_path):
  path = tmp_path / "results.jsonl"
  whole = [result(), result(task="perplexity", metric=LOSS), result(task="perplexity", metric="bits_per_byte")]
  append(path, whole[:1])
  append(path, whole[1:])
  path.write_bytes(path.read_bytes()[:-5])
  assert read(path) == whole[:2]
  assert measured(path) == {result().measurement}  # the other one lacks figures
  append(path, whole[1:])
  assert read(path) == [*whole[:2], *whole[1:]] and measured(path) == {one.measurement for one in whole}
  path.write_bytes(b'{"run": "no')
  assert read(path) == [] and measured(path) == set()
  append(path, whole)
  assert read(path) == whole


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_figure_must_be_finite_and_none_of_its_measurement_is_written(tmp_path, value):
  path = tmp_path / "results.jsonl"
  with pytest.raises(ResultsError, match=r"results.jsonl: accuracy of drope, nope, .* must be finite"):
    append(path, [result(metric=LOSS), result(value=value)])
  assert not path.exists()

import dataclasses
import json
import math
from pathlib import Path

import pytest

from drope_jax.errors import ResultsError
from drope_jax.evaluate.results import Measurement, Result, append, measured, read

OLD = Path(__file__).parents[1] / "support" / "quickstart_725dc9e" / "results.jsonl"


def result(**changes) -> Result:
  fields = {"run": "drope", "method": "nope", "task": "needles", "context": 512, "extension": 4.0}
  return Result(**{**fields, "metric": "accuracy", "value": 0.5, "n": 200, "seed": 3, **changes})


def test_what_is_appended_is_read_in_order(tmp_path):
  path = tmp_path / "results.jsonl"
  first = [result(better="higher", values=(0.0, 1.0)), result(by="depth", at=0.25)]
  second = [result(task="perplexity", metric="loss", value=2.5, by="position", at=(128, 192))]
  second += [result(task="longbench", metric="score", by="words", at=(8000, None))]
  append(path, first)
  append(path, second)
  assert read(path) == first + second
  assert [one.figure.at for one in read(path)] == [None, 0.25, (128, 192), (8000, None)]


def test_the_file_is_plain_json_lines_with_the_fields_of_the_contract(tmp_path):
  path = tmp_path / "results.jsonl"
  append(path, [result(), result(by="position", at=(128, 192), settings={"samples": 3})])
  lines = path.read_text().split("\n")
  assert lines.pop() == ""
  fields = ["run", "method", "task", "context", "extension", "metric", "by", "at", "value", "n", "seed"]
  fields += ["low", "high", "better", "values", "command", "settings"]
  assert [list(json.loads(line)) for line in lines] == [fields] * 2
  assert (json.loads(lines[1])["at"], json.loads(lines[1])["settings"]) == ([128, 192], {"samples": 3})


def test_appending_leaves_earlier_bytes(tmp_path):
  path = tmp_path / "results.jsonl"
  append(path, [result()])
  before = path.read_bytes()
  append(path, [result(seed=4)])
  assert path.read_bytes().startswith(before)


def test_a_measurement_is_known_by_all_but_its_figures(tmp_path):
  path = tmp_path / "results.jsonl"
  assert measured(path) == set()
  append(path, [result(), result(by="depth", at=0.5, value=1.0)])
  assert measured(path) == {Measurement(run="drope", method="nope", task="needles", context=512, seed=3)}
  for change in ({"run": "r"}, {"method": "rope"}, {"task": "t"}, {"context": 1}, {"seed": 0}):
    assert result(**change).measurement not in measured(path)


def test_other_settings_are_another_measurement_whatever_their_order(tmp_path):
  path = tmp_path / "results.jsonl"
  append(path, [result(settings={"samples": 100, "beta": 1.25})])
  assert result(settings={"beta": 1.25, "samples": 100}).measurement in measured(path)
  for other in ({"samples": 200, "beta": 1.25}, {"samples": 100}, {}, None):
    assert result(settings=other).measurement not in measured(path)


# --- records of earlier versions ----------------------------------------------------------------


def test_records_of_725dc9e_are_read_as_if_they_were_written_today():
  written, found = [json.loads(line) for line in OLD.read_text().splitlines()], read(OLD)
  assert len(found) == len(written) > 100
  for old, new in zip(written, found, strict=True):
    unchanged = ("run", "method", "task", "context", "extension", "value", "n", "seed", "low", "high", "settings")
    assert all(getattr(new, name) == old[name] for name in unchanged)
  assert not any("@" in one.metric for one in found)
  parts = {(old["metric"], new.metric, new.by, new.at) for old, new in zip(written, found, strict=True)}
  assert ("loss@64-128", "loss", "position", (64, 128)) in parts
  assert ("accuracy@depth=0.25", "accuracy", "depth", 0.25) in parts
  assert ("loss@beta=1.20", "loss", "beta", 1.2) in parts
  assert ("loss", "loss", None, None) in parts and ("c", "c", None, None) in parts
  assert {(one.metric, one.better) for one in found} == {
    *((metric, "lower") for metric in ("loss", "bits_per_byte")),
    ("accuracy", "higher"),
    ("beta", None),
    ("c", None),
  }


@pytest.mark.parametrize(
  ("metric", "part"),
  [
    ("score@tokens=0-4096", ("score", "tokens", (0, 4096))),
    ("score@words=8000-", ("score", "words", (8000, None))),
    ("gain@distance=64", ("gain", "distance", 64)),
    ("string_match_all@depth=1", ("string_match_all", "depth", 1)),
  ],
)
def test_every_name_of_a_part_is_understood(tmp_path, metric, part):
  path = tmp_path / "results.jsonl"
  path.write_text(json.dumps({**_as_725dc9e(result()), "metric": metric}) + "\n")
  (found,) = read(path)
  assert (found.metric, found.by, found.at) == part


def test_a_record_from_before_there_were_settings_is_read(tmp_path):
  path = tmp_path / "results.jsonl"
  record = {name: value for name, value in _as_725dc9e(result()).items() if name != "settings"}
  path.write_text(json.dumps(record) + "\n")
  assert read(path) == [result(better="higher")] and read(path)[0].settings is None


def _as_725dc9e(one: Result) -> dict:
  return {name: value for name, value in vars(one).items() if name not in ("by", "at", "better", "values")}


# --- what is not a record -----------------------------------------------------------------------


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
    ("CHANGED at half", "Result.at"),
    ("\xff", "decode"),
  ],
)
def test_a_bad_record_is_named_by_file_and_line(tmp_path, line, message):
  if line.startswith("CHANGED"):
    _, field, value = line.split()
    record = dataclasses.asdict(result()) | {field: float(value) if value != "half" else value}
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
  whole = [result(), result(task="perplexity", metric="loss"), result(task="perplexity", metric="bits_per_byte")]
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
    append(path, [result(metric="loss"), result(value=value)])
  assert not path.exists()

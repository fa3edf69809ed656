"""The command experiments.evaluate."""

import json

import pytest
from support.tiny_run import contents

from drope_jax.workdir import sole_writer


def test_evaluate_measures_each_figure_once(command, files, tmp_path):
  before = contents(files / "finished")
  arguments = (
    f"--checkpoint={files / 'finished'}",
    f"--out={tmp_path / 'out'}",
    "--methods=rope,yarn",
    "--lengths=1x,32",
    "--tasks=perplexity",
    "--documents=2",
  )
  ended = command("experiments.evaluate", *arguments)
  assert ended.status == 0, ended.stderr
  results = (tmp_path / "out" / "results.jsonl").read_text()
  loss = {
    (r["method"], r["context"]): r
    for r in map(json.loads, results.splitlines())
    if (r["metric"], r["by"]) == ("loss", None)
  }
  assert loss.keys() == {("rope", 16), ("rope", 32), ("yarn", 16), ("yarn", 32)}
  assert {r["run"] for r in loss.values()} == {"finished"}
  assert loss["rope", 16]["value"] == loss["yarn", 16]["value"]
  assert loss["rope", 32]["n"] == 2 * 32
  assert command("experiments.evaluate", *arguments).status == 0
  assert (tmp_path / "out" / "results.jsonl").read_text() == results
  assert contents(files / "finished") == before


def test_a_run_behind_a_link_has_the_name_of_the_link_and_is_not_taken_for_another_of_that_name(
  command, files, tmp_path
):
  (tmp_path / "drop").symlink_to(files / "finished")
  out = tmp_path / "out" / "results.jsonl"
  arguments = (f"--checkpoint={tmp_path / 'drop'}", f"--out={out.parent}", "--lengths=1x", "--methods=rope")
  arguments += ("--tasks=perplexity", "--documents=2")
  assert command("experiments.evaluate", *arguments).status == 0
  records = [json.loads(line) for line in out.read_text().splitlines()]
  assert {record["run"] for record in records} == {"drop"}
  for record in records:
    record["settings"]["weights"] = "those of another seed"
  out.write_text("".join(json.dumps(record) + "\n" for record in records))
  before = out.read_bytes()
  ended = command("experiments.evaluate", *arguments)
  assert ended.status == 2 and f"--out: {out} has figures of another 'drop', whose weights at step 10" in ended.error()
  assert out.read_bytes() == before
  assert command("experiments.evaluate", *arguments, "--step=5").status == 0  # an earlier step is the same run


def test_a_second_evaluation_into_one_folder_is_refused(command, files, tmp_path):
  with sole_writer(tmp_path, "results"):
    ended = command("experiments.evaluate", f"--checkpoint={files / 'finished'}", f"--out={tmp_path}")
  assert ended.status == 1 and f"{tmp_path}: another process writes here" in ended.error()
  assert contents(tmp_path) == {}


def test_evaluate_names_a_split_that_is_missing(command, files, tmp_path):
  ended = command("experiments.evaluate", f"--checkpoint={files / 'wider'}", f"--out={tmp_path / 'out'}")
  assert ended.status == 2
  assert f"{files / 'unevaluated'}: the split 'heldout' is missing" in ended.error()
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
  ("arguments", "named", "status"),
  [
    (["--checkpoint=/nowhere/run"], "/nowhere/run", 1),
    (["--step=7"], "no checkpoint of step 7; there are 5, 10", 1),
    (["--methods=rope,yarm"], "method is 'yarm'; allowed: rope, ", 2),
    (["--methods=drope"], "method 'drope' is impossible for a checkpoint with positions RoPE", 2),
    (["--tasks=perplexity,needle"], "task is 'needle'; allowed: loops, needles, perplexity", 2),
    (["--lengths=0x"], "--lengths has '0x'", 2),
    (["--lengths=far"], "--lengths has 'far'", 2),
    (["--documents=few"], "documents", 2),
  ],
)
def test_evaluate_names_what_is_wrong_and_writes_nothing(command, files, tmp_path, arguments, named, status):
  if not arguments[0].startswith("--checkpoint"):
    arguments = [f"--checkpoint={files / 'finished'}", *arguments]
  ended = command("experiments.evaluate", *arguments, f"--out={tmp_path / 'out'}")
  assert named in ended.error()
  assert ended.status == status
  assert not (tmp_path / "out").exists()

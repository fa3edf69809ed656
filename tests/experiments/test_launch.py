"""The scripts of experiments/launch, as far as they can be tested without the machines that they are for."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from drope_jax.sharding import PRESETS

LAUNCH = Path(__file__).parents[2] / "experiments" / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))
RUN = {"CONFIG": "experiments/configs/pretrain.py:rope", "WORKDIR": "gs://bucket/a run"}
JOBSET = {
  **RUN, "IMAGE": "registry/drope:1", "SLICES": "2", "HOSTS": "4", "CHIPS": "4",
  "ACCELERATOR": "tpu-v5-lite-podslice", "TOPOLOGY": "4x4",
}  # fmt: skip
POD = {**RUN, "PROJECT": "p", "ZONE": "z", "TYPE": "v5litepod-16"}
# Programs that the scripts call, replaced by stubs that print their arguments.
STUBS = ("gcloud", "srun", "scontrol", "python", "git")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
  """A PATH with the stubs, each of which prints its arguments as a line of JSON."""
  directory = tmp_path_factory.mktemp("stubs")
  for name in STUBS:
    write_stub(directory / name)
  return f"{directory}{os.pathsep}{os.environ['PATH']}"


def write_stub(path):
  path.write_text(
    f"#!{sys.executable}\nimport json, os, sys\n"
    f"print(json.dumps([{path.name!r}, *sys.argv[1:]]))\n"
    f"sys.exit(int(os.environ.get({path.name.upper() + '_STATUS'!r}, 0)))\n"
  )
  path.chmod(0o755)


def launch(path, script, environment, *arguments):
  return subprocess.run(
    ["bash", str(LAUNCH / script), *arguments],
    env={"PATH": path, "HOME": "/tmp", **environment},
    capture_output=True,
    text=True,
  )


def calls(done):
  assert done.returncode == 0, done.stderr
  return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]


def known_flags(command):
  """The flags of `python -m experiments.train`, from a process of its own: they are global."""
  ended = command("-c", "import experiments.train; from absl import flags; print('\\n'.join(flags.FLAGS))")
  assert ended.status == 0, ended.stderr
  return set(ended.stdout.split())


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_scripts_parse_and_can_be_run(script):
  assert subprocess.run(["bash", "-n", str(script)]).returncode == 0
  assert os.access(script, os.X_OK)
  assert "set -euo pipefail" in script.read_text()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_what_is_not_given_is_named(path, script):
  done = launch(path, script.name, {})
  assert done.returncode != 0
  assert re.search(r"(CONFIG|IMAGE|PROJECT|OUT|usage): ", done.stderr)


def test_every_flag_is_one_of_the_command(command):
  known = known_flags(command)
  assert {"mesh", "coordinator", "workdir"} <= known
  text = "\n".join(file.read_text() for file in [*SCRIPTS, LAUNCH.parents[1] / "docs" / "howto" / "pod.md"])
  training = re.findall(r"experiments\.train[^`\n]*", text) + re.findall(r"for flag in ([^;]*);", text)
  used = {flag for line in training for flag in re.findall(r"--(\w+)", line)}
  assert {"config", "workdir", "distributed", "shared_workdir", "stopped_status"} <= used
  assert used <= known | {"all"}
  assert set(re.findall(r"--mesh=([a-z_]+)", text)) <= set(PRESETS)


def test_one_machine_passes_everything_on(path):
  (call,) = calls(launch(path, "one_machine.sh", RUN, "--mesh=fsdp", "--config.seed=1"))
  assert call == [
    "python", "-m", "experiments.train", f"--config={RUN['CONFIG']}", f"--workdir={RUN['WORKDIR']}",
    "--mesh=fsdp", "--config.seed=1",
  ]  # fmt: skip


@pytest.fixture
def stubbed_python3(path, tmp_path):
  """`path` with a stub of python3, for the scripts that use it to run the project's commands alone."""
  write_stub(tmp_path / "python3")
  return f"{tmp_path}{os.pathsep}{path}"


def test_the_speed_of_a_gpu_is_kept_and_its_flags_passed_on(stubbed_python3, tmp_path):
  bundle = tmp_path / "bundle"
  bundle.mkdir()
  for name in ("b.whl", "a.whl", "notes.txt"):
    (bundle / name).touch()
  environment = {"OUT": str(tmp_path / "out"), "BUNDLE": str(bundle)}
  installed, call = calls(launch(stubbed_python3, "one_gpu_speed.sh", environment, "--seconds=9"))
  assert installed[:4] == ["python3", "-m", "pip", "install"] and "--no-index" in installed
  assert [word for word in installed if word.startswith(str(bundle))] == [str(bundle / "a.whl"), str(bundle / "b.whl")]
  jsonl = f"--jsonl={tmp_path / 'out' / 'speed.jsonl'}"
  assert call == ["python3", "-m", "experiments.benchmarks.card", jsonl, "--seconds=9"] and (tmp_path / "out").is_dir()


def test_one_gpu_runs_the_seeds_one_after_the_other(stubbed_python3, tmp_path):
  given = ("partial_drop:small", "60", str(tmp_path), "3", "4")
  done = launch(stubbed_python3, "one_gpu.sh", {}, *given, "--", "--config.tail_steps=2")
  assert calls(done) == [
    ["python3", "-m", "experiments.study", "--config=experiments/studies/partial_drop.py:small",
     f"--workdir={tmp_path}/seed-{seed}", f"--config.seed={seed}", "--config.tail_steps=2"] for seed in "34"
  ]  # fmt: skip
  # Nothing is merged: no report of a seed is there.
  assert sorted(path.name for path in tmp_path.glob("seed*")) == []  # logs are elsewhere: `seed-*` names workdirs alone


@pytest.mark.parametrize(("finished", "merged"), [("0", False), ("01", True), ("07", True)])
def test_one_gpu_merges_the_finished_seeds_of_all_calls(stubbed_python3, tmp_path, finished, merged):
  for seed in finished:
    (tmp_path / f"seed-{seed}").mkdir()
    (tmp_path / f"seed-{seed}" / "report.md").touch()
  done = calls(launch(stubbed_python3, "one_gpu.sh", {}, "quickstart", "60", str(tmp_path), "0"))
  assert (["python3", "-m", "experiments.report", str(tmp_path)] in done) == merged


def test_one_gpu_ends_at_the_first_seed_that_fails(stubbed_python3, tmp_path):
  done = launch(stubbed_python3, "one_gpu.sh", {"PYTHON3_STATUS": "2"}, "quickstart", "60", str(tmp_path), "0", "1")
  assert done.returncode == 2 and done.stdout.count("experiments.study") == 1


@pytest.mark.slow
def test_one_gpu_stops_the_study_when_its_time_is_over(path, tmp_path):
  """The study gets SIGTERM and time to save; no other seed starts, and seeds that cannot be merged change nothing."""
  merge = 'case "$*" in *experiments.report*) echo refused; exit 1;; esac'
  study = tmp_path / "python3"
  study.write_text(f"#!/usr/bin/env bash\n{merge}\ntrap 'echo saved; exit 0' TERM\necho begun\nsleep 20 &\nwait\n")
  study.chmod(0o755)
  for seed in "34":
    (tmp_path / "out" / f"seed-{seed}").mkdir(parents=True)
    (tmp_path / "out" / f"seed-{seed}" / "report.md").touch()
  done = launch(f"{tmp_path}{os.pathsep}{path}", "one_gpu.sh", {}, "quickstart", "5", str(tmp_path / "out"), "0", "1")
  assert done.returncode == 75
  assert [line for line in done.stdout.splitlines() if " " not in line] == ["begun", "saved", "refused"]
  assert "the time ran out in seed 0" in done.stderr


def test_slurm_runs_a_process_for_each_gpu(path):
  text = (LAUNCH / "slurm.sh").read_text()
  directives = dict(line.removeprefix("#SBATCH --").split("=", 1) if "=" in line else (line, "")
                    for line in text.splitlines() if line.startswith("#SBATCH "))  # fmt: skip
  assert directives["ntasks-per-node"] == directives["gpus-per-node"]
  assert directives["signal"].startswith("TERM@")  # without `B:`, which would reach the shell alone
  head = text.split("set -euo")[0]
  assert head.count("#SBATCH") == text.count("#SBATCH")  # sbatch reads none after the first command
  (call,) = calls(launch(path, "slurm.sh", RUN, "--mesh=fsdp"))
  assert call[0] == "srun" and call[-1] == "--mesh=fsdp" and "--shared_workdir" in call


@pytest.mark.parametrize(("status", "requeued"), [("75", True), ("1", False)])
def test_slurm_queues_a_stopped_run_again(path, status, requeued):
  done = launch(path, "slurm.sh", {**RUN, "SRUN_STATUS": status, "SLURM_JOB_ID": "12"})
  assert done.returncode == int(status)
  assert ('["scontrol", "requeue", "12"]' in done.stdout) == requeued


def test_a_tpu_pod_runs_the_same_command_on_every_host(path):
  (created,) = calls(launch(path, "tpu_pod.sh", POD, "create", "--spot"))
  assert created[:5] == ["gcloud", "compute", "tpus", "queued-resources", "create"]
  assert {"--node-id=drope", "--accelerator-type=v5litepod-16", "--zone=z", "--spot"} <= set(created)
  (run,) = calls(launch(path, "tpu_pod.sh", POD, "run", "--mesh=fsdp"))
  assert run[:5] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh"] and "--worker=all" in run
  (remote,) = [argument for argument in run if argument.startswith("--command=")]
  assert "--workdir=gs://bucket/a\\ run" in remote and "--distributed --mesh=fsdp" in remote
  assert subprocess.run(["bash", "-n", "-c", remote.removeprefix("--command=")]).returncode == 0
  assert launch(path, "tpu_pod.sh", POD, "begin").returncode == 2
  where = {"PROJECT": "p", "ZONE": "z"}
  assert len(calls(launch(path, "tpu_pod.sh", where, "status"))) == 1
  for action, wanted in (("create", "TYPE"), ("run", "CONFIG")):
    done = launch(path, "tpu_pod.sh", where, action)
    assert done.returncode == 1 and f"{wanted}: " in done.stderr and not done.stdout


# The fields of jobset.x-k8s.io/v1alpha2, batch/v1 Job and core/v1 that the manifest may have, and those that it must:
# https://jobset.sigs.k8s.io/docs/reference/jobset.v1alpha2/
SCHEMA = {
  "apiVersion!": str, "kind!": str,
  "metadata!": {"name!": str, "annotations": dict},
  "spec!": {
    "failurePolicy": {"maxRestarts": int},
    "replicatedJobs!": [{
      "name!": str, "replicas": int,
      "template!": {"spec!": {
        "parallelism": int, "completions": int, "completionMode": str, "backoffLimit": int,
        "template!": {"spec!": {
          "restartPolicy!": str, "serviceAccountName": str, "terminationGracePeriodSeconds": int, "nodeSelector": dict,
          "containers!": [{
            "name!": str, "image!": str, "command": [str], "args": [str], "ports": [{"containerPort!": int}],
            "resources": {"limits": dict},
          }],
        }},
      }},
    }],
  },
}  # fmt: skip


def check(value, schema, at="manifest"):
  if isinstance(schema, dict):
    assert isinstance(value, dict), at
    allowed = {name.removesuffix("!"): inner for name, inner in schema.items()}
    assert set(value) <= set(allowed), f"{at}: unknown fields {set(value) - set(allowed)}"
    missing = {name[:-1] for name in schema if name.endswith("!")} - set(value)
    assert not missing, f"{at}: no {missing}"
    for name, inner in value.items():
      check(inner, allowed[name], f"{at}.{name}")
  elif isinstance(schema, list):
    assert isinstance(value, list) and value, at
    for item in value:
      check(item, schema[0], at)
  else:
    assert isinstance(value, schema), at


def test_the_jobset_has_a_job_for_each_slice_and_a_pod_for_each_host(path):
  yaml = pytest.importorskip("yaml")
  done = launch(path, "gke_jobset.sh", JOBSET, "--mesh=fsdp", "--config.mesh.dcn_data=2")
  assert done.returncode == 0, done.stderr
  manifest = yaml.safe_load(done.stdout)
  check(manifest, SCHEMA)
  assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
  (job,) = manifest["spec"]["replicatedJobs"]
  assert job["replicas"] == 2
  spec = job["template"]["spec"]
  assert spec["parallelism"] == spec["completions"] == 4 and spec["completionMode"] == "Indexed"
  pod = spec["template"]["spec"]
  assert pod["restartPolicy"] in ("Never", "OnFailure")  # what a Job allows
  assert pod["nodeSelector"] == {
    "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice", "cloud.google.com/gke-tpu-topology": "4x4",
  }  # fmt: skip
  (container,) = pod["containers"]
  assert container["args"][-2:] == ["--mesh=fsdp", "--config.mesh.dcn_data=2"]
  assert f"--workdir={RUN['WORKDIR']}" in container["args"]
  assert container["resources"]["limits"] == {"google.com/tpu": 4}
  assert int(container["args"][3].removeprefix("--stopped_status=")) != 0  # else a preempted run counts as done
  name = f"{manifest['metadata']['name']}-{job['name']}-0-0-abcde"
  assert re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", name)  # of a pod, whose name is a host name

"""The second start of commands on a CPU: what is set, where nothing is, and that it happens once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.pages import ROOT, blocks_of

import experiments
from drope_jax import cpu

CPU = {"JAX_PLATFORMS": "cpu"}
DEVICES = {**CPU, "DROPE_JAX_CPU": "devices"}
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux alone preloads")


@pytest.fixture(autouse=True)
def two_cores_and_an_allocator(monkeypatch):
  monkeypatch.setattr(cpu, "_mimalloc", lambda: "/x/libmimalloc.so")
  monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1})


def test_an_allocator_is_set_and_the_cores_where_they_are_asked_for():
  allocator = {"LD_PRELOAD": "/x/libmimalloc.so", "MIMALLOC_PURGE_DELAY": "-1", "DROPE_JAX_CPU": "set"}
  assert cpu.settings({**CPU, "XLA_FLAGS": "--other"}) == allocator
  patience = "--xla_cpu_collective_call_terminate_timeout_seconds"
  devices = "--xla_force_host_platform_device_count=2"
  for set_before, added in (("--other", f" {devices} {patience}=600"), (f"{patience}=7", f" {devices}")):
    found = cpu.settings({**DEVICES, "XLA_FLAGS": set_before})
    assert found == allocator | {"XLA_FLAGS": set_before + added}


@pytest.mark.parametrize(
  "environment",
  [
    {**CPU, "DROPE_JAX_CPU": "off"},
    {**CPU, "DROPE_JAX_CPU": "set"},
    {"JAX_PLATFORMS": "cuda,cpu"},
    {**DEVICES, "LD_PRELOAD": "mine.so", "JAX_NUM_CPU_DEVICES": "1"},
    {**DEVICES, "LD_PRELOAD": "mine.so", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"},
  ],
)
def test_nothing_is_set_where_that_is_wanted(environment):
  assert cpu.settings(environment) == {}


def test_an_accelerator_s_device_file_means_that_it_computes(monkeypatch, tmp_path):
  monkeypatch.setattr(cpu, "_ACCELERATORS", (f"{tmp_path}/accel*",))
  assert cpu.settings({})
  (tmp_path / "accel0").touch()
  assert not cpu.settings({}) and cpu.settings(CPU)


def test_the_cores_are_devices_without_the_allocator_too(monkeypatch):
  monkeypatch.setattr(cpu, "_mimalloc", lambda: None)
  assert set(cpu.settings(DEVICES)) == {"XLA_FLAGS", "DROPE_JAX_CPU"} and not cpu.settings(CPU)


PROGRAM = """
import sys
from pathlib import Path
from drope_jax import cpu
cpu.restart()
import jax, signal
blocked = signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])
print(jax.device_count(), "libmimalloc" in open("/proc/self/maps").read(), blocked, *sys.argv[1:])
"""


@pytest.fixture
def outside():
  """The environment of a program that a user starts."""
  environment = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "LD_PRELOAD")}
  return environment | CPU | {"PYTHONPATH": os.pathsep.join(sys.path)}


def test_a_program_starts_once_more_with_its_arguments(tmp_path, outside):
  path = tmp_path / "program.py"
  path.write_text(PROGRAM)

  def run(**more):
    done = subprocess.run([sys.executable, str(path), "--a=b c"], env=outside | more, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done

  cores = subprocess.run(["nproc"], capture_output=True, text=True, check=True).stdout.strip()
  done = run(DROPE_JAX_CPU="devices")
  assert done.stdout.split(maxsplit=3) == [cores, "True", "False", "--a=b c\n"]
  assert run(DROPE_JAX_CPU="").stdout.split()[:2] == ["1", "True"]
  assert done.stderr.count("DROPE_JAX_CPU=off") == 1
  assert run(DROPE_JAX_CPU="off").stdout.split()[:2] == ["1", "False"]


def test_the_page_s_command_gives_a_program_the_allocator(tmp_path, outside):
  (call,) = (block.code for block in blocks_of(ROOT / "docs/howto/gpu.md") if "cpu.settings()" in block.code)
  (tmp_path / "my_program.py").write_text('print("libmimalloc" in open("/proc/self/maps").read())')
  path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
  for setting, expected in (("", "True"), ("off", "False")):
    more = {"DROPE_JAX_CPU": setting, "PATH": path}
    done = subprocess.run(["bash", "-c", call], env=outside | more, cwd=tmp_path, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f"{expected}\n", "")


def test_a_mesh_that_nobody_asked_for_takes_the_devices_that_divide_the_rows():
  code = """
import jax
from drope_jax.config import MeshConfig
from drope_jax.sharding import PRESETS, make_mesh
print([make_mesh(PRESETS[name], rows=rows).size for name in ("dp", "fsdp") for rows in (12, 9, 6)])
print(make_mesh(MeshConfig()).size, make_mesh(MeshConfig(data=2, fsdp=2), rows=7).size)
"""
  environment = {**os.environ, **CPU, "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
  environment |= {"PYTHONPATH": os.pathsep.join(sys.path)}
  done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
  assert done.stdout == "[4, 3, 3, 4, 1, 2]\n4 4\n", done.stderr


def test_the_commands_that_start_early_are_those_that_compute():
  """Those are listed apart, since they start once more before anything of theirs is imported."""
  folder = Path(experiments.__file__).parent
  computing = [path.relative_to(folder) for path in folder.rglob("*.py") if "computes=True" in path.read_text()]
  assert sorted(".".join(path.with_suffix("").parts) for path in computing) == sorted(experiments.COMPUTING)


@pytest.mark.parametrize(
  ("words", "starts"),
  [
    *((("-m", f"experiments.{name}", "--out=x"), True) for name in experiments.COMPUTING),
    (("-m", "experiments.study", "--help"), False),
    (("-m", "experiments.report", "runs/x"), False),
  ],
)
def test_a_computing_command_starts_again_before_it_imports_anything(monkeypatch, words, starts):
  calls = []
  monkeypatch.setattr(cpu, "restart", lambda command: calls.append(words))
  monkeypatch.setattr(sys, "argv", ["-m", *words[2:]])  # as Python has it while it imports the package
  monkeypatch.setattr(sys, "orig_argv", [sys.executable, *words])
  path = Path(experiments.__file__)
  exec(compile(path.read_text(), str(path), "exec"), {"__name__": "experiments"})
  assert bool(calls) == starts


@pytest.mark.slow
def test_a_study_starts_again_and_says_so_once(tmp_path, outside):
  command = [sys.executable, "-m", "experiments.study", "--config=experiments/studies/fig4_bias_gradients.py"]
  done = subprocess.run(
    [*command, f"--workdir={tmp_path}", "--config.layers=(0,)", "--config.seeds=(0,)"],
    env=outside | {"DROPE_JAX_CPU": ""},
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  assert done.stderr.count("mimalloc keeps memory") == 1 and (tmp_path / "figures" / "bias_gradients.csv").exists()

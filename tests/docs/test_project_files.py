"""What stands beside the pages: the citation, the changelog, the list of public names, and what documents a field."""

import configparser
import dataclasses
import re

import pytest
import yaml
from support.pages import ROOT

import drope_jax
from drope_jax.config import DataConfig, InitConfig, OptimConfig, TrainConfig
from drope_jax.model_config import ComputeConfig, MeshConfig, ModelConfig, QKNorm


def test_the_citation_names_the_software_and_the_paper():
  citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
  assert {"cff-version", "message", "title", "authors"} <= citation.keys()
  assert (citation["version"], citation["license"]) == (drope_jax.__version__, "Apache-2.0")
  (paper,) = citation["references"]
  assert paper["identifiers"][0]["value"] == "arXiv:2512.12167"
  assert [author["family-names"] for author in paper["authors"]] == ["Gelberg", "Eguchi", "Akiba", "Cetin"]


def test_the_changelog_begins_with_this_version():
  first, *_ = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
  assert drope_jax.__version__ in first


def test_the_public_names_are_listed_and_lead_to_something():
  page = (ROOT / "docs" / "reference" / "api" / "index.md").read_text()
  table = page.split("| name |")[1].split("\n\n")[0]
  assert set(re.findall(r"`(\w+)`", re.sub(r"\|[^|\n]*\|\n", "|\n", table))) == set(drope_jax.__all__)
  assert all(getattr(drope_jax, name) is not None for name in drope_jax.__all__)


@pytest.mark.parametrize(
  "cls", [TrainConfig, InitConfig, DataConfig, OptimConfig, ModelConfig, QKNorm, ComputeConfig, MeshConfig]
)
def test_every_field_of_a_config_says_what_it_is(cls):
  page = (ROOT / "docs" / "reference" / "config.md").read_text()
  section = re.search(rf"^### {cls.__name__}\n(.*?)(?=^##|\Z)", page, re.DOTALL | re.MULTILINE)[1]
  rows = dict(re.findall(r"^\| `(\w+)` \|.*\| (.*) \|$", section, re.MULTILINE))
  assert list(rows) == [field.name for field in dataclasses.fields(cls)]
  assert all(rows.values()), f"no comment stands beside {[name for name, said in rows.items() if not said]}"


def test_what_contributing_installs_can_be_installed():
  parser = configparser.ConfigParser()
  parser.read(ROOT / "setup.cfg")
  text = (ROOT / "CONTRIBUTING.md").read_text() + (ROOT / "README.md").read_text()
  extras = {extra for found in re.findall(r"\.\[([\w,]+)\]", text) for extra in found.split(",")}
  assert extras and extras <= set(parser["options.extras_require"])

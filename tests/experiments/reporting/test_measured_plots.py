"""What the pictures of measurements show: intervals in the maps, samples against the control's, and rotations."""

import dataclasses
import json

import matplotlib.pyplot as plt
import numpy as np
import pytest
from support.study_records import ACCURACIES, CONTEXT, LOSSES, MODEL, figures, study_of

from drope_jax.evaluate.results import Result
from drope_jax.positions import RoPE
from drope_jax.serialization import to_dict
from drope_jax.transitions import Drop, Keep, PartialDrop
from experiments.plan import Pretrained
from experiments.reporting.measured_plots import plot_frequencies, plot_parts, plot_samples, plot_summary


@pytest.fixture(autouse=True)
def closed():
  yield
  plt.close("all")


def test_a_map_says_its_interval_and_its_samples(workdir):
  found = figures({}, ACCURACIES)
  canvas = plot_parts(study_of(workdir, found), "needles", "accuracy", "depth")
  assert "n = 200 in each cell" in canvas.get_supylabel()
  (workdir / "results.jsonl").unlink()
  common = {"run": "drope", "method": "nope", "task": "needles", "metric": "accuracy", "by": "depth", "seed": 0}
  cells = [
    Result(value=0.5, low=0.25, high=0.75, at=at, n=n, context=c, extension=c / CONTEXT, **common)
    for c in (128, 256)
    for at, n in ((0.0, 16), (1.0, 20))
  ]
  canvas = plot_parts(study_of(workdir, cells), "needles", "accuracy", "depth")
  assert {text.get_text() for text in canvas.axes[0].texts} == {"50", "25–75, n 16", "25–75, n 20"}


def test_samples_are_drawn_less_the_controls_where_they_are_the_same(workdir):
  common = {"task": "toy", "metric": "loss", "context": 256, "extension": 2.0, "n": 3, "seed": 0}
  texts = {("rope_continued", "rope"): "a", ("drope", "nope"): "a", ("nope", "nope"): "b"}
  values = {("rope_continued", "rope"): (1.0, 2.0, 3.0), ("drope", "nope"): (1.5, 2.25, 3.0)}
  found = [
    Result(
      run=run, method=how, value=2.0, values=values.get((run, how), (1.0, 1.0, 1.0)), settings={"text": text}, **common
    )
    for (run, how), text in texts.items()
  ]
  canvas = plot_samples(study_of(workdir, found), "toy")
  (axes,) = canvas.axes
  assert [label.get_text() for label in axes.get_yticklabels()] == ["DroPE, β = 1"]
  (dots,) = axes.collections
  assert sorted(dots.get_offsets()[:, 0].tolist()) == [0.0, 0.25, 0.5]


def test_answers_that_are_right_or_wrong_have_no_such_picture(workdir):
  common = {"task": "toy", "metric": "accuracy", "context": 256, "extension": 2.0, "n": 2, "seed": 0}
  pairs = (("rope_continued", "rope"), ("drope", "nope"))
  found = [Result(run=run, method=how, value=0.5, values=(0.0, 1.0), **common) for run, how in pairs]
  assert plot_samples(study_of(workdir, found), "toy") is None


def test_every_task_has_a_panel(workdir):
  shared = {"context": 256, "extension": 2.0, "n": 50, "seed": 0, "run": "drope", "method": "nope"}
  tasks = {"order": "latest", "induction": "accuracy", "copy": "loss", "loops": "looping", "arc_easy": "accuracy"}
  others = [Result(task=task, metric=metric, value=0.5, **shared) for task, metric in tasks.items()]
  canvas = plot_summary(study_of(workdir, [*figures(LOSSES, {}), *others]))
  titles = [axes.get_title() for axes in canvas.axes if axes.axison]
  assert len(titles) == 6 and all(any(task in title for title in titles) for task in tasks)


def test_titles_of_maps_do_not_run_into_each_other(workdir):
  common = {"task": "needles", "metric": "accuracy", "by": "depth", "seed": 0, "n": 10, "value": 0.5}
  methods = [f"a method whose name is long, number {i}" for i in range(8)]
  found = [
    Result(run="drope", method=method, at=at, context=c, extension=c / CONTEXT, **common)
    for method in methods
    for c in (128, 256)
    for at in (0.0, 1.0)
  ]
  canvas = plot_parts(study_of(workdir, found), "needles", "accuracy", "depth")
  canvas.draw_without_rendering()
  boxes = [axes.title.get_window_extent() for axes in canvas.axes if axes.get_title()]
  assert len(boxes) == 8 and not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
  panels = [axes.get_window_extent() for axes in canvas.axes]
  assert not any(box.overlaps(panel) for box in boxes for panel in panels)


def test_rotations_are_those_of_the_model_that_was_measured_also_where_nothing_was_trained(workdir):
  """Of the 16 pairs of the quickstart's model, six make a full turn in 128 tokens."""
  changes = {"whole": (Keep(), "rope"), "partly": (PartialDrop(turns=1.0), "rope"), "dropped": (Drop(), "nope")}
  held = to_dict(dataclasses.replace(MODEL, positions=RoPE()))
  changed = {
    "arms": [{"label": run, "runs": [run]} for run in changes],
    "rows": [{"run": run, "method": method, "label": run} for run, (_, method) in changes.items()],
    "pretrained": {run: {**to_dict(Pretrained("model", how)), "model": held} for run, (how, _) in changes.items()},
  }
  path = workdir / "study.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | changed))
  common = {"task": "perplexity", "metric": "loss", "context": 256, "extension": 2.0, "value": 3.0, "n": 9, "seed": 0}
  found = [Result(run=run, method=method, **common) for run, (_, method) in changes.items()]
  (axes,) = plot_frequencies(study_of(workdir, found)).axes
  labels = [text.get_text() for text in axes.texts]
  drawn = [line.get_ydata().tolist() for line in axes.lines if len(line.get_xdata()) == 16]
  assert sorted(labels) == sorted(changes) and len(drawn) == 3
  np.testing.assert_array_equal(drawn, [[1.0] * 16, [1.0] * 6 + [0.0] * 10, [0.0] * 16])

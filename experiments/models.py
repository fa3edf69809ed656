"""The models of a study's runs, worked out from its configs before any run exists."""

from pathlib import Path

from drope_jax import checkpoint
from drope_jax.config import ModelConfig, TrainConfig
from drope_jax.training.run import resolve, start_from
from experiments.plan import Pretrained, Study, run_directory


def run_models(study: Study, workdir: Path) -> dict[str, ModelConfig]:
  """The model of every run.

  No run need exist yet, nor a checkpoint from elsewhere if its InitConfig or Pretrained names the model that it holds.
  """
  models: dict[str, ModelConfig] = {}
  by_path = {str(run_directory(workdir, name)): name for name in study.runs}
  for name, run in study.runs.items():
    start = run if isinstance(run, Pretrained) else run.init
    model = None if start is None else models.get(by_path.get(start.checkpoint, ""))
    if start is not None and model is None and not (Path(start.checkpoint) / "checkpoints").exists():
      model = start.model
    if isinstance(run, TrainConfig):
      models[name] = resolve(run).model if model is None else start_from(run, model).model
    elif model is None:
      found = checkpoint.open_step(run.checkpoint)
      models[name] = run.transition.apply(found.model, found.context)
    else:
      models[name] = run.transition.apply(model, study.train_context)
  return models

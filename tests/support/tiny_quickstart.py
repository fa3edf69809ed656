"""The smallest settings of the quickstart that keep all of its parts."""

SETTINGS = (
  "--steps=4",  # the recalibration is scaled with them
  "--config.context=32",
  "--config.extensions=(1, 2)",
  "--config.batch_size=2",
  "--config.model.num_layers=2",
  "--config.model.d_model=16",
  "--config.model.num_heads=2",
  "--config.model.num_kv_heads=2",
  "--config.model.head_dim=8",
  "--config.model.d_ff=24",
  "--config.packages=('absl', 'optax')",
  "--config.documents=2",
  "--config.needles_per_depth=1",
)

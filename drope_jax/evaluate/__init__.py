"""How well a model does beyond its training context, under every inference-time method."""

"""Evaluation of models beyond their training context, under every inference-time method."""

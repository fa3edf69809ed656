"""The parts of a training run, which train.py puts together."""

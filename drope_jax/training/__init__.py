"""The parts of a run that train.py puts together: what it is, its first state, one step, what it says of itself."""

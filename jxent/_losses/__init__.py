"""The losses of the top level: each function checks its arguments and calls an engine."""

"""What people call at the top level: each function checks its arguments and calls an engine."""

"""The command line: its verbs, what they compute, read, show and write."""

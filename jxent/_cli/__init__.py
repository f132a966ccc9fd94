"""The command line: a file for each verb, and files for the work that a verb calls."""

"""The command line: its verbs, and the exit code of each.

    python -m jxent [train]    train two classifiers and say which has the lower cross-entropy
    python -m jxent check      only the gradient check
    python -m jxent bench      time and memory of every loss beside others'
    python -m jxent compare    which of several models' saved predictions are better, and how sure

Exit codes: 0 done; 1 something failed or missed its bound; 2 a flag is wrong; 130 interrupted.
A verb is one file: it adds its parser, with the function to run.  A new verb joins VERBS.
"""

import argparse
import io
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from jxent._cli.bench import add_bench
from jxent._cli.check import add_check
from jxent._cli.common import BAD_FLAG, FAILED, INTERRUPTED, PROGRAM, CommandError
from jxent._cli.compare import add_compare
from jxent._cli.train import add_train

VERBS = (add_train, add_check, add_bench, add_compare)


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Refuse the arguments."""
        raise CommandError(f"{message} (see {self.prog} --help)", BAD_FLAG)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that knows only ASCII gets a "?"
    parser = make_parser()
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help")):
        arguments = ["train", *arguments]
    try:
        options = parser.parse_args(arguments)
        return int(options.run(options))
    except CommandError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return error.code
    except BrokenPipeError:
        # The reader of standard output has gone: leave nothing for the interpreter to flush there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted", file=sys.stderr)
        return INTERRUPTED


def make_parser() -> Parser:
    """Make the parser of all verbs."""
    parser = Parser(
        prog=PROGRAM,
        description="Cross-entropy for JAX: a real training run, and the checks behind it.",
        epilog=f"Without a verb: train, with train's flags (see {PROGRAM} train --help).",
        allow_abbrev=False,
    )
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for add in VERBS:
        add(verbs)
    return parser

"""`python -m jxent`: the command line."""

import sys

from jxent.cli import main

if __name__ == "__main__":
    sys.exit(main())

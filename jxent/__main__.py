"""`python -m jxent`: the command line."""

import sys

from jxent._cli.main import main

if __name__ == "__main__":
    sys.exit(main())

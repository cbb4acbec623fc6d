"""`python -m preftune`, as torchrun and accelerate start a module."""

import sys

from preftune.cli.main import main

if __name__ == "__main__":
    sys.exit(main())

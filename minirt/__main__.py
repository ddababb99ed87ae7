"""`python -m minirt` is the `minirt` command."""

import sys

from minirt.cli import main

if __name__ == "__main__":
    sys.exit(main())

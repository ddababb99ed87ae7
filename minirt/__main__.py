#!/usr/bin/env python3
"""The `minirt` command: installed as this script, and what `python -m minirt` runs (see hatch_build.py)."""

from minirt.cli import program

if __name__ == "__main__":
    program()

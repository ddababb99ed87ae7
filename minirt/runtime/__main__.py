#!/usr/bin/env python3
"""The `minirt-oci` command: installed as this script, and what `python -m minirt.runtime` runs (see hatch_build.py)."""

from minirt.child import oci_runtime

if __name__ == "__main__":
    oci_runtime()

"""`python -m minirt` is the `minirt` command."""

from minirt.cli import program

if __name__ == "__main__":
    program()

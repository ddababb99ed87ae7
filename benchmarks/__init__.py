"""How fast minirt is beside docker, podman, runc and others: `python -m benchmarks`, as root, on Linux.

    measure.py    one act measured: wall time, processor time of all who take part, peak memory
    images.py     images of several shapes, made of this machine's own files
    engines.py    who is measured: minirt, docker, podman, runc; each in a control group of its own
    case.py       what a case is, and how its rounds go: in pairs, turn by turn
    pull.py start.py lists.py memory.py notebook.py      the cases
    report.py     the page, its plots and the JSON

All of it lies on tmpfs (/dev/shm) and is gone at the end; the images stay in the tests' cache folder.
"""

import sys
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TOP / "tests")]  # dockerd.py, realimages.py and registries.py are the tests' own

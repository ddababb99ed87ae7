"""One more process in a running container: it joins what init has (namespaces, cgroup, filter) and becomes a command.

Nothing of the image's is run or read on the way, but for the files that the command's name and user mean inside.
Sources: runc's and crun's `exec`, setns(2), CVE-2019-5736, CVE-2022-29162. Taught in chapter 08.
"""

from __future__ import annotations

import os

from minirt.errors import StartError
from minirt.runtime import mounts
from minirt.runtime.process import Process


class Exec(Process):
    STEPS = ("session", "inside", "streams", "label", "limits", "privileges", "wait", "command")

    def inside(self) -> None:
        root = mounts.Root("/")
        self.resolve(root)
        cwd = self.process["cwd"]
        try:
            self.cwd = root.open(cwd, os.O_PATH | os.O_DIRECTORY)  # no descriptor of ours by /proc/self/fd, either
        except OSError as error:
            raise StartError(
                f'chdir to cwd ("{cwd}") set in config.json failed: {(error.strerror or "").lower()}'
            ) from error
        os.close(root.fd)

    def wait(self) -> None:
        """The parent writes down that we exist; then its line closes with the command's start."""
        self.confirm(ready=True)

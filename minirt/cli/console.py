"""What a verb's handler gets: the client it asks, and the two streams it may write to.

Text from an image, a registry or a container never moves the terminal's cursor: `clean` takes control characters out.
"""

from __future__ import annotations

import sys

from minirt.errors import MinirtError, NotFound, Unsupported

TYPE_CHECKING = False  # typing's own loads for 2 ms
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from minirt.client import Client


class Console:
    """One invocation. `title` is the verb's full name for messages; `failure` the exit status of our own errors."""

    def __init__(self, title: str, root: str | None = None) -> None:
        self.title = title
        self.root = root
        self.host: str | None = None
        self.failure = 1
        self._client: Client | None = None

    @property
    def client(self) -> Client:
        """Made when first asked for: `--help` and `hub` need none."""
        if self._client is None:
            from minirt.client import Client

            self._client = Client(root=self.root, host=self.host, tell=self.warn)
        return self._client

    def print(self, text: str, end: str = "\n") -> None:
        """A line of result; without its end it is a question, shown at once."""
        print(text, end=end, flush=not end)

    def flush(self) -> None:
        """Show at once what was printed."""
        if sys.stdout is not None:
            sys.stdout.flush()

    def warn(self, text: object) -> None:
        """A line beside the result, on standard error; results written before it are shown before it."""
        self.flush()
        if sys.stderr is not None:  # print would take None for standard output
            print(clean(str(text)), file=sys.stderr, flush=True)

    def error(self, error: object) -> None:
        """A failure, in the one form they have."""
        self.warn(f"minirt: {error}")

    def each(
        self,
        names: Iterable[str],
        act: Callable[[str], None],
        force: bool = False,
        tell: Callable[[str], None] | None = None,
    ) -> int:
        """Do it for every name, telling failures as they come; the exit status: 1 if any failed.

        With `force`, a name that is not there is told but is no failure, as docker has it.
        """
        failed = 0
        for name in names:
            try:
                act(name)
            except MinirtError as error:
                (tell or self.error)(str(error))
                failed |= not (force and isinstance(error, NotFound))
        return failed

    def needs_linux(self) -> None:
        """Raises Unsupported where containers cannot run."""
        if sys.platform != "linux":
            instead = "in WSL 2" if sys.platform == "win32" else "in a Linux virtual machine (for example Lima)"
            raise Unsupported(f"containers need a Linux kernel: use {self.title!r} {instead}; pulling works here too")


def clean(text: str) -> str:
    """The text on one line, with nothing a terminal would obey."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else " " for letter in text)

"""The streams of one process of a container, and who is attached to them.

The process has pipes of ours, or a terminal whose master is ours; somebody attached has handed over ends of their own.
What one of them types goes in; what comes out goes to the log and to all of them. Taught in chapter 08.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Sequence

from minirt.runtime import terminal
from minirt.runtime.control import Connection
from minirt.runtime.pump import Copy, Pump, Sink

# Starts a process on (stdin, stdout, stderr), or with a console socket; its pid as we see it, and a pidfd.
Make = Callable[[tuple[int | None, int, int], int | None], tuple[int, int]]


class Client:
    """Somebody attached: their ends, and the line they came by (None: who started us).

    `typed`: the end of their stdin is one, and not that of a daemon that was killed.
    """

    def __init__(self, line: Connection | None) -> None:
        self.line = line
        self.typed = line is None
        self.input: Copy | None = None
        self.sinks: list[Sink] = []


class Process:
    """A process that `make` starts. `code` is None while it runs, then its exit status (128 + signal)."""

    def __init__(self, pump: Pump, make: Make, tty: bool, open_stdin: bool, stdin_once: bool = True) -> None:
        self.clients: list[Client] = []
        self.code: int | None = None
        self.master = -1
        self._pump, self._stdin_once = pump, stdin_once
        self._input: Sink | None = None
        with contextlib.ExitStack() as theirs:
            if tty:
                self._with_terminal(make, theirs)
            else:
                self._with_pipes(make, open_stdin, theirs)
        pump.copies += self.outputs

    def _with_terminal(self, make: Make, theirs: contextlib.ExitStack) -> None:
        ours, console = terminal.console_pair()
        theirs.enter_context(ours), theirs.enter_context(console)
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        theirs.callback(os.close, null)
        self.pid, self.pidfd = make((null, null, null), console.fileno())
        self.master = terminal.receive(ours)
        self.outputs = [Copy(os.dup(self.master), [], "stdout")]
        self._input = Sink(os.dup(self.master))

    def _with_pipes(self, make: Make, open_stdin: bool, theirs: contextlib.ExitStack) -> None:
        pipes = [os.pipe() for _ in range(3 if open_stdin else 2)]
        (out, out_end), (err, err_end) = pipes[:2]
        stdin, entry = pipes[2] if open_stdin else (None, None)
        for fd in (out_end, err_end, stdin):
            if fd is not None:
                theirs.callback(os.close, fd)
        try:
            self.pid, self.pidfd = make((stdin, out_end, err_end), None)
        except BaseException:
            for fd in (out, err, entry):
                if fd is not None:
                    os.close(fd)
            raise
        if entry is not None:
            os.set_blocking(entry, False)
            self._input = Sink(entry)
        self.outputs = [Copy(out, [], "stdout"), Copy(err, [], "stderr")]

    def attach(self, fds: Sequence[int | None], line: Connection | None) -> Client:
        """Join (stdin, stdout, stderr) of somebody to the process'; the descriptors become ours."""
        client = Client(line)
        stdin, *others = fds
        for number, fd in enumerate(others):
            if fd is not None and number < len(self.outputs):
                sink = Sink(fd, ("stdout", "stderr")[number])
                self.outputs[number].sinks.append(sink)
                client.sinks.append(sink)
            elif fd is not None:
                os.close(fd)
        if stdin is not None and self._input is not None and self._input.fd is not None:
            client.input = Copy(stdin, [self._input])
            self._pump.copies.append(client.input)
            self._pump.after[client.input] = lambda: self._input_over(client)
        elif stdin is not None:
            os.close(stdin)
        self.clients.append(client)
        return client

    def end_input(self, client: Client) -> None:
        """They say that they have typed all: once it is read, it is over."""
        client.typed = True
        if client.input and client.input not in self._pump.after:
            self._input_over(client)

    def _input_over(self, client: Client) -> None:
        """Their stdin has ended: the process' ends too, but for a terminal or one kept open for others."""
        if client.typed and self.master < 0 and self._input and self._stdin_once:
            self._input.close()

    def detach(self, client: Client) -> None:
        """Let go of their ends; the process goes on, and its stdin ends if theirs had."""
        if client.input:
            client.input.close()
            if self._pump.after.pop(client.input, None):
                self._input_over(client)
        for sink in client.sinks:
            sink.close()
        self.clients.remove(client)

    def ended(self, status: int) -> None:
        """It is reaped: take what its streams still hold. `status` as waitpid(2) gives it."""
        code = os.waitstatus_to_exitcode(status)
        self.code = code if code >= 0 else 128 - code
        for output in self.outputs:
            output.drain()

    def then(self, call: Callable[[], None]) -> None:
        """Call once all its output has been handed on to who stays for it. It has ended."""

        busy = [output for output in self.outputs if output.busy]

        def handed(output: Copy) -> None:
            busy.remove(output)
            if not busy:
                call()

        for output in list(busy):
            self._pump.after[output] = functools.partial(handed, output)
        if not busy:
            call()

    def close(self) -> None:
        """Tell those attached how it ended, and let go of everything. Its output has been handed on."""
        for client in list(self.clients):
            if client.line:
                with contextlib.suppress(OSError):
                    client.line.send({"exit_code": self.code})
            self.detach(client)
        if self._input:
            self._input.close()
        for fd in (self.pidfd, self.master):
            if fd >= 0:
                os.close(fd)

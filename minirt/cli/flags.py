"""Options as docker reads them (its library is spf13/pflag): what a command takes, from its own help text.

A command is declared by the two texts its `--help` prints. The usage line is the grammar of its arguments:
`SOURCE TARGET` is two, `[NAME]` at most one, `NAME [NAME...]` at least one. An option line is the option:

    -e, --env list     Set environment variables        a list may be given again; a word other than list or int: text
        --rm           Remove it when it exits          no word: a switch, which also takes =true and =false
        --net string   -                                known, but not in the help

Short options join (`-it`, `-eA=b`), an option's value may begin with a dash, `--` ends the options. Where the arguments
hold somebody else's command (`run`), options end at the first argument.
"""

from __future__ import annotations

import os

from minirt.errors import InvalidInput

TYPE_CHECKING = False  # typing's own loads for 2 ms
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from minirt.cli.console import Console

_TRUTH = dict.fromkeys(("1", "t", "T", "TRUE", "true", "True"), True)
_TRUTH |= dict.fromkeys(("0", "f", "F", "FALSE", "false", "False"), False)

Values = dict[str, "Any"]
if TYPE_CHECKING:
    Handler = Callable[[Console, Values, list[str]], int | None]


class UsageError(InvalidInput):
    """The command line does not parse; the front says where the help is. As docker, 125 for options, else 1."""

    def __init__(self, message: str, exit_code: int = 125) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Option:  # a dataclass, and a named tuple too, would load for longer than a command parses
    """One option: `kind` is `switch`, `int`, `list`, or any other word for a text."""

    __slots__ = ("help", "kind", "name", "short")

    def __init__(self, short: str, name: str, kind: str, help: str) -> None:
        self.short, self.name, self.kind, self.help = short, name, kind, help

    @property
    def spelled(self) -> str:
        return (f"-{self.short}, " if self.short else "") + f"--{self.name}"

    @property
    def unset(self) -> Any:
        """What it is when not given: a switch's help may end in `(default true)`."""
        return {"switch": self.help.endswith("(default true)"), "list": []}.get(self.kind)

    def put(self, values: Values, text: str) -> None:
        """Take a value as it was typed. Raises UsageError."""
        value: Any = text
        try:
            value = _TRUTH[text] if self.kind == "switch" else int(text) if self.kind == "int" else text
        except (KeyError, ValueError):
            wanted = "true or false" if self.kind == "switch" else "a number"
            raise UsageError(f'invalid argument "{text}" for "{self.spelled}" flag: not {wanted}') from None
        values[self.name] = [*values[self.name], value] if self.kind == "list" else value


def _option(line: str) -> Option:
    """Of its line in the help. Without a regular expression: to load re takes longer than all the rest of a parse."""
    spelled, _, help = line.partition("  ")
    short, comma, long = spelled.rpartition(", ")
    name, _, kind = long.partition(" ")
    assert name.startswith("--") and help and len(short) == 2 * len(comma) / len(", "), line
    return Option(short.removeprefix("-"), name.removeprefix("--"), kind or "switch", help.lstrip())


class Command:
    """A verb: what runs it, its two help texts, and how it fails.

    `interspersed`: options may follow arguments. `failure`: exit status of our own errors, where not 1.
    """

    def __init__(
        self, handler: Handler, usage: str, options: tuple[Option, ...], interspersed: bool = True, failure: int = 1
    ) -> None:
        self.handler, self.usage, self.options = handler, usage, options
        self.interspersed, self.failure = interspersed, failure

    def parse(self, title: str, words: list[str]) -> tuple[Values, list[str]]:
        """A command line's option values by long name, and its arguments; `help` alone where help is asked for.

        `title` is how the command was called (`minirt run`), for the messages. Raises UsageError.
        """
        values: Values = {option.name: option.unset for option in self.options}
        arguments: list[str] = []
        long, short = {option.name: option for option in self.options}, {o.short: o for o in self.options if o.short}
        left = list(words)
        while left:
            word = left.pop(0)
            if word == "--":
                arguments += left
                break
            if not word.startswith("-") or word == "-":
                arguments.append(word)
                if not self.interspersed:
                    arguments += left
                    break
                continue
            if word in ("--help", "-h") and word.strip("-") not in short:
                return {"help": True}, []
            if word.startswith("--"):
                name, given, text = word[2:].partition("=")
                if name not in long:
                    raise UsageError(f"unknown flag: --{name}")
                self._take(values, long[name], text if given else None, left, f"--{name}")
                continue
            letters = word[1:]
            while letters:
                letter, letters = letters[0], letters[1:]
                if letter not in short:
                    raise UsageError(f"unknown shorthand flag: '{letter}' in {word}")
                joined = None
                if letters.startswith("=") or (letters and short[letter].kind != "switch"):
                    joined, letters = letters.removeprefix("="), ""
                self._take(values, short[letter], joined, left, f"'{letter}' in {word}")
        self._count(title, len(arguments))
        return values, arguments

    @staticmethod
    def _take(values: Values, option: Option, text: str | None, left: list[str], spelled: str) -> None:
        """Take an option's value: joined to it, or the next word."""
        if text is None and option.kind != "switch" and not left:
            raise UsageError(f"flag needs an argument: {spelled}")
        option.put(values, text if text is not None else "true" if option.kind == "switch" else left.pop(0))

    def _count(self, title: str, given: int) -> None:
        words = self.usage.split()
        least = sum(not word.startswith("[") for word in words)
        if given < least or (given > len(words) and "..." not in self.usage):
            bound = "" if least == len(words) else "at least " if given < least else "at most "
            number = least if given < least else len(words)
            wants = f"requires {bound}{number} argument{'s' * (number != 1)}" if words else "accepts no arguments"
            raise UsageError(f"'{title}' {wants}", 1)

    def help(self, title: str, summary: str, aliases: list[str]) -> str:
        """The text of `--help`."""
        blocks = [f"Usage:  {title}{' [OPTIONS]' * bool(self.options)} {self.usage}".rstrip(), summary]
        blocks += ["Aliases:\n  " + ", ".join(aliases)] * bool(aliases)
        if self.options:
            blocks.append("Options:\n" + self.option_lines())
        return "\n\n".join(blocks)

    def option_lines(self) -> str:
        """The options by name, wrapped to the terminal."""
        import textwrap

        ordered = sorted((o for o in self.options if o.help != "-"), key=lambda option: option.name)
        left = [
            f"  {o.spelled if o.short else f'    --{o.name}'} {o.kind.replace('switch', '')}".rstrip() for o in ordered
        ]
        column = max(map(len, left)) + 3
        try:
            wide = os.get_terminal_size(1).columns or 80
        except OSError:
            wide = 80
        wrap = textwrap.TextWrapper(max(wide, column + 30) - 1, subsequent_indent=" " * column, break_on_hyphens=False)
        lines = []
        for spelled, option in zip(left, ordered, strict=True):
            wrap.initial_indent = spelled.ljust(column)
            lines.append(wrap.fill(option.help))
        return "\n".join(lines)


def command(usage: str = "", options: str = "", **settings: Any) -> Callable[[Handler], Command]:
    """Declare a verb: a decorator that makes a `Command` of its handler."""
    parsed = tuple(_option(line.strip()) for line in options.splitlines() if line.strip())
    return lambda handler: Command(handler, usage, parsed, **settings)

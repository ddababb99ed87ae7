"""The `minirt` command: docker's verbs, options, columns and messages. Only this room prints.

It speaks to `minirt.client` alone, and to `hub` and `notebook` for the two verbs that are those boxes. A verb's module
is imported when the verb is called, so that `minirt run` starts fast. The verbs are taught with their nouns' chapters.
Exit status, as docker's: 125 for an option we do not know or any failure of ours in `run`; 126, 127, 128+n the
container's, 1 where its output could not be handed on; 130 interrupted; 141 nobody reads our output; else 1.
"""

from __future__ import annotations

import gc
import os
import sys

from minirt.cli.console import Console
from minirt.cli.flags import Command, UsageError, Values, command
from minirt.errors import MinirtError, StartError
from minirt.lean import suppress

TYPE_CHECKING = False  # typing's own loads for 2 ms
if TYPE_CHECKING:
    from typing import NoReturn

BUG = 70  # EX_SOFTWARE of sysexits.h

# verb: (module, what it does). A verb's `Command` is its module's variable of that name, a blank written as "_".
VERBS = {
    "run": ("run", "Create a container from an image and run a command in it"),
    "create": ("run", "Create a container from an image, to be started later"),
    "exec": ("exec", "Run one more command in a running container"),
    "ps": ("containers", "List containers"),
    "pull": ("images", "Download an image from a registry"),
    "push": ("images", "Upload an image to a registry"),
    "images": ("images", "List images"),
    "login": ("login", "Log in to a registry"),
    "logout": ("login", "Log out from a registry"),
    "version": ("system", "Show the versions of the client and of the engine"),
    "info": ("system", "Show what the engine is and has"),
    "attach": ("attach", "Join our terminal or streams to a running container"),
    "commit": ("changes", "Make an image of what a container changed"),
    "cp": ("copy", "Copy files between a container and this machine"),
    "diff": ("changes", "Show what a container changed in its files"),
    "export": ("changes", "Write a container's files to a tar archive"),
    "history": ("images", "Show the steps an image was made in"),
    "import": ("changes", "Make an image of a tar archive's files"),
    "inspect": ("inspect", "Show all that is known of containers, images and others, as JSON"),
    "kill": ("containers", "Send a signal to running containers"),
    "load": ("archive", "Load images from a tar archive"),
    "logs": ("containers", "Show what a container printed"),
    "pause": ("running", "Hold containers still"),
    "port": ("containers", "Show where published ports are"),
    "rename": ("containers", "Give a container another name"),
    "restart": ("containers", "Stop containers and start them again"),
    "rm": ("containers", "Remove containers"),
    "rmi": ("images", "Remove images"),
    "save": ("archive", "Write images to a tar archive"),
    "start": ("run", "Start containers that have stopped"),
    "stats": ("stats", "Show what containers use, until interrupted"),
    "stop": ("containers", "Stop running containers"),
    "tag": ("images", "Give an image another name"),
    "top": ("running", "Show the processes of a container"),
    "unpause": ("running", "Let held containers go on"),
    "update": ("running", "Change what containers may use"),
    "wait": ("containers", "Wait until containers stop, then print their exit status"),
    "system check": ("system", "Verify everything in the store"),
    "system df": ("system", "Show how much disk is used"),
    "system prune": ("prune", "Free what nothing uses"),
    "system share": ("system", "Let other users of this machine read the store's images (root)"),
    "container prune": ("prune", "Remove all stopped containers"),
    "image prune": ("prune", "Remove images that nothing uses"),
    "manifest inspect": ("manifest", "Show the manifest that a registry has"),
    "network ls": ("volumes", "List networks"),
    "network prune": ("prune", "Remove networks that nothing uses (we make none)"),
    "volume create": ("volumes", "Create a volume"),
    "volume ls": ("volumes", "List volumes"),
    "volume prune": ("prune", "Remove volumes that nothing uses"),
    "volume rm": ("volumes", "Remove volumes"),
    "events": ("events", "Show what happens, as it happens"),
    "daemon": ("daemon", "Run the daemon in the foreground, or stop the one that runs"),
    "doctor": ("system", "Show what this machine can do, by trying it"),
    "hub": ("course", "Serve the embedded registry until interrupted"),
    "lab": ("course", "Open the course in JupyterLab"),
}
_CONTAINER_VERBS = (
    "attach commit cp create diff exec export kill logs pause port ps rename restart rm run start stats stop top "
    "unpause update wait"
)
ALIASES = {
    **{f"image {name}": [name] for name in ("history", "import", "load", "pull", "push", "save", "tag")},
    **{f"container {name}": [name] for name in _CONTAINER_VERBS.split()},
    **{f"image {name}": ["images"] for name in ("ls", "list")},
    **{f"image {name}": ["rmi"] for name in ("rm", "remove")},
    **{f"container {name}": ["ps"] for name in ("ls", "list")},
    "container remove": ["rm"],
    "image inspect": ["inspect", "--type=image"],
    "container inspect": ["inspect", "--type=container"],
    "network inspect": ["inspect", "--type=network"],
    "network list": ["network ls"],
    "volume inspect": ["inspect", "--type=volume"],
    "volume list": ["volume ls"],
    "volume remove": ["volume rm"],
    "system events": ["events"],
    "system info": ["info"],
}
GROUPS = {
    "image": "Manage images",
    "container": "Manage containers",
    "manifest": "Look at manifests in registries",
    "network": "Manage networks",
    "system": "Manage minirt's disk",
    "volume": "Manage volumes",
}
COMMON = ("run", "exec", "ps", "pull", "push", "images", "login", "logout", "version", "info")
OURS = ("daemon", "doctor", "hub", "lab")


@command(
    "[COMMAND] [ARG...]",
    """
    -D, --debug        Show the traceback of an error
    -H, --host string  Where the daemon listens: unix:///path (default $MINIRT_HOST)
        --root dir     Folder of images and containers (default $MINIRT_ROOT)
        --trace        Tell afterwards, on standard error, what was said to the daemon and what it did
    -v, --version      Print the version and quit
    """,
    interspersed=False,
)
def top(console: Console, values: Values, words: list[str]) -> int:
    """The command before a verb: find the verb, and run it."""
    verb, rest = _resolve(words)
    if verb in GROUPS or not verb:
        console.print(_group(verb) if verb else _overview())
        return 0
    chosen = _load(verb)
    console.title = f"minirt {verb}"
    console.failure = chosen.failure
    given, arguments = chosen.parse(console.title, rest)
    if "help" in given:
        names = sorted(name for name, target in ALIASES.items() if target == [verb])
        aliases = [f"minirt {name}" for name in [*names, verb]] if names else []
        console.print(chosen.help(console.title, VERBS[verb][1], aliases))
        return 0
    if values["trace"]:
        from minirt.cli.trace import traced

        return traced(console, lambda: chosen.handler(console, given, arguments) or 0)
    return chosen.handler(console, given, arguments) or 0


def program() -> NoReturn:
    """The installed command: `main`, and then at once away. Taking the interpreter down would cost 6 ms, and everything
    of ours is closed or written by now."""
    gc.set_threshold(10_000)  # what a start loads is no garbage: looking for some costs 1 ms
    status = main()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            with suppress(OSError):  # main has told what could not be written
                stream.flush()
    os._exit(status)


def main(argv: list[str] | None = None) -> int:
    """Run one command line; its exit status. Never raises."""
    words = sys.argv[1:] if argv is None else argv
    console = Console("minirt")
    debug = False
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # closed by our parent: print then does nothing
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        values, rest = top.parse("minirt", words)
        debug = bool(values.get("debug"))
        console.root, console.host = values.get("root"), values.get("host")
        if values.get("version"):
            from minirt import __version__

            console.print(f"minirt version {__version__}")
            return _flushed(0)
        return _flushed(top.handler(console, values, [] if "help" in values else rest) or 0)
    except KeyboardInterrupt:
        return 130  # 128 + SIGINT
    except BrokenPipeError:
        # Nobody reads us. Python flushes stdout once more at exit: let that go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141  # 128 + SIGPIPE, which Windows has not
    except Exception as error:
        if debug:
            import traceback

            traceback.print_exc()
        return _failed(console, error)


def _failed(console: Console, error: Exception) -> int:
    """Tell an error in one line; the exit status."""
    try:
        if isinstance(error, OSError):
            where = f": {os.fsdecode(error.filename)}" if isinstance(error.filename, str | bytes) else ""
            console.error(f"{(error.strerror or str(error)).lower()}{where}")
            return console.failure
        if not isinstance(error, MinirtError):
            console.error(f"{type(error).__name__}: {error}: this is a bug; 'minirt --debug …' shows where")
            return console.failure if console.failure != 1 else BUG
        console.error(error)
        if isinstance(error, UsageError):
            console.warn(f"See '{console.title} --help'.")
        return error.exit_code if isinstance(error, StartError | UsageError) else console.failure
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        return 141


def _flushed(status: int) -> int:
    """Flush while errors can still be told."""
    if sys.stdout is not None:
        try:
            sys.stdout.flush()
        except OSError:  # what is left unwritten would fail again at exit, with a traceback
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            raise
    return status


def _resolve(words: list[str]) -> tuple[str, list[str]]:
    """The verb's own name, or a group's, and the words for it. Raises UsageError."""
    if words[:1] == ["help"]:
        verb, _ = _resolve(words[1:])
        return verb, ["--help"]
    if not words:
        return "", []
    if words[0] in GROUPS:
        if len(words) == 1 or words[1].startswith("-"):
            return words[0], []
        name, rest = " ".join(words[:2]), words[2:]
    else:
        name, rest = words[0], words[1:]
    target = ALIASES.get(name, [name])
    if target[0] not in VERBS:
        raise UsageError(f"{name!r} is not a minirt command.", 1)
    return target[0], target[1:] + rest


def _load(verb: str) -> Command:
    name = "import_" if verb == "import" else verb.replace(" ", "_")
    module = __import__(f"minirt.cli.{VERBS[verb][0]}", fromlist=[name])  # importlib's own loads for 1 ms
    found = getattr(module, name)
    assert isinstance(found, Command)
    return found


def _overview() -> str:
    lines = ["Usage:  minirt [OPTIONS] COMMAND", "", "Containers as Docker makes them, small enough to read", ""]
    rest = [verb for verb in VERBS if verb not in COMMON + OURS and " " not in verb]
    for title, names in ("Common Commands", COMMON), ("Course Commands", OURS), ("Management Commands", GROUPS):
        lines += [f"{title}:", *(f"  {name:<11} {GROUPS.get(name) or VERBS[name][1]}" for name in names), ""]
    lines += ["Commands:", *(f"  {name:<11} {VERBS[name][1]}" for name in rest), ""]
    lines += ["Global Options:", top.option_lines(), "", "Run 'minirt COMMAND --help' for more on a command."]
    return "\n".join(lines)


def _group(group: str) -> str:
    names = {name: target[0] for name, target in ALIASES.items()} | {name: name for name in VERBS}
    mine = {name.split()[1]: VERBS[verb][1] for name, verb in names.items() if name.startswith(f"{group} ")}
    lines = [f"  {name:<11} {mine[name]}" for name in sorted(mine) if name not in ("list", "remove")]
    return "\n".join([f"Usage:  minirt {group} COMMAND", "", GROUPS[group], "", "Commands:", *lines])

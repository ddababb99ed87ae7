"""The words of `run`'s options, by docker's grammar: what is typed after `--memory`, `--ulimit`, `--mount`, …

Each function takes one word and gives the Engine API's value for it. ValueError, in docker's words, says what is
wrong; the option table's reader (create.py) adds the option's name. The daemon checks again what it is sent.
Sources: docker's reference of `docker run`, docker/go-units, strconv's and encoding/csv's documentation.
"""

from __future__ import annotations

import os

from minirt.errors import InvalidInput

TYPE_CHECKING = False  # typing's own loads for 2 ms
if TYPE_CHECKING:
    from re import Match
    from typing import Any

LIMITS = """core cpu data fsize locks memlock msgqueue nice nofile nproc rss rtprio rttime sigpending stack"""
_SIZE = r"(?ia)([0-9]+(?:\.[0-9]+)?) ?([kmgtp]?)i?b?"
_RULE = r"[acb] ([0-9]+|\*):([0-9]+|\*) [rwm]{1,3}"
_NAME = "[a-z0-9](?:[a-z0-9-]*[a-z0-9])?"
_DOMAIN = rf"(?ia){_NAME}(?:\.{_NAME})*\.?"
_SYSCTLS = "msgmax msgmnb msgmni sem shmall shmmax shmmni shm_rmid_forced"
_TRUTH = dict.fromkeys(("1", "t", "T", "TRUE", "true", "True"), True)
_TRUTH |= dict.fromkeys(("0", "f", "F", "FALSE", "false", "False"), False)


def _match(pattern: str, text: str) -> Match[str] | None:
    """`re.fullmatch`; re is loaded, and a pattern compiled, where one is used: most command lines need none."""
    import re

    return re.fullmatch(pattern, text)


def size(text: str) -> int:
    """Bytes; units are of 1024, written short or long: `512m`, `1.5GiB`."""
    match = _match(_SIZE, text)
    if not match:
        raise ValueError(f"invalid size: '{text}'")
    return int(float(match[1]) * 1024.0 ** " kmgtp".index(match[2].lower() or " "))


def swap(text: str) -> int:
    """The same, or -1: no limit."""
    return -1 if text == "-1" else size(text)


def cpus(text: str) -> int:
    """Billionths of a CPU: `1.5`, `3/2`."""
    from fractions import Fraction

    try:
        nano = Fraction(text if text.isascii() and "_" not in text and " " not in text else "") * 10**9
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"failed to parse {text} as a rational number") from None
    if nano.denominator != 1:
        raise ValueError("value is too precise")
    return nano.numerator


def ulimit(text: str) -> dict[str, Any]:
    """`nofile=1024:2048`: soft and perhaps hard limit; -1 or `infinity` is none."""
    name, equals, values = text.partition("=")
    if not equals:
        raise ValueError(f"invalid ulimit argument: {text}")
    if name not in LIMITS.split():
        raise ValueError(f"invalid ulimit type: {name}")
    parts = values.split(":")
    if len(parts) > 2:
        raise ValueError(f"too many limit value arguments - {values}, can only have up to two, `soft[:hard]`")
    numbers = [-1 if part == "infinity" else whole(part) for part in parts]
    soft, hard = numbers[0], numbers[-1]
    if hard != -1 and soft == -1:
        raise ValueError(
            f"ulimit soft limit must be less than or equal to hard limit: soft: -1 (unlimited), hard: {hard}"
        )
    if hard != -1 and soft > hard:
        raise ValueError(f"ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}")
    return {"Name": name, "Hard": hard, "Soft": soft}


def whole(text: str) -> int:
    """An integer as Go reads one: ASCII digits, a sign, 64 bits."""
    if not _match("[+-]?[0-9]{1,19}", text):
        raise ValueError(f'strconv.ParseInt: parsing "{text}": invalid syntax')
    if not -(2**63) <= int(text) < 2**63:
        raise ValueError(f'strconv.ParseInt: parsing "{text}": value out of range')
    return int(text)


def truth(text: str) -> bool:
    """A truth value as Go reads one."""
    if text not in _TRUTH:
        raise ValueError(f'strconv.ParseBool: parsing "{text}": invalid syntax')
    return _TRUTH[text]


def device(text: str) -> list[dict[str, str]]:
    """`/dev/fuse`, `/dev/sda:/dev/disk:r`, `/dev/tty*`: the machine's path, ours, what may be done."""
    host, *rest = text.split(":")
    if not host or len(rest) > 2:
        raise ValueError(f"bad format for path: {text}")
    may = "rwm"
    if len(rest) == 2 and not _may(rest[1]):
        raise ValueError(f"bad mode specified: {rest[1]}")
    if rest and _may(rest[-1]):
        may = rest.pop()
    inside = rest[0] if rest else host
    if not inside.startswith("/"):
        raise ValueError(f"{inside} is not an absolute path")
    if not host.endswith("*"):
        return [_device(host if rest else clean(host), clean(inside), may)]
    if rest:
        raise ValueError(f"device with * suffix can't have dst: {text}")
    import glob

    return [_device(path, path, may) for path in sorted(glob.glob(host))]


def _device(host: str, inside: str, may: str) -> dict[str, str]:
    return {"PathOnHost": host, "PathInContainer": inside, "CgroupPermissions": may}


def _may(text: str) -> bool:
    return bool(text) and set(text) <= set("rwm") and len(set(text)) == len(text)


def device_rule(text: str) -> str:
    """`c 188:* rw`: a rule of the devices cgroup."""
    if not _match(_RULE, text):
        raise ValueError(f"invalid device cgroup format '{text}'")
    return text


def address(text: str) -> str:
    """An IPv4 or IPv6 address."""
    import ipaddress

    try:
        return str(ipaddress.ip_address(text.strip()))
    except ValueError:
        raise ValueError(f"{text} is not an ip address") from None


def domain(text: str) -> str:
    """A search domain; a lone dot empties the list."""
    text = text.strip(" ")
    if text == ".":
        return text
    if not _match(_DOMAIN, text) or len(text) > 254 or not _match(".*[a-zA-Z].*", text):
        raise ValueError(f"{text} is not a valid domain")
    return text


def extra_host(text: str) -> str:
    """`name:address`, or `name=address`; `host-gateway` is this machine."""
    name, separator, where = text.partition("=") if "=" in text else text.partition(":")
    if not name or not separator:
        raise ValueError(f'bad format for add-host: "{text}"')
    where = where[1:-1] if where[:1] == "[" and where[-1:] == "]" else where
    if where != "host-gateway":
        try:
            address(where)
        except ValueError:
            raise ValueError(f'invalid IP address in add-host: "{where}"') from None
    return f"{name}:{where}"


def label(text: str) -> str:
    """`name=value`, or `name` for an empty value."""
    name = text.partition("=")[0].lstrip()
    if not name:
        raise ValueError(f"invalid label '{text}': empty name")
    if any(letter.isspace() for letter in name):
        raise ValueError(f"label '{text}' contains whitespaces")
    return text


def sysctl(text: str) -> str:
    """`net.core.somaxconn=1024`: only what belongs to a namespace, namespaces(7)."""
    name, equals, _ = text.partition("=")
    if not equals or not (
        name in [f"kernel.{known}" for known in _SYSCTLS.split()] or name.startswith(("net.", "fs.mqueue."))
    ):
        raise ValueError(f"sysctl '{text}' is not whitelisted")
    return text


def stream(text: str) -> str:
    """A standard stream's name."""
    if text.lower() not in ("stdin", "stdout", "stderr"):
        raise ValueError("valid streams are STDIN, STDOUT and STDERR")
    return text.lower()


def namespace(option: str, text: str, *allowed: str, container: bool = True) -> str:
    """A namespace's mode: one of `allowed`, or with `container` another container's."""
    if text and text not in allowed and not (container and _match("(?s)container:.+", text)):
        raise ValueError(
            f"--{option}: invalid {({'userns': 'USER', 'cgroupns': 'CGROUP'}).get(option, option.upper())} mode"
        )
    return text


def publish(text: str) -> str:
    """A `--publish` in its short form: `published=8080,target=80,protocol=udp` is `8080:80/udp`."""
    if "=" not in text:
        return text
    found = {"protocol": "tcp", "published": "", "target": ""}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"invalid publish opts format (should be name=value but got '{part}')")
        found[name] = value
    return f"{found['published']}:{found['target']}/{found['protocol']}"


def expose(text: str) -> list[str]:
    """`80`, `8000-8010/udp`: each port with its protocol."""
    ports, _, protocol = text.partition("/")
    if ":" in text:
        raise ValueError(f"invalid port format for --expose: {text}")
    first, dash, last = ports.partition("-")
    if not all(_match("[0-9]{1,5}", end) for end in (first, last if dash else first)):
        raise ValueError(f"invalid range format for --expose: {text}")
    start, end = int(first), int(last if dash else first)
    if not start <= end < 1 << 16:
        raise ValueError(f"invalid range format for --expose: {text}")
    return [f"{port}/{protocol.lower() or 'tcp'}" for port in range(start, end + 1)]


def volume(text: str) -> str:
    """`HOST:CONTAINER[:OPTIONS]`, a path of ours made absolute: `./data:/data:ro`."""
    host, colon, rest = text.partition(":")
    if colon and (host in (".", "..") or host.startswith(("./", "../"))):
        host = os.path.abspath(host)
    elif colon and (host == "~" or host.startswith("~/")):
        host = os.path.expanduser(host)
    return host + colon + rest


def mount(text: str) -> dict[str, Any]:
    """`type=bind,source=/data,target=/data,readonly`: an Engine API Mount."""
    import csv

    try:
        fields = next(csv.reader([text], strict=True), [])
    except csv.Error as error:
        raise ValueError(f"parse error: {error}") from None
    if not fields:
        raise ValueError("EOF")
    made: dict[str, Any] = {"Type": "volume"}
    options: dict[str, dict[str, Any]] = {}
    for field in fields:
        key, equals, value = field.partition("=")
        key = key.lower()
        if not equals and key not in ("readonly", "ro", "volume-nocopy", "bind-nonrecursive"):
            raise ValueError(f"invalid field '{field}' must be a key=value pair")
        try:
            _put(made, options, key, value if equals else "true", field)
        except ValueError as error:
            if equals and str(error).startswith(("strconv", "invalid size")):
                raise ValueError(f"invalid value for {key}: {value}") from None
            raise
    if not made["Type"]:
        raise ValueError("type is required")
    if not made.get("Target"):
        raise ValueError("target is required")
    for kind in options:
        if kind != made["Type"]:
            raise ValueError(f"cannot mix '{kind}-*' options with mount type '{made['Type']}'")
        made[f"{kind.title()}Options"] = options[kind]
    return made


def _put(made: dict[str, Any], options: dict[str, dict[str, Any]], key: str, value: str, field: str) -> None:
    """One field of a mount into its place."""
    if key == "type":
        made["Type"] = value.lower()
    elif key in ("source", "src"):
        near = value == "." or value.startswith(("./", "../"))
        made["Source"] = os.path.abspath(value) if near else os.path.expanduser(value) if value[:2] == "~/" else value
    elif key in ("target", "dst", "destination"):
        made["Target"] = value
    elif key in ("readonly", "ro"):
        made["ReadOnly"] = truth(value)
    elif key == "consistency":
        made["Consistency"] = value.lower()
    elif key == "bind-propagation":
        options.setdefault("bind", {})["Propagation"] = value.lower()
    elif key == "bind-nonrecursive":
        options.setdefault("bind", {})["NonRecursive"] = truth(value)
    elif key == "tmpfs-size":
        options.setdefault("tmpfs", {})["SizeBytes"] = size(value)
    elif key == "tmpfs-mode":
        if not _match("[0-7]{1,10}", value):
            raise ValueError(f'strconv.ParseUint: parsing "{value}": invalid syntax')
        options.setdefault("tmpfs", {})["Mode"] = int(value, 8)
    elif key.startswith("volume-"):
        options.setdefault("volume", {})[key] = value
    else:
        raise ValueError(f"unexpected key '{key}' in '{field}'")


def security(words: list[str]) -> tuple[list[str], bool]:
    """`--security-opt` as the daemon takes it, profiles read from their files; and whether systempaths=unconfined."""
    made, unconfined = [], False
    for word in words:
        name, equals, value = word.partition("=") if "=" in word else word.partition(":")
        if not equals and name != "no-new-privileges":
            raise ValueError(f'Invalid --security-opt: "{word}"')
        if name == "seccomp" and value not in ("unconfined", "builtin"):
            word = f"seccomp={_profile(value)}"
        if (name, value) == ("systempaths", "unconfined"):
            unconfined = True
        else:
            made.append(word)
    return made, unconfined


def _profile(path: str) -> str:
    import json

    try:
        with open(path, encoding="utf-8") as file:
            return json.dumps(json.load(file), separators=(",", ":"))
    except OSError as error:
        reason = (error.strerror or "").lower()
        raise ValueError(f"opening seccomp profile ({path}) failed: open {path}: {reason}") from None
    except ValueError as error:
        raise ValueError(f"compacting json for seccomp profile ({path}) failed: {error}") from None


def restart(text: str) -> dict[str, Any]:
    """A restart policy: `no`, `always`, `unless-stopped`, `on-failure[:times]`."""
    name, _, times = text.partition(":")
    if times and not _match("[+-]?[0-9]{1,18}", times):
        raise ValueError("maximum retry count must be an integer")
    return {"Name": name, "MaximumRetryCount": int(times or 0)}


def clean(path: str) -> str:
    """A path without `.`, `..` and doubled slashes, as Go's path.Clean."""
    return "/" + os.path.normpath(path).lstrip("/") if path.startswith("/") else os.path.normpath(path)


def moment(text: str | None) -> str:
    """A time as the Engine API takes it, in seconds of the epoch: of `10m` or `1h30m` ago, RFC 3339, or itself.

    Raises InvalidInput.
    """
    if not text:
        return ""
    import re
    import time

    units = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
    if _match(r"([0-9.]+(h|m|s|ms|us|ns))+", text):
        ago = sum(float(number) * units[unit] for number, unit in re.findall(r"([0-9.]+)(ms|us|ns|h|m|s)", text))
        return f"{time.time() - ago:.9f}"
    if _match(r"[0-9]+(\.[0-9]{1,9})?", text):
        return text
    import datetime

    cut = re.sub(r"(\.[0-9]{6})[0-9]+", r"\1", text)  # nanoseconds
    try:
        found = datetime.datetime.fromisoformat(cut)
    except ValueError:
        raise InvalidInput(f"{text!r} is no time: write 10m, 2026-01-31T12:00:00Z, or seconds since 1970") from None
    return f"{found.timestamp():.6f}"  # without a zone: of this machine

"""`login` and `logout`: what a registry knows us by, kept where docker keeps it (chapter 04)."""

from __future__ import annotations

import sys

from minirt.cli.console import Console
from minirt.cli.flags import UsageError, Values, command
from minirt.errors import InvalidInput

_UNENCRYPTED = """
WARNING! Your credentials are stored unencrypted in '{}'.
Configure a credential helper to remove this warning. See
https://docs.docker.com/go/credential-store/
"""


@command(
    "[SERVER]",
    """
    -p, --password string   Password or personal access token
        --password-stdin    Read the password from standard input
    -u, --username string   Username
    """,
)
def login(console: Console, values: Values, arguments: list[str]) -> None:
    from minirt.registry.credentials import Credential, Credentials, host, key_of

    name, word, piped = values["username"] or "", values["password"] or "", values["password-stdin"]
    if piped and values["password"] is not None:
        raise UsageError("conflicting options: cannot specify both --password and --password-stdin", 1)
    if values["password"] is not None:
        console.warn("WARNING! Using --password via the CLI is insecure. Use --password-stdin.")
    if piped and not name:
        raise UsageError("the --password-stdin option requires --username to be set", 1)
    registry, known = host(arguments[0] if arguments else ""), Credentials()
    token = ""
    if piped:
        word = sys.stdin.read().removesuffix("\n").removesuffix("\r") if sys.stdin else ""
    elif not name and not word and (stored := known.look_up(registry)):
        console.print(f"Authenticating with existing credentials... [Username: {stored.username}]")
        name, word, token = stored.username, stored.password, stored.identity_token
    if not token:
        name, word = _asked(name, word)
    shown = {"username": name, "password": word, "identitytoken": token, "serveraddress": key_of(registry)}
    token = console.client.login(shown) or token
    if unencrypted := known.keep(registry, Credential(name, word, token)):
        for line in _UNENCRYPTED.format(unencrypted).splitlines():
            console.warn(line)
        console.warn("")
    console.print("Login Succeeded")


def _asked(name: str, word: str) -> tuple[str, str]:
    """What is missing, asked for on the terminal. Raises InvalidInput."""
    import getpass

    if (not name or not word) and (sys.stdin is None or not sys.stdin.isatty()):
        raise InvalidInput(
            "Cannot perform an interactive login from a non TTY device: use --username, --password-stdin"
        )
    name = name or input("Username: ").strip()
    if not name:
        raise InvalidInput("username is required")
    word = word or getpass.getpass("Password: ")
    if not word:
        raise InvalidInput("password is required")
    return name, word


@command("[SERVER]")
def logout(console: Console, values: Values, arguments: list[str]) -> None:
    from minirt.registry.credentials import Credentials, host, key_of

    registry = host(arguments[0] if arguments else "")
    console.print(f"Removing login credentials for {key_of(registry)}")
    for line in Credentials().forget(registry):
        console.warn(f"WARNING: could not erase credentials: {line}")

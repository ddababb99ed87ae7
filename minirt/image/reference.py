"""An image's name: `[domain[:port]/]path[:tag][@digest]`.

Two forms. *Familiar*, what people type: `ubuntu`. *Normalised*, what it means: `docker.io/library/ubuntu:latest`.
Grammar: the distribution project's `reference` package (`reference.go`, `normalize.go`), the one docker uses.
Invariant: a `Reference` is always normalised; `domain`, `path` and `tag` are safe in a URL as they are.
Taught in chapter 04.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from minirt.errors import InvalidInput
from minirt.image.digest import Digest

DEFAULT_DOMAIN = "docker.io"
OFFICIAL = "library/"
MAX_NAME = 255

_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?"
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH = rf"{_COMPONENT}(?:/{_COMPONENT})*"
_TAG = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
_DIGEST = r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}"
_REFERENCE = re.compile(rf"((?:{_DOMAIN}/)?{_PATH})(?::({_TAG}))?(?:@({_DIGEST}))?", re.ASCII)


class Reference(NamedTuple):  # a dataclass would load inspect: the command's path
    """One image's normalised name. `tag` and `digest` may both be absent only after `without_tag`."""

    domain: str
    path: str
    tag: str | None = None
    digest: Digest | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Parse what a user typed; `:latest` is added where neither tag nor digest is given.

        Raises InvalidInput with the reason, in docker's words.
        """
        if re.fullmatch("[0-9a-f]{64}", text):
            raise InvalidInput(
                f"invalid repository name ({text}), cannot specify 64-byte hexadecimal strings as an image name"
            )
        domain, remainder = _split_domain(text)
        whole = f"{domain}/{remainder}"
        match = _REFERENCE.fullmatch(whole)
        if not match or not re.fullmatch(_DOMAIN, domain, re.ASCII):
            raise InvalidInput(f"invalid reference format: {_why(text, remainder)}")
        name, tag, digest = match.groups()
        if len(name) > MAX_NAME:
            raise InvalidInput(f"invalid reference format: repository name must not be more than {MAX_NAME} characters")
        path = name[len(domain) + 1 :]
        parsed = Digest(digest) if digest else None
        return cls(domain, path, tag or (None if parsed else "latest"), parsed)

    @property
    def name(self) -> str:
        """Domain and path: `docker.io/library/ubuntu`."""
        return f"{self.domain}/{self.path}"

    @property
    def familiar_name(self) -> str:
        """The name as docker prints it: `ubuntu`, `someone/app`, `ghcr.io/x/y`."""
        if self.domain != DEFAULT_DOMAIN:
            return self.name
        rest = self.path.removeprefix(OFFICIAL)
        if "/" not in rest:
            return rest
        # docker drops the domain here too, and then shows the name of an image elsewhere.
        return self.path if _split_domain(self.path) == (DEFAULT_DOMAIN, self.path) else self.name

    @property
    def familiar(self) -> str:
        """The familiar name with tag and digest: `ubuntu:latest`."""
        return self.familiar_name + self._suffix

    def __str__(self) -> str:
        return self.name + self._suffix

    @property
    def _suffix(self) -> str:
        return (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")

    @property
    def target(self) -> str:
        """What to ask the registry for: the digest where there is one, else the tag."""
        return self.digest or self.tag or "latest"

    def with_digest(self, digest: Digest) -> Reference:
        """The same name, pinned: no tag."""
        return self._replace(tag=None, digest=digest)


def _split_domain(text: str) -> tuple[str, str]:
    """Split off the registry's domain as docker does: it has a dot, a port or upper case, or is `localhost`."""
    first, slash, rest = text.partition("/")
    if not slash or (not re.search("[.:]", first) and first != "localhost" and first == first.lower()):
        domain, rest = DEFAULT_DOMAIN, text
    else:
        domain = first
    if domain == "index.docker.io":
        domain = DEFAULT_DOMAIN
    if domain == DEFAULT_DOMAIN and "/" not in rest.partition("@")[0]:
        rest = OFFICIAL + rest
    return domain, rest


def _why(text: str, remainder: str) -> str:
    """The reason a name does not parse, for people."""
    if not text:
        return "the name is empty"
    if text != text.strip() or re.search(r"\s", text):
        return f"{text[:80]!r} has white space in it"
    repository = re.split(r"[:@]", remainder, maxsplit=1)[0]
    if repository != repository.lower():
        return f"repository name ({repository[:80]}) must be lowercase"
    if "@" in remainder and not re.fullmatch(_DIGEST, remainder.partition("@")[2], re.ASCII):
        return f"{remainder.partition('@')[2][:80]!r} is not a digest (sha256:…)"
    tag = remainder.partition("@")[0].rpartition(":")[2] if ":" in remainder.partition("@")[0] else None
    if tag is not None and not re.fullmatch(_TAG, tag, re.ASCII):
        return f"{tag[:140]!r} is not a tag (letters, digits, '_', '.', '-'; at most 128)"
    return f"{text[:80]!r} is not a name like ubuntu:24.04 or registry.example:5000/team/app"

"""A platform: operating system, CPU architecture and its variant (`linux/arm64/v8`).

Names are Go's (GOOS, GOARCH), as the OCI image-spec asks (image-index.md). Choosing follows containerd's
`platforms.Only`: the exact variant first, then the lower variants this CPU also runs. Taught in chapter 02.
"""

from __future__ import annotations

import os
import platform as _platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from minirt.errors import InvalidInput

_ARCHITECTURES = {
    "x86_64": ("amd64", ""), "amd64": ("amd64", ""), "x86-64": ("amd64", ""),
    "aarch64": ("arm64", ""), "arm64": ("arm64", ""),
    "i386": ("386", ""), "i686": ("386", ""), "386": ("386", ""),
    "armhf": ("arm", "v7"), "armv7l": ("arm", "v7"), "armel": ("arm", "v6"), "armv6l": ("arm", "v6"),
    "arm": ("arm", "v7"),
    "ppc64le": ("ppc64le", ""), "s390x": ("s390x", ""), "riscv64": ("riscv64", ""), "loongarch64": ("loong64", ""),
}  # fmt: skip
_PART = re.compile("[A-Za-z0-9_.-]+", re.ASCII)


@dataclass(frozen=True)
class Platform:
    """`variant` is empty where the architecture has only one (arm64 means v8)."""

    os: str
    architecture: str
    variant: str = ""

    @classmethod
    def parse(cls, text: str) -> Platform:
        """Parse `os/arch[/variant]` or `arch`. Raises InvalidInput."""
        parts = text.split("/")
        if not 1 <= len(parts) <= 3 or not all(_PART.fullmatch(part) for part in parts):
            raise InvalidInput(f"invalid platform {text[:80]!r}: use os/arch or os/arch/variant, like linux/arm64")
        if len(parts) == 1:
            if parts[0].lower() not in _ARCHITECTURES:
                raise InvalidInput(f"invalid platform {text[:80]!r}: use os/arch, like linux/{parts[0][:40]}")
            parts = ["linux", parts[0]]
        return cls.normalised(*parts)

    @classmethod
    def normalised(cls, os_name: str, architecture: str, variant: str = "") -> Platform:
        arch, default = _ARCHITECTURES.get(architecture.lower(), (architecture.lower(), ""))
        variant = variant.lower() or default
        if variant.isdigit():
            variant = f"v{variant}"
        if arch == "arm64" and variant == "v8":
            variant = ""
        if arch == "amd64" and variant == "v1":
            variant = ""
        return cls(os_name.lower(), arch, variant)

    @classmethod
    def from_json(cls, value: Any) -> Platform:
        """From a descriptor's `platform` or an image config; missing fields are empty."""
        fields = value if isinstance(value, dict) else {}
        words = [fields.get(key) for key in ("os", "architecture", "variant")]
        return cls.normalised(*(word if isinstance(word, str) else "" for word in words))

    @classmethod
    def host(cls) -> Platform:
        """This machine, as a container sees it: always `linux` (elsewhere images run in a Linux VM)."""
        machine = os.uname().machine if hasattr(os, "uname") else _platform.machine()
        return cls.normalised("linux", machine)

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)

    def acceptable(self) -> list[Platform]:
        """What a machine of this platform runs, best first."""
        choices = [self]
        if self.architecture == "arm" and re.fullmatch("v[5-8]", self.variant):
            choices += [Platform(self.os, "arm", f"v{n}") for n in range(int(self.variant[1]) - 1, 4, -1)]
        elif self.architecture == "amd64" and re.fullmatch("v[2-4]", self.variant):
            choices += [Platform(self.os, "amd64", f"v{n}") for n in range(int(self.variant[1]) - 1, 1, -1)]
        if self.variant and self.architecture in ("amd64", "arm64"):
            choices.append(Platform(self.os, self.architecture))
        return choices

    def choose(self, offered: Sequence[Platform]) -> int | None:
        """The index in `offered` of the best match, the first among equals; None where nothing fits."""
        for choice in self.acceptable():
            if choice in offered:
                return offered.index(choice)
        return None

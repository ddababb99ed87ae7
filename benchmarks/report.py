"""The page, its plots and the JSON of a run.

The plots are SVG of our own few lines: bars of the medians, each as long as its time, and what was measured beside it.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from html import escape
from pathlib import Path

from benchmarks.case import OURS, Outcome
from benchmarks.measure import MB

_WORDS = {True: "met", False: "**missed**", None: ""}
_COLOURS = {OURS: "#2563eb"}
_OTHERS = "#9ca3af"
_ROW, _LEFT, _WIDE = 22, 110, 700  # pixels


def shown(value: float, unit: str) -> str:
    """A figure with its unit, three digits."""
    if unit == "bytes":
        return f"{value / MB:.3g} MB"
    return f"{value:.3g} s" if value >= 1 else f"{value * 1000:.3g} ms"


def line(outcome: Outcome) -> str:
    """One case on one line of the terminal."""
    parts = []
    for name in outcome.samples:
        part = f"{name} {shown(outcome.median(name), outcome.unit)}"
        if outcome.cpu(name):
            part += f" (cpu {shown(outcome.cpu(name), 's')})"
        if name in outcome.peaks:
            part += f" [{outcome.peaks[name] / MB:.0f} MB]"
        if name != OURS and OURS in outcome.samples:
            part += f" x{outcome.ratio(name):.3f}" + (
                f" (cpu x{outcome.cpu_ratio(name):.3f})" * bool(outcome.cpu(name))
            )
        parts.append(part)
    word = {True: "met", False: "MISSED", None: "-"}[outcome.met()]
    missing = f"; not here: {', '.join(outcome.missing)}" if outcome.missing else ""
    return f"{outcome.name}: {word}: {'; '.join(parts)}{missing}"


def write(page: Path, outcomes: list[Outcome], quick: bool) -> None:
    """The page; its plots and its JSON stand beside it. Cases of an earlier run that this one left out stay."""
    page.parent.mkdir(parents=True, exist_ok=True)
    data = page.with_suffix(".json")
    before = json.loads(data.read_text())["cases"] if data.exists() else []
    now = {outcome.name: outcome for outcome in outcomes}
    outcomes = [now.pop(row["name"], None) or Outcome.from_json(row) for row in before] + list(now.values())
    rows = [outcome.to_json() for outcome in outcomes]
    data.write_text(json.dumps({"machine": machine(), "cases": rows}, indent=1) + "\n")
    parts = [_HEAD.format(quick="Quick run, small images: no figures to quote.\n\n" if quick else "")]
    parts += ["".join(f"- {what}: {text}\n" for what, text in machine().items()), "\n"]
    parts += ["## Bars\n\n| case | bar | measured | | in processor time |\n|---|---|---|---|---|\n"]
    parts += [row for outcome in outcomes for row in _bars(outcome)]
    for outcome in outcomes:
        plot = page.with_name(f"{outcome.name}.svg")
        plot.write_text(svg(outcome))
        parts += [f"\n## {outcome.title}\n\n![{escape(outcome.title)}]({plot.name})\n\n", *_table(outcome)]
    page.write_text("".join(parts))


_HEAD = """# How fast it is

Written by `python -m benchmarks`; figures of one machine. {quick}All engines work on one tmpfs, in one network
namespace, in turns; a ratio is the median of the rounds' own ratios, ours over theirs. Processor time (user and system)
is that of everybody who takes part, daemons too; other work on the machine disturbs it less than wall time.

"""


def _bars(outcome: Outcome) -> list[str]:
    out = []
    for peer, bar in outcome.bars.items():
        if peer in outcome.samples:
            ratio = outcome.ratio(peer)
            cpu = f"{outcome.cpu_ratio(peer):.2f} ×" if outcome.cpu(peer) else ""
            out.append(f"| {outcome.name} | ≤ {bar:g} × {peer} | {ratio:.2f} × | {_WORDS[ratio <= bar]} | {cpu} |\n")
    if outcome.limit is not None:
        found, cpu = outcome.median(OURS), shown(outcome.cpu(OURS), "s") if outcome.cpu(OURS) else ""
        bar, value = shown(outcome.limit, outcome.unit), shown(found, outcome.unit)
        out.append(f"| {outcome.name} | ≤ {bar} | {value} | {_WORDS[found <= outcome.limit]} | {cpu} |\n")
    if outcome.peak_limit is not None and OURS in outcome.peaks:
        bar, value = shown(outcome.peak_limit, "bytes"), shown(outcome.peaks[OURS], "bytes")
        met = outcome.peaks[OURS] <= outcome.peak_limit
        out.append(f"| {outcome.name}, memory | ≤ {bar} | {value} | {_WORDS[met]} | |\n")
    return out


def _table(outcome: Outcome) -> list[str]:
    timed = any(map(outcome.cpu, outcome.samples))
    heads = ["", "median", "quickest – slowest", "ours / theirs"]
    heads += ["processor time", "ours / theirs"] * timed + ["peak memory"] * bool(outcome.peaks)
    lines = ["| " + " | ".join(heads) + " |\n", "|---" * len(heads) + "|\n"]
    for name in outcome.samples:
        least, most = outcome.spread(name)
        ours = name == OURS or OURS not in outcome.samples
        cells = [name, shown(outcome.median(name), outcome.unit)]
        cells += [f"{shown(least, outcome.unit)} – {shown(most, outcome.unit)}"]
        cells += ["" if ours else f"{outcome.ratio(name):.3f}"]
        if timed:
            cells += [shown(outcome.cpu(name), "s"), "" if ours else f"{outcome.cpu_ratio(name):.3f}"]
        if outcome.peaks:
            cells += [shown(outcome.peaks[name], "bytes") if name in outcome.peaks else ""]
        lines.append("| " + " | ".join(cells) + " |\n")
    rounds = len(next(iter(outcome.samples.values()), []))
    notes = [f"{rounds} round{'s' * (rounds != 1)}; load of the machine then: {outcome.load:g}."]
    notes += [f"{outcome.note[0].upper()}{outcome.note[1:]}."] if outcome.note else []
    notes += [f"Not on this machine: {', '.join(outcome.missing)}."] if outcome.missing else []
    return [*lines, "\n", " ".join(notes), "\n"]


def svg(outcome: Outcome) -> str:
    """Bars of the medians."""
    values = {name: outcome.median(name) for name in outcome.samples}
    longest = max(values.values(), default=1) or 1
    height = _ROW * len(values) + 8
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDE}" height="{height}" role="img" ']
    out += [f'font-family="sans-serif" font-size="12"><title>{escape(outcome.title)}</title>\n']
    for number, (name, value) in enumerate(values.items()):
        top, width = 4 + number * _ROW, max(1.0, value / longest * (_WIDE - _LEFT - 90))
        colour = _COLOURS.get(name, _OTHERS)
        out.append(f'<text x="{_LEFT - 6}" y="{top + 14}" text-anchor="end">{escape(name)}</text>')
        out.append(f'<rect x="{_LEFT}" y="{top}" width="{width:.1f}" height="{_ROW - 5}" fill="{colour}"/>')
        out.append(f'<text x="{_LEFT + width + 5:.1f}" y="{top + 14}">{shown(value, outcome.unit)}</text>\n')
    return "".join([*out, "</svg>\n"])


def machine() -> dict[str, str]:
    """What was measured on, and with which versions."""
    rows = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    found = {
        "machine": f"{platform.machine()}, {os.cpu_count()} processors, Linux {platform.release().split('-')[0]}, "
        f"{rows.get('PRETTY_NAME', '').strip(chr(34))}"
    }
    for name in ("docker", "podman", "runc", "skopeo", "umoci", "bsdtar"):
        if shutil.which(name):
            said = subprocess.run([name, "--version"], capture_output=True, text=True, check=False).stdout
            found[name] = (said.splitlines() or [""])[0]
    return found

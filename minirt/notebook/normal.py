"""The stored form of a notebook: what the repository keeps and what a learner's save keeps.

Live views do not outlive their kernel (they come back as "model not found" and dead buttons), so they are dropped and
the page keeps each widget's fallback. The repository's form also has execution counts 1..n and no trace of who ran it
when; it is a fixed point: normalising it again changes nothing.
"""

from __future__ import annotations

from typing import Any

from minirt.notebook.markup import VIEW

_KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}


def source(cell: dict[str, Any]) -> str:
    """A cell's text; nbformat keeps it as lines or whole."""
    return "".join(cell["source"])


def strip_views(notebook: dict[str, Any]) -> None:
    """Drop live views and widget state, in place."""
    notebook.get("metadata", {}).pop("widgets", None)
    for cell in notebook.get("cells", ()):
        for output in cell.get("outputs", ()):
            output.get("data", {}).pop(VIEW, None)


def normalise(notebook: dict[str, Any]) -> None:
    """Bring an executed notebook into the repository's form, in place."""
    strip_views(notebook)
    notebook["metadata"] = {"kernelspec": dict(_KERNEL)}
    count = 0
    for cell in notebook["cells"]:
        tags = cell["metadata"].get("tags")
        cell["metadata"] = {"tags": tags} if tags else {}
        if cell["cell_type"] != "code":
            continue
        count += 1
        cell["execution_count"] = count
        cell["outputs"] = _joined(cell["outputs"])
        for output in cell["outputs"]:
            if "metadata" in output:
                output["metadata"] = {}
            if "execution_count" in output:
                output["execution_count"] = count


def _joined(outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Neighbouring pieces of one stream as one: where they were cut is chance."""
    joined: list[dict[str, Any]] = []
    for output in outputs:
        if joined and output["output_type"] == "stream" and joined[-1].get("name") == output["name"]:
            joined[-1]["text"] = "".join(joined[-1]["text"]) + "".join(output["text"])
        else:
            joined.append(output)
    return joined


def clear(notebook: dict[str, Any]) -> None:
    """Drop outputs and counts, in place: results on the page would spoil every prediction."""
    strip_views(notebook)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None


def drift(wanted: dict[str, Any], stored: dict[str, Any]) -> list[str]:
    """Where a stored notebook is not the one wanted, a line each; outputs and counts are not compared."""

    def plain(notebook: dict[str, Any]) -> list[tuple[str, str, str]]:
        return [(cell["id"], cell["cell_type"], source(cell)) for cell in notebook["cells"]]

    old, new = plain(stored), plain(wanted)
    names = [cell[0] for cell in new if cell not in old] + [cell[0] for cell in old if cell not in new]
    lines = [f"drifted: {name} (write it again)" for name in dict.fromkeys(names)]
    return lines or ["drifted: its cells are in another order"] * (old != new)


def pre_save(model: dict[str, Any], **_options: Any) -> None:
    """The hook of `minirt lab`: a learner's saved page holds no dead buttons (jupyter_server's pre_save_hook)."""
    if model.get("type") == "notebook" and model.get("content"):
        strip_views(model["content"])

"""Pages of the reference, made from docstrings, and of notebooks."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

_HEADING = re.compile(r"^## (.+)$", re.MULTILINE)
_ROW = re.compile(r"^\| `(foveal[\w.]+)` \|", re.MULTILINE)


@dataclass(frozen=True)
class Section:
    """A section of docs/python_api.md: a page of the reference."""

    title: str
    page: str
    names: tuple[str, ...]


def sections(text: str) -> list[Section]:
    """The sections of the list of public names.

    Args:
        text: of docs/python_api.md.
    """
    _, *parts = _HEADING.split(text)
    found = []
    for heading, content in zip(parts[::2], parts[1::2], strict=True):
        if names := _ROW.findall(content):
            title = heading.partition(":")[0]
            page = re.sub(r"[^a-z]+", "_", title.lower())
            found.append(Section(title, f"reference/{page}.md", tuple(names)))
    return found


def pages(found: list[Section]) -> dict[str, str]:
    """The Markdown of each page of the reference: a directive of mkdocstrings for each name."""
    return {section.page: f"# {section.title}\n\n{_INTRODUCTION}\n\n{_directives(section)}" for section in found}


_INTRODUCTION = "For those who call Foveal from Python. [All public names, one line each](../python_api.md)."


def _directives(section: Section) -> str:
    members: dict[str, list[str]] = {name: [] for name in section.names}
    for name in section.names:
        owner, _, member = name.rpartition(".")
        if owner in members:  # a method of a listed class, which the class shows
            members[owner].append(member)
            del members[name]
    return "\n".join(_directive(name, listed) for name, listed in members.items())


def _directive(name: str, members: list[str]) -> str:
    """The directive of mkdocstrings for a public name; its listed members are shown even if it inherits them."""
    options = [f"heading: {name}"]
    if name == "foveal.timm":
        options.append("members: false")  # what is imported is the module alone
    if members:
        options.append(f"inherited_members: {json.dumps(members)}")
    return f"::: {name}\n    options:\n" + "".join(f"      {option}\n" for option in options)


def linked(text: str, found: list[Section]) -> str:
    """The list of public names, each with a link to its entry in the reference."""
    page = {name: section.page for section in found for name in section.names}
    return _ROW.sub(lambda match: f"| [`{match[1]}`]({page[match[1]]}#{match[1]}) |", text)


def notebook(path: str, text: str) -> str:
    """The Markdown of a notebook without outputs.

    Args:
        path: of the notebook in the repository.
        text: of its file.
    """
    parts = [f"From `{path}`, which Jupyter opens."]
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
    title = next((part for part in parts if part.startswith("# ")), f"# {path}")
    rest = [part for part in parts if part != title]
    return "\n\n".join([title, *rest]) + "\n"

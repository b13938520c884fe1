"""The page that shows models: files for ``foveal serve``, ``foveal demo --page`` and sites without a server.

``index.html`` loads ``site.json``, which says where the networks run: ``{"engine": "server"}``, as in this folder, or
"browser" with the models of a site that :mod:`foveal.exporting.web` writes.
"""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent

#: Type of each kind of file; no other file of the folder belongs to the page.
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".jpg": "image/jpeg",
    ".json": "application/json",
    ".txt": "text/plain; charset=utf-8",
}


def page_files(folder: Path = FOLDER) -> dict[str, Path]:
    """The files of the page by their address relative to it: ``{"index.html": ..., "examples/cat.jpg": ...}``.

    Links are left out, since they may lead out of the folder.
    """
    found = (file for file in sorted(folder.rglob("*")) if file.suffix in TYPES and not file.is_symlink())
    return {file.relative_to(folder).as_posix(): file for file in found}

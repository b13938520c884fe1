"""Processes that fetch from a hub, and the error that one of them ends with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

REPO, FILE = "someone/model", "model.safetensors"
FETCH = "from foveal.weights import hub; print(hub.fetch(hub.HubFile({arguments})))"
SECONDS = 300  #: until a client counts as hanging


class Client:
    """Processes with one cache, talking to one hub."""

    def __init__(self, address: str, cache: Path) -> None:
        self.cache = cache
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "FOVEAL_"))}
        self.environment = {
            **kept,
            "HF_ENDPOINT": address,
            "HF_HOME": str(cache),
            "HF_HUB_CACHE": str(cache / "hub"),
            "NO_PROXY": "127.0.0.1",
        }

    def arguments(self, **wanted: str) -> list[str]:
        wanted = {"repo": REPO, "file": FILE, "licence": "Apache-2.0", **wanted}
        code = FETCH.format(arguments=", ".join(f"{key}={value!r}" for key, value in wanted.items()))
        caught = f"import sys\ntry:\n    {code}\nexcept Exception as e: sys.exit(f'{{type(e).__name__}}: {{e}}')"
        return [sys.executable, "-W", "error", "-c", caught.replace("; print", "\n    print")]

    def fetch(self, environment: dict[str, str] | None = None, **wanted: str) -> subprocess.CompletedProcess[str]:
        """Run ``hub.fetch``; its path goes to standard output, an error's type and text to standard error."""
        variables = {**self.environment, **(environment or {})}
        command = self.arguments(**wanted)
        return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=SECONDS)

    def files(self) -> list[Path]:
        """Everything in the cache that could be taken for weights."""
        return [p for p in self.cache.rglob("*") if p.is_file() and p.stat().st_size > 1000]


class Session:
    """One Python process that runs pieces of code one after the other: to start one for each would take seconds.

    Args:
        environment: of the process.
        options: of Python.
    """

    def __init__(self, environment: dict[str, str], *options: str) -> None:
        command = [sys.executable, *options, "-c", _LOOP]
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def run(self, code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Run code with these arguments as ``sys.argv[1:]``: its output, and 1 if it ends with a message."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([code, ["-c", *map(str, arguments)]]) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the process has ended"
        return subprocess.CompletedProcess(code, *json.loads(answer))


_LOOP = """
import contextlib, io, json, sys
answers = sys.stdout
for line in sys.stdin:
    code, sys.argv = json.loads(line)
    status, out, err = 0, io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            exec(code, {"__name__": "__main__"})
        except SystemExit as end:  # with a message, as in these tests, Python prints it and the status is 1
            status = 1
            print(end, file=sys.stderr)
    print(json.dumps([status, out.getvalue(), err.getvalue()]), file=answers, flush=True)
"""


def error_of(done: subprocess.CompletedProcess[str], kind: str = "CheckpointError") -> str:
    """The one error, after at most the announcement: the hub client's own chatter is not ours to count."""
    assert done.returncode == 1, done.stdout
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"{kind}: ")
    return last

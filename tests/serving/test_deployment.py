"""The files of examples/serve fit this version: commands and options exist, copied files suffice, limits agree."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from foveal.cli import app
from foveal.serving.limits import Limits

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "serve"


def lines(name: str) -> list[str]:
    """Lines of a file without comments."""
    return [line for line in (FOLDER / name).read_text().splitlines() if not line.lstrip().startswith("#")]


def parse(words: list[str]) -> str:
    """Parse a command without running it; the name of its function. Unknown commands and options are errors."""
    assert Path(words[0]).name == "foveal"
    command, *_ = app.parse_args(words[1:], exit_on_error=False, print_error=False)
    return command.__name__


def test_the_unit_starts_a_service() -> None:
    settings = dict(line.split("=", 1) for line in lines("foveal-serve@.service") if "=" in line)
    words = shlex.split(settings["ExecStart"].replace("%i", "1"))
    assert parse(words) == "serve"
    assert words[words.index("--port") + 1] == "8001"
    assert int(settings["TimeoutStopSec"]) > Limits().drain
    assert settings["LoadCredential"].partition(":")[0] == Path(words[words.index("--keys") + 1]).name
    cache = settings["CacheDirectory"]
    assert "%i" in cache, "instances have users of their own, and cannot share a folder"
    assert settings["Environment"] == f"XDG_CACHE_HOME=%C/{cache}"


def test_the_unit_says_how_cores_are_replaced() -> None:
    """An empty setting clears the list, to which systemd otherwise adds the cores of a drop-in."""
    text = (FOLDER / "foveal-serve@.service").read_text()
    comment = " ".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
    assert re.search(r"CPUAffinity=[ ,].*CPUAffinity=\d", comment)


def test_systemd_has_nothing_against_the_unit(tmp_path: Path) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("there is no systemd-analyze (Debian: apt-get install systemd)")
    text = (FOLDER / "foveal-serve@.service").read_text().replace("/opt/foveal/bin/foveal", "/bin/true")
    unit = tmp_path / "foveal-serve@1.service"
    unit.write_text(text)
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_container_starts_a_service() -> None:
    for line in lines("Containerfile"):
        if line.startswith("RUN foveal "):
            assert parse(shlex.split(line.removeprefix("RUN ").partition("&&")[0])) == "demo"
        if line.startswith("ENTRYPOINT "):
            words = re.findall(r'"([^"]*)"', line)
            assert parse(words) == "serve"
            break
    else:
        raise AssertionError("no ENTRYPOINT")
    assert "EXPOSE 8000" in lines("Containerfile"), "the port of foveal serve"


def test_what_the_container_copies_is_enough_to_build(tmp_path: Path) -> None:
    for line in lines("Containerfile"):
        if not line.startswith("COPY "):
            continue
        *sources, target = line.split()[1:]
        for source in sources:
            place = tmp_path / target.removeprefix("/source").strip("/")
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, place, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / source, place / source)
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("dist/foveal-*.whl"))


def test_nginx_grants_what_the_service_grants() -> None:
    text, limits = "\n".join(lines("nginx.conf")), Limits()
    settings = dict(re.findall(r"^\s*(\w+) ([^;{]+);", text, re.MULTILINE))
    assert text.count("{") == text.count("}")
    assert settings["client_max_body_size"] == f"{limits.max_body:g}m"
    assert settings["client_header_timeout"] == f"{limits.header_seconds:g}s"
    assert settings["client_body_timeout"] == f"{limits.body_seconds:g}s"
    assert float(settings["keepalive_timeout"].rstrip("s")) < limits.idle_seconds
    assert float(settings["proxy_read_timeout"].rstrip("s")) > limits.seconds

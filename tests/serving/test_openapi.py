"""The OpenAPI document is complete, and the service keeps to it for whatever it allows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from foveal.serving.models import CALLS
from helpers.services import Running


@pytest.fixture
def document(service: Running) -> dict[str, Any]:
    return service.get("/openapi.json").json


def test_every_call_is_described_with_examples(document: dict[str, Any]) -> None:
    names = {name for calls in CALLS.values() for name in calls}
    for name in names:
        operation = document["paths"][f"/api/{{model}}/{name}"]["post"]
        body = operation["requestBody"]["content"]
        assert {"application/json", "multipart/form-data", "application/octet-stream"} <= body.keys()
        assert "example" in body["application/json"]
        assert "example" in operation["responses"]["200"]["content"]["application/json"]
        assert {"400", "404", "413", "422", "503", "504"} <= operation["responses"].keys()
        options = set().union(*(calls[name].options.model_fields for calls in CALLS.values() if name in calls))
        assert options < body["application/json"]["schema"]["properties"].keys()
    assert "/v2/models/{model}/infer" in document["paths"]


@pytest.mark.long
def test_the_service_keeps_to_its_document(service: Running, document: dict[str, Any], tmp_path: Path) -> None:
    """Requests that the document allows, and wrong ones, made up by schemathesis."""
    for operation in document["paths"].values():  # two thirds of the requests are for a model that is there
        for method in operation.values():
            for parameter in method.get("parameters", ()):
                if parameter["name"] == "model":
                    parameter["schema"] = {"enum": ["efficientvit_b0.camvid", "up", "nothing"]}
    file = tmp_path / "openapi.json"
    file.write_text(json.dumps(document))
    command = [
        sys.executable,
        "-c",
        "from schemathesis.cli import schemathesis; schemathesis()",
        "run",
        str(file),
        "--url",
        f"http://127.0.0.1:{service.port}",
    ]
    command += ["--checks", "not_a_server_error,status_code_conformance,content_type_conformance", "--seed", "1"]
    command += ["--max-examples", "100", "--request-timeout", "120", "--workers", "1", "--suppress-health-check", "all"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert service.get("/readyz").status == 200
    assert not [line for line in service.log if '"error"' in line]

"""Clients and testers of other projects, in an environment of their own: the KServe SDK, schemathesis and boofuzz.

schemathesis makes requests from the OpenAPI document of MLServer, the only usable one of this protocol. boofuzz fuzzes
the parts of one infer request.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

CLIENTS = Path(sys.prefix) / "clients"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CLIENTS.is_dir(), reason="make slow installs the clients of tests/serving/clients.txt"),
]

KSERVE = """
import asyncio, sys
import httpx, numpy as np
from kserve import InferenceRESTClient, InferInput, InferOutput, InferRequest
from kserve.inference_client import RESTConfig
from kserve.protocol.infer_type import RequestedOutput


async def main(url):
    count, ones = np.arange(16, dtype=np.int32)[None], np.ones((1, 16), np.int32)
    async with InferenceRESTClient(RESTConfig(protocol="v2")) as client:
        assert await client.is_server_live(url) is True
        assert await client.is_server_ready(url) is True
        assert await client.is_model_ready(url, "simple") is True
        assert await client.is_model_ready(url, "none") is False
        for binary in (False, True):
            inputs = [InferInput(name, [1, 16], "INT32") for name in ("INPUT0", "INPUT1")]
            for tensor, array in zip(inputs, (count, ones)):
                tensor.set_data_from_numpy(array, binary_data=binary)
            outputs = [RequestedOutput(name, parameters={"binary_data": binary}) for name in ("OUTPUT0", "OUTPUT1")]
            request = InferRequest("simple", inputs, request_id="7", request_outputs=outputs)
            answer = await client.infer(url, request, model_name="simple")
            assert (answer.model_name, answer.id) == ("simple", "7")  # it drops the version
            for output, expected in zip(answer.outputs, (count + ones, count - ones)):
                assert np.array_equal(output.as_numpy(), expected), output
        try:
            await client.infer(url, InferRequest("simple", inputs[:1]), model_name="simple")
        except httpx.HTTPStatusError as error:
            assert error.response.status_code == 400 and "INPUT1" in str(error)
        else:
            raise AssertionError("a request without an input was answered")


asyncio.run(main(sys.argv[1]))
"""


def test_the_kserve_sdk_infers(served):
    command = [CLIENTS / "bin/python", "-c", KSERVE, f"http://{served.url}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


CHECKS = [
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance",
    "negative_data_rejection", "unsupported_method",
]  # fmt: skip


@pytest.mark.timeout(600)
def test_answers_to_generated_requests_conform_to_the_openapi_document_of_mlserver(served, tmp_path):
    (document,) = CLIENTS.glob("lib/*/site-packages/mlserver/rest/openapi/dataplane.json")
    text = document.read_text().replace('"type": "bytes"', '"type": "string"')  # JSON Schema has no bytes
    (tmp_path / "dataplane.json").write_text(text)
    (tmp_path / "schemathesis.toml").write_text(
        '[parameters]\n"path.model_name" = "simple"\n"path.model_version" = "1.0.0"\n'
    )
    report = tmp_path / "report"
    command = [
        CLIENTS / "bin/schemathesis", "run", "dataplane.json", "--url", f"http://{served.url}",
        "--exclude-path-regex", "generate|infer_stream",  # of language models
        "--max-examples", "40", "--seed", "1", "--checks", ",".join(CHECKS),
        "--report", "har", "--report-dir", report,
    ]  # fmt: skip
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=tmp_path, timeout=500)
    assert done.returncode == 0, done.stdout[-5000:]
    (har,) = report.glob("*.json")
    entries = json.loads(har.read_text())["log"]["entries"]
    statuses = {entry["response"]["status"] for entry in entries}
    assert len(entries) > 200
    assert {200, 400, 405} <= statuses <= {200, 400, 404, 405, 413, 415}


STRIDE = 8  # of the cases that boofuzz makes: all of them take minutes


@pytest.mark.timeout(600)
def test_boofuzz_finds_no_request_that_the_server_does_not_survive(served, tmp_path):
    host, _, port = served.url.partition(":")
    script = Path(__file__).with_name("boofuzz_client.py")
    command = [CLIENTS / "bin/python", script, host, port, str(STRIDE), tmp_path]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=tmp_path, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["problems"] == []
    assert sum(report["statuses"].values()) >= 1700
    assert {"200", "400", "404", "405"} <= report["statuses"].keys()

"""The routes of the protocol, asked over a real socket."""

import gc
import json
import re
import time
import weakref

import numpy as np
import pytest

ONES = np.ones((1, 16), np.int32)
COUNT = np.arange(16, dtype=np.int32)[None]


def test_the_server_describes_itself(served):
    status, metadata = served.get("/v2")
    assert status == 200
    assert metadata["name"] == "triton"  # clients of Triton insist
    assert metadata["version"].startswith("packager ")
    assert set(metadata["extensions"]) == {
        "binary_tensor_data", "model_configuration", "model_repository", "statistics"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("/v2/health/live", {"live": True}),
        ("/v2/health/ready", {"ready": True}),
        ("/v2/models/simple/ready", {"name": "simple", "ready": True}),
    ],
)
def test_health_is_a_status_and_the_json_that_kserve_reads(served, path, answer):
    assert served.get(path) == (200, answer)
    assert served.ask("HEAD", path)[::2] == (200, b"")


def test_a_model_describes_its_tensors(served):
    tensor = {"datatype": "INT32", "shape": [-1, 16]}
    assert served.get("/v2/models/simple") == (
        200,
        {
            "name": "simple",
            "versions": ["1.0.0"],
            "platform": "onnxruntime_onnx",
            "inputs": [{"name": "INPUT0", **tensor}, {"name": "INPUT1", **tensor}],
            "outputs": [{"name": "OUTPUT0", **tensor}, {"name": "OUTPUT1", **tensor}],
        },
    )
    assert served.get("/v2/models/simple/versions/1.0.0") == served.get("/v2/models/simple")


def test_a_model_has_a_configuration_with_its_batch_apart(served):
    status, configuration = served.get("/v2/models/simple/config")
    assert status == 200
    assert configuration["max_batch_size"] == 8
    assert configuration["input"][0] == {"name": "INPUT0", "data_type": "TYPE_INT32", "dims": [16]}


def test_a_model_runs(served, json_arrays):
    status, answer = served.infer("simple", {"INPUT0": COUNT, "INPUT1": ONES}, id="7")
    assert status == 200
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("simple", "1.0.0", "7")
    assert [output["name"] for output in answer["outputs"]] == ["OUTPUT0", "OUTPUT1"]
    outputs = json_arrays(answer)
    assert np.array_equal(outputs["OUTPUT0"], COUNT + 1)
    assert np.array_equal(outputs["OUTPUT1"], COUNT - 1)


def test_an_answer_has_the_outputs_that_were_asked_for_in_that_order(served):
    inputs = {"INPUT0": COUNT, "INPUT1": ONES}
    for names in (["OUTPUT1"], ["OUTPUT1", "OUTPUT0"]):
        _, answer = served.infer("simple", inputs, outputs=[{"name": name} for name in names])
        assert [output["name"] for output in answer["outputs"]] == names
    assert "id" not in answer
    assert len(served.infer("simple", inputs, outputs=[])[1]["outputs"]) == 2


@pytest.mark.parametrize("path", ["/v2/models/none", "/v2/models/none/stats", "/v2/models/none/versions/1/config"])
def test_an_unknown_model_is_not_found(served, path):
    status, answer = served.get(path)
    assert status == 404
    assert answer["error"].startswith("Request for unknown model")


def test_an_unknown_model_cannot_run(served):
    for path in ("/v2/models/none/infer", "/v2/models/simple/versions/2.0.0/infer"):
        status, _, body = served.ask("POST", path, "{}")
        assert status == 404
        assert json.loads(body)["error"].startswith("Request for unknown model")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v2/models/simple/infer", "POST"),
        ("PUT", "/v2/models/simple/infer", "POST"),
        ("POST", "/v2/models/simple", "GET"),
        ("DELETE", "/v2/models/simple", "GET"),
        ("GET", "/v2/repository/index", "POST"),
    ],
)
def test_a_method_that_a_route_lacks_is_not_allowed(served, method, path, allowed):
    status, headers, body = served.ask(method, path)
    assert (status, headers["allow"]) == (405, allowed)
    assert "error" in json.loads(body)


@pytest.mark.parametrize(
    "path",
    ["/", "/v1", "/v2/models", "/v2/models/simple/none", "/v2/models/simple/versions/1.0.0/infer/x", "/v2/%2e%2e/etc"],
)
def test_another_path_is_not_found(served, path):
    assert served.get(path)[0] == 404


def test_statistics_count_requests_and_inferences(serve, simple):
    server = serve(simple)
    for batch in (1, 1, 3):
        ones = np.ones((batch, 16), np.int32)
        assert server.infer("simple", {"INPUT0": ones, "INPUT1": ones})[0] == 200
    assert server.infer("simple", {"INPUT0": ONES})[0] == 400
    _, answer = server.get("/v2/models/simple/stats")
    assert answer == server.get("/v2/models/stats")[1]
    (statistics,) = answer["model_stats"]
    assert (statistics["name"], statistics["version"]) == ("simple", "1.0.0")
    assert (statistics["inference_count"], statistics["execution_count"]) == (5, 3)
    assert statistics["last_inference"] > 1_700_000_000_000
    durations = statistics["inference_stats"]
    assert {name: durations[name]["count"] for name in ("success", "fail", "queue", "compute_infer")} == {
        "success": 3, "fail": 1, "queue": 3, "compute_infer": 3,
    }  # fmt: skip
    assert 0 < durations["compute_infer"]["ns"] <= durations["success"]["ns"]
    assert [(batch["batch_size"], batch["compute_infer"]["count"]) for batch in statistics["batch_stats"]] == [
        (1, 2), (3, 1),
    ]  # fmt: skip


def test_metrics_have_the_names_of_triton_and_opentelemetry(serve, simple):
    server = serve(simple)
    for batch in (1, 3):
        ones = np.ones((batch, 16), np.int32)
        server.infer("simple", {"INPUT0": ones, "INPUT1": ones})
    server.infer("simple", {"INPUT0": ONES})
    status, headers, body = server.ask("GET", "/metrics")
    text = body.decode()
    assert status == 200
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    labels = 'model="simple",version="1.0.0"'
    expected = {
        f"nv_inference_request_success{{{labels}}}": 2,
        f"nv_inference_count{{{labels}}}": 4,
        f"nv_inference_exec_count{{{labels}}}": 2,
        f"nv_inference_pending_request_count{{{labels}}}": 0,
        f'nv_inference_request_failure{{{labels},reason="OTHER"}}': 1,
        f'nv_inference_request_failure{{{labels},reason="REJECTED"}}': 0,
    }
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert {name: int(values[name]) for name in expected} == expected
    for duration in ("request", "queue", "compute_input", "compute_infer", "compute_output"):
        assert int(values[f"nv_inference_{duration}_duration_us{{{labels}}}"]) >= 0
    http = 'http_request_method="POST",http_response_status_code="200",http_route="/v2/models/{model}/infer"'
    assert values[f'http_server_request_duration_seconds_bucket{{{http},le="+Inf"}}'] == "2"
    assert values[f"http_server_request_duration_seconds_count{{{http}}}"] == "2"
    assert float(values[f"http_server_request_duration_seconds_sum{{{http}}}"]) > 0
    names = set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))
    assert names == set(re.findall(r"^# HELP (\S+)", text, re.MULTILINE))


def test_what_clients_send_makes_no_new_series(serve, simple):
    server = serve(simple)
    before = server.ask("GET", "/metrics")[2].count(b"\n")
    for number in range(20):
        server.get(f"/v2/models/none{number}")
        server.ask(f"METHOD{number}", "/v2")
    assert server.ask("GET", "/metrics")[2].count(b"\n") < before + 70


# -- versions, loading and unloading --------------------------------------------------------


@pytest.fixture(scope="module")
def versions(tmp_path_factory, linear_bundle):
    return [linear_bundle(version) for version in ("1.9.0", "1.10.0", "1.10.0-rc.1")]


def test_a_request_without_a_version_gets_the_highest(serve, versions):
    server = serve(*versions)
    assert server.get("/v2/models/net")[1]["versions"] == ["1.9.0", "1.10.0-rc.1", "1.10.0"]
    x = {"x": np.ones((1, 4), np.float32)}
    assert server.infer("net", x)[1]["model_version"] == "1.10.0"
    for version in ("1.9.0", "1.10.0-rc.1"):
        assert server.infer(f"net/versions/{version}", x)[1]["model_version"] == version
    assert len(server.get("/v2/models/net/stats")[1]["model_stats"]) == 3
    assert len(server.get("/v2/models/net/versions/1.9.0/stats")[1]["model_stats"]) == 1


def test_a_model_is_unloaded_and_loaded_again(serve, simple, tokens):
    server = serve(simple, tokens, model_control=True)
    inputs = {"INPUT0": COUNT, "INPUT1": ONES}
    assert server.infer("simple", inputs)[0] == 200
    index = json.loads(server.ask("POST", "/v2/repository/index")[2])
    assert [(entry["name"], entry["state"]) for entry in index] == [("simple", "READY"), ("tokens", "READY")]
    assert server.ask("POST", "/v2/repository/models/simple/unload")[0] == 200
    assert server.infer("simple", inputs)[0] == 404
    assert server.get("/v2/models/simple/ready")[0] == 404
    index = json.loads(server.ask("POST", "/v2/repository/index", "{}")[2])
    assert [(entry["name"], entry["state"]) for entry in index] == [("simple", "UNAVAILABLE"), ("tokens", "READY")]
    ready = json.loads(server.ask("POST", "/v2/repository/index", '{"ready": true}')[2])
    assert [entry["name"] for entry in ready] == ["tokens"]
    assert server.ask("POST", "/v2/repository/models/simple/load")[0] == 200
    assert server.infer("simple", inputs)[0] == 200


@pytest.mark.parametrize("action", ["load", "unload"])
def test_only_bundles_named_at_the_start_are_loaded(serve, simple, action):
    server = serve(simple, model_control=True)
    for name in ("none", "..%2Fsimple", "%2Fetc%2Fpasswd"):
        status, _, body = server.ask("POST", f"/v2/repository/models/{name}/{action}")
        assert status == 404
        assert "error" in json.loads(body)


@pytest.mark.parametrize("body", ['{"parameters": {"config": "{}"}}', '{"parameters": {"file:1/m": ""}}', "[]", "{"])
def test_a_model_is_loaded_without_changes(serve, simple, body):
    status, _, body = serve(simple, model_control=True).ask("POST", "/v2/repository/models/simple/load", body)
    assert status == 400
    assert json.loads(body)["error"]


@pytest.mark.parametrize("action", ["load", "unload"])
def test_clients_load_and_unload_only_where_that_is_allowed(served, action):
    status, _, body = served.ask("POST", f"/v2/repository/models/simple/{action}")
    assert status == 403
    assert "--model-control" in json.loads(body)["error"]
    assert served.get("/v2/models/simple/ready")[0] == 200


def test_a_load_that_fails_leaves_the_model_in_place(serve, linear_bundle, tmp_path):
    import shutil

    bundle = shutil.copytree(linear_bundle("3.0.0"), tmp_path / "net-3.0.0")
    server = serve(bundle, model_control=True)
    (bundle / "config.json").write_text("{}")
    status, _, body = server.ask("POST", "/v2/repository/models/net/load")
    assert status == 400
    assert "failed to load 'net'" in json.loads(body)["error"]
    assert server.infer("net", {"x": np.ones((1, 4), np.float32)})[0] == 200


def test_a_model_that_was_replaced_is_freed_at_once(serve, simple):

    server = serve(simple, model_control=True)
    models = server.app.service.models
    old = weakref.ref(models.get("simple"))
    assert server.infer("simple", {"INPUT0": COUNT, "INPUT1": ONES})[0] == 200
    gc.disable()
    try:
        assert server.ask("POST", "/v2/repository/models/simple/load")[0] == 200
        deadline = time.monotonic() + 5
        while old() is not None and time.monotonic() < deadline:  # a timer holds it for a second
            time.sleep(0.05)
        assert old() is None
    finally:
        gc.enable()

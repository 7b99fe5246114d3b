"""NVIDIA's own client, as its examples use it: simple_http_*.py, reuse_infer_objects_client.py and their like."""

import asyncio
import uuid

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException
from tritonclient.utils import shared_memory as shm

COUNT = np.arange(16, dtype=np.int32)[None]
MINUS = np.full((1, 16), -1, np.int32)
CODINGS = [(None, None), ("gzip", "deflate"), ("deflate", "gzip"), ("gzip", "gzip"), (None, "deflate")]


def make_inputs(module, *, binary=(False, True)):
    inputs = [module.InferInput(name, [1, 16], "INT32") for name in ("INPUT0", "INPUT1")]
    inputs[0].set_data_from_numpy(COUNT, binary_data=binary[0])
    inputs[1].set_data_from_numpy(MINUS, binary_data=binary[1])
    return inputs


def make_outputs(module, *, binary=(True, False)):
    names = ("OUTPUT0", "OUTPUT1")
    return [module.InferRequestedOutput(name, binary_data=flag) for name, flag in zip(names, binary, strict=True)]


def check(result):
    for name, expected in (("OUTPUT0", COUNT + MINUS), ("OUTPUT1", COUNT - MINUS)):
        array = result.as_numpy(name)
        assert array.dtype == np.int32
        assert np.array_equal(array, expected)


@pytest.fixture
def client(served):
    with triton.InferenceServerClient(served.url) as client:
        yield client


@pytest.mark.parametrize(("request_coding", "answer_coding"), CODINGS)
def test_the_synchronous_client_infers(client, request_coding, answer_coding):
    compression = {
        "request_compression_algorithm": request_coding, "response_compression_algorithm": answer_coding,
        "query_params": {"test_1": 1, "test_2": 2},
    }  # fmt: skip
    check(client.infer("simple", make_inputs(triton), outputs=make_outputs(triton), **compression))
    check(client.infer("simple", make_inputs(triton), **compression))
    for flags in ((True, True), (False, False)):
        inputs, outputs = make_inputs(triton, binary=flags), make_outputs(triton, binary=flags)
        result = client.infer("simple", inputs, "1.0.0", outputs=outputs, request_id="4", **compression)
        check(result)
        assert result.get_response()["id"] == "4"
    assert len(client.get_inference_statistics("simple")["model_stats"]) == 1


@pytest.mark.parametrize(("request_coding", "answer_coding"), CODINGS)
def test_the_asynchronous_client_infers(served, request_coding, answer_coding):
    async def infer():
        compression = {
            "request_compression_algorithm": request_coding, "response_compression_algorithm": answer_coding
        }  # fmt: skip
        async with triton_aio.InferenceServerClient(served.url) as client:
            outputs = make_outputs(triton_aio)
            check(await client.infer("simple", make_inputs(triton_aio), outputs=outputs, **compression))
            results = [client.infer("simple", make_inputs(triton_aio), **compression) for _ in range(20)]
            for result in await asyncio.gather(*results):
                check(result)

    asyncio.run(infer())


def test_the_asynchronous_client_asks_for_everything_else(served):
    async def ask():
        async with triton_aio.InferenceServerClient(served.url) as client:
            assert await client.is_server_live()
            assert await client.is_server_ready()
            assert await client.is_model_ready("simple")
            assert not await client.is_model_ready("none")
            assert (await client.get_server_metadata())["name"] == "triton"
            assert (await client.get_model_metadata("simple"))["name"] == "simple"
            assert (await client.get_model_config("simple"))["name"] == "simple"
            assert len(await client.get_model_repository_index()) == 2
            assert (await client.get_inference_statistics())["model_stats"]
            assert await client.get_system_shared_memory_status() == []
            assert await client.get_cuda_shared_memory_status() == []
            await client.unregister_system_shared_memory()
            await client.unregister_cuda_shared_memory()
            with pytest.raises(InferenceServerException):
                await client.register_system_shared_memory("region", "/none", 0)
            with pytest.raises(InferenceServerException):
                await client.load_model("simple")

    asyncio.run(ask())


def test_requests_run_at_the_same_time(served):
    with triton.InferenceServerClient(served.url, concurrency=8) as client:
        requests = [client.async_infer("simple", make_inputs(triton)) for _ in range(40)]
        for request in requests:
            check(request.get_result())


def test_health_and_metadata(client):
    assert client.is_server_live(query_params={"test_1": 1, "test_2": 2})
    assert client.is_server_ready()
    assert client.is_model_ready("simple")
    assert client.get_server_metadata()["name"] == "triton"
    assert client.get_model_metadata("simple", query_params={"test_1": 1, "test_2": 2})["name"] == "simple"
    with pytest.raises(InferenceServerException, match="Request for unknown model"):
        client.get_model_metadata("wrong_model_name")


def test_an_unknown_model_has_the_message_that_clients_look_for(client):
    with pytest.raises(InferenceServerException) as caught:
        client.infer("wrong_model_name", make_inputs(triton))
    assert caught.value.message().startswith("Request for unknown model")
    assert caught.value.status() == "404"


def test_every_error_has_a_message(client):
    inputs = make_inputs(triton)
    with pytest.raises(InferenceServerException, match="unexpected inference output 'OUTPUT2'"):
        client.infer("simple", inputs, outputs=[triton.InferRequestedOutput("OUTPUT2")])
    with pytest.raises(InferenceServerException, match=r"missing required input\(s\) \['INPUT1'\]"):
        client.infer("simple", inputs[:1])
    inputs[0].set_shape([2, 8])
    with pytest.raises(InferenceServerException, match=r"Expected \[-1,16\], got \[2,8\]"):
        client.infer("simple", inputs)
    inputs[0].set_shape([2, 16])
    with pytest.raises(InferenceServerException):
        client.infer("simple", inputs)
    inputs = make_inputs(triton, binary=(True, True))
    inputs[0].set_shape([2, 16])
    with pytest.raises(InferenceServerException, match="Expected 128, got 64"):
        client.infer("simple", inputs)


def test_models_are_loaded_and_unloaded(serve, simple):
    server = serve(simple, model_control=True)
    with triton.InferenceServerClient(server.url) as client:
        client.load_model("simple")
        assert client.is_model_ready("simple")
        with pytest.raises(InferenceServerException, match="failed to load"):
            client.load_model("simple", config='{"max_batch_size": "16"}')
        assert client.is_model_ready("simple")
        client.unload_model("simple")
        assert not client.is_model_ready("simple")
        with pytest.raises(InferenceServerException, match="failed to load"):
            client.load_model("wrong_model_name")


# -- shared memory --------------------------------------------------------------------------


@pytest.fixture
def regions():
    """Create shared memory for the tensors of `simple`, of 64 bytes each, by name: its key and its handle."""
    made = {}
    for name in ("input0_data", "input1_data", "output0_data", "output1_data"):
        key = f"/packager-test-{uuid.uuid4().hex}"
        made[name] = key, shm.create_shared_memory_region(name, key, 64)
    yield made
    for _, handle in made.values():
        shm.destroy_shared_memory_region(handle)


def test_the_same_objects_are_used_with_and_without_shared_memory(serve, simple, regions):
    server = serve(simple, shared_memory=True)
    shm.set_shared_memory_region(regions["input0_data"][1], [COUNT])
    shm.set_shared_memory_region(regions["input1_data"][1], [MINUS])
    with triton.InferenceServerClient(server.url) as client:
        client.unregister_system_shared_memory()
        client.unregister_cuda_shared_memory()
        for name, (key, _) in regions.items():
            client.register_system_shared_memory(name, key, 64)
        assert len(client.get_system_shared_memory_status()) == 4
        assert client.get_system_shared_memory_status("input0_data")[0]["byte_size"] == 64
        inputs = [triton.InferInput(name, [1, 16], "INT32") for name in ("INPUT0", "INPUT1")]
        outputs = [triton.InferRequestedOutput(name) for name in ("OUTPUT0", "OUTPUT1")]
        for _ in range(2):
            for number, (tensor, output) in enumerate(zip(inputs, outputs, strict=True)):
                tensor.set_shared_memory(f"input{number}_data", 64)
                output.set_shared_memory(f"output{number}_data", 64)
            result = client.infer("simple", inputs, outputs=outputs)
            for number, expected in enumerate((COUNT + MINUS, COUNT - MINUS)):
                assert result.get_output(f"OUTPUT{number}")["parameters"]["shared_memory_byte_size"] == 64
                _, handle = regions[f"output{number}_data"]
                assert np.array_equal(shm.get_contents_as_numpy(handle, np.int32, [1, 16]), expected)
            for tensor, output in zip(inputs, outputs, strict=True):
                tensor.set_data_from_numpy(2 * COUNT)
                output.unset_shared_memory()
            result = client.infer("simple", inputs, outputs=outputs)
            assert np.array_equal(result.as_numpy("OUTPUT0"), 4 * COUNT)
        client.unregister_system_shared_memory("input0_data")
        inputs[0].set_shared_memory("input0_data", 64)
        with pytest.raises(InferenceServerException, match="Unable to find shared memory region"):
            client.infer("simple", inputs)
        client.unregister_system_shared_memory()
        assert client.get_system_shared_memory_status() == []


def test_shared_memory_has_limits(serve, simple, regions):
    server = serve(simple, shared_memory=True)
    key = regions["input0_data"][0]
    with triton.InferenceServerClient(server.url) as client:
        for wrong in ("", "/", "..", "/../etc/passwd", "a/b", "none", "\0"):
            with pytest.raises(InferenceServerException):
                client.register_system_shared_memory("region", wrong, 64)
        for size, offset in ((65, 0), (64, 1), (0, 0), (-1, 0), (1 << 50, 0)):
            with pytest.raises(InferenceServerException):
                client.register_system_shared_memory("region", key, size, offset)
        client.register_system_shared_memory("region", key, 64)
        with pytest.raises(InferenceServerException, match="already"):
            client.register_system_shared_memory("region", key, 64)
        inputs = make_inputs(triton)
        for size, offset in ((65, 0), (64, 1), (60, 0)):
            inputs[0].set_shared_memory("region", size, offset)
            with pytest.raises(InferenceServerException):
                client.infer("simple", inputs)
        output = triton.InferRequestedOutput("OUTPUT0")
        output.set_shared_memory("region", 60)
        with pytest.raises(InferenceServerException, match="should be at least 64 bytes to hold the results"):
            client.infer("simple", make_inputs(triton), outputs=[output])


def test_shared_memory_is_off_unless_it_is_asked_for(client, regions):
    with pytest.raises(InferenceServerException, match="--shared-memory"):
        client.register_system_shared_memory("region", regions["input0_data"][0], 64)
    inputs = make_inputs(triton)
    inputs[0].set_shared_memory("region", 64)
    with pytest.raises(InferenceServerException, match="--shared-memory"):
        client.infer("simple", inputs)

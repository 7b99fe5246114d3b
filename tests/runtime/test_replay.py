"""The child that replays a bundle's evidence: it ends at its limits, with its parent, and whatever it answers."""

import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

import onnx
import onnxruntime
import pytest
from messages import mentions
from onnx import TensorProto, helper
from projects import ROOT, package, update_digests

import packager
from packager.bundle import archive, layout
from packager.bundle.files import open_bundle
from packager.common.process_memory import read_private_bytes
from packager.runtime import check, replay, replay_process
from packager.runtime.replay_messages import BackendVerdict, ReplayAnswer, ReplayRequest, Step

verify = importlib.import_module("packager.runtime.verify")  # packager.verify is the function
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
LOOSE = replay.Limits(60.0, 10**10)


def append_nodes(bundle, nodes, initializers):
    """Append nodes to the ONNX model that compute the scalar `extra` from `image`, and add it to the outputs."""
    model = onnx.load(bundle / "model.onnx")
    graph = model.graph
    for node in graph.node:
        for index, name in enumerate(node.output):
            if name == "logits":
                node.output[index] = "logits_before"
    graph.node.extend([*nodes, helper.make_node("Add", ["logits_before", "extra"], ["logits"])])
    graph.initializer.extend(initializers)
    onnx.save(model, bundle / "model.onnx")
    update_digests(bundle)
    return bundle


@pytest.fixture
def endless(bundle):
    """Return a bundle whose ONNX model loops for ever."""
    scalar = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["go_on"], ["again"]), helper.make_node("Mul", ["value", "value"], ["next"])],
        "body",
        [scalar("turn", TensorProto.INT64, []), scalar("go_on", TensorProto.BOOL, []),
         scalar("value", TensorProto.FLOAT, [])],
        [scalar("again", TensorProto.BOOL, []), scalar("next", TensorProto.FLOAT, [])],
    )  # fmt: skip
    nodes = [
        helper.make_node("ReduceSum", ["image"], ["sum"], keepdims=0),
        helper.make_node("Loop", ["turns", "", "sum"], ["extra"], body=body),
    ]
    return append_nodes(bundle, nodes, [helper.make_tensor("turns", TensorProto.INT64, [], [2**62])])


@pytest.fixture
def greedy(bundle):
    """Return a bundle whose ONNX model folds to 3.6 GB when it is opened."""
    value = helper.make_tensor("value", TensorProto.FLOAT, [1], [1.0])
    names = [f"large_{number}" for number in range(4)]  # onnxruntime folds no more than 1 GB at a time
    nodes = [
        *(helper.make_node("ConstantOfShape", ["size"], [name], value=value) for name in names),
        helper.make_node("ReduceSum", ["image"], ["sum"], keepdims=0),
        helper.make_node("Sum", ["sum", *names], ["total"]),
        helper.make_node("ReduceSum", ["total"], ["extra"], keepdims=0),
    ]
    return append_nodes(bundle, nodes, [helper.make_tensor("size", TensorProto.INT64, [1], [225_000_000])])


def list_children(process):
    """Return the ids of the processes that a process has started, and that have not ended."""
    children = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(parent) == process and state != "Z":
            children.append(int(path.parent.name))
    return children


def wait_for(condition, seconds=30):
    """Wait until a condition is true, and return its value."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return value


def wait_for_child(parent):
    """Wait until the child that replays the evidence has imported onnxruntime, and return its id."""

    def replays(child):
        folder = Path(f"/proc/{child}")
        return b"replay_process" in (folder / "cmdline").read_bytes() and b"onnxrun" in (folder / "maps").read_bytes()

    return wait_for(lambda: next(filter(replays, list_children(parent)), None))


def is_running(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


# -- limits ---------------------------------------------------------------------------------


def test_a_model_that_loops_for_ever_is_ended_and_fails(endless, golden, temporary):
    report = packager.verify(endless, time_limit=3)
    assert not report.ok
    assert report.parity == {"onnx": "fail", "torchscript": "not-checked"}
    golden(report.notes[0], "onnx", "3 s", "--time-limit", "case")


def test_a_model_that_folds_to_gigabytes_is_ended_and_fails(greedy, golden):
    report = packager.verify(greedy, memory_limit=600)
    assert not report.ok
    assert report.parity == {"onnx": "fail", "torchscript": "not-checked"}
    golden(report.notes[0], "onnx", "0.6 GB", "--memory-limit", "opened")


def test_the_limits_of_the_command_are_those_of_the_function(endless):
    done = package("verify", endless, "--time-limit", "2", "--memory-limit", "5000", "--json")
    assert done.returncode == 1
    record = json.loads(done.stdout)
    assert record["parity"] == {"onnx": "fail", "torchscript": "not-checked"}
    mentions(record["notes"][0], "2 s")
    for option in ("--time-limit", "--memory-limit"):
        assert package("verify", endless, option, "0").returncode == 2


def test_the_limits_grow_with_the_bundle(bundle, monkeypatch):
    given = []

    def record(request, limits):
        given.append(limits)
        return replay.replay(request, limits)

    monkeypatch.setattr(verify, "replay", record)
    size = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
    assert packager.verify(bundle).ok
    assert given[0].seconds == pytest.approx(300 + size / 1e7)
    assert given[0].bytes == pytest.approx(2e9 + 6 * size, abs=1)


@linux_only
def test_the_memory_of_a_process_is_measured():
    before = read_private_bytes(os.getpid())
    block = b"x" * 50_000_000
    assert len(block) * 0.9 < read_private_bytes(os.getpid()) - before < len(block) * 1.5
    assert read_private_bytes(2**30) == 0


# -- the end of the parent, and of the child ------------------------------------------------


@pytest.fixture
def _interruptible():
    """Let SIGINT interrupt the processes that a test starts: a shell lets those in its background ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@linux_only
@pytest.mark.usefixtures("_interruptible")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_ends_verify_and_its_child(endless, number):
    command = [sys.executable, "-m", "packager", "verify", str(endless)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as parent:
        try:
            child = wait_for_child(parent.pid)
            time.sleep(1)  # the model runs by now
            parent.send_signal(number)
            _, errors = parent.communicate(timeout=10)
        finally:
            parent.kill()
    wait_for(lambda: not is_running(child), seconds=5)
    assert parent.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 130)
    assert errors.strip() == ("" if number == signal.SIGKILL else "interrupted")


@linux_only
def test_a_child_that_crashes_fails_the_model_that_it_ran(endless, golden):
    def crash():
        child = wait_for_child(os.getpid())
        time.sleep(1)
        os.kill(child, signal.SIGSEGV)

    thread = threading.Thread(target=crash)
    thread.start()
    report = packager.verify(endless, trust_program=True, time_limit=60)
    thread.join()
    assert report.parity == {"onnx": "fail", "torchscript": "not-checked"}
    golden("\n".join(report.notes), "onnx", "signal 11", "torchscript")


@linux_only
def test_the_child_has_an_empty_folder_and_a_minimal_environment(endless, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "x")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    seen = {}

    def look():
        child = wait_for_child(os.getpid())
        folder = os.readlink(f"/proc/{child}/cwd")
        entries = Path(f"/proc/{child}/environ").read_bytes().decode().rstrip("\0").split("\0")
        seen.update(folder=folder, files=os.listdir(folder), environment=dict(entry.split("=", 1) for entry in entries))

    thread = threading.Thread(target=look)
    thread.start()
    packager.verify(endless, time_limit=4)
    thread.join()
    assert seen["files"] == []
    environment = seen["environment"]
    assert "SECRET_TOKEN" not in environment
    assert (environment["OMP_NUM_THREADS"], environment["ORT_DISABLE_TELEMETRY"]) == ("1", "1")
    assert environment["HOME"] == environment["TMPDIR"] == seen["folder"]
    assert not Path(seen["folder"]).exists()


# -- answers --------------------------------------------------------------------------------

REQUEST = ReplayRequest({}, {}, {}, os.getpid())
DONE = json.dumps(asdict(ReplayAnswer(backends={"onnx": BackendVerdict("pass")}, complete=True)))
STEP = json.dumps(asdict(Step("onnx", "on case 002")))


@pytest.fixture
def answering(monkeypatch):
    """Replay with a child that runs the given code instead."""

    def answer(code, limits=LOOSE):
        def start(request, folder):
            return subprocess.Popen(
                [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, cwd=folder
            )

        monkeypatch.setattr(replay, "_start", start)
        return replay.replay(REQUEST, limits)

    return answer


def test_a_complete_answer_is_believed_even_if_the_child_lives_on(answering):
    result = answering(f"import time; print({STEP!r}); print({DONE!r}, flush=True); time.sleep(60)")
    assert result.failure == ""
    assert result.answer.backends == {"onnx": BackendVerdict("pass")}


def changed(**fields):
    return json.dumps({**json.loads(DONE), **fields})


@pytest.mark.parametrize(
    "line",
    [
        "",
        "hello",
        "[]",
        "null",
        DONE[:-1],
        DONE[:-1] + ', "complete": true}',
        changed(complete=1),
        changed(complete="true"),
        changed(problems="none"),
        changed(problems=[1]),
        changed(extra=1),
        changed(backends={"onnx": {"verdict": "passed", "notes": []}}),
        changed(backends={"onnx": {"verdict": "pass", "notes": [], "more": 1}}),
        changed(backends={"onnx": "pass"}),
        changed(evidence_problem=float("nan")),
        '{"error": 3}',
        "[" * 100_000,
        '{"subject": "onnx", "activity": "\\ud800"}',
    ],
)
def test_a_malformed_answer_is_a_failed_check(answering, line):
    result = answering(f"print({STEP!r}); print({line!r}); print({DONE!r}, flush=True)")
    assert result.subject == "onnx"
    assert result.failure == "the process that ran it sent a malformed answer on case 002"
    assert not result.answer.complete


@pytest.mark.parametrize(
    ("code", "failure"),
    [
        ("", "ended with exit status 0"),
        ("import sys; sys.exit(7)", "ended with exit status 7"),
        ("import os; os.abort()", "ended with signal 6"),
        (f"print({DONE!r}, end='')", "ended with exit status 0"),
        ("import os, time; os.close(1); time.sleep(60)", "stopped answering"),
        ("import sys\nwhile True: sys.stdout.write('x' * 65536)", "ended with exit status|stopped answering"),
        (f"while True: print({STEP!r})", "ended with exit status|stopped answering"),
        ("""print('{"error": "ValueError: no\\\\u001b[2J"}')""", "failed: ValueError: no"),
    ],
)
def test_a_child_that_does_not_answer_is_a_failed_check(answering, code, failure):
    result = answering(code)
    assert any(f"the process that ran it {end}" in result.failure for end in failure.split("|"))
    assert result.failure.isprintable()
    assert result.answer == ReplayAnswer()


def test_a_child_that_ignores_the_time_is_killed(answering):
    begun = time.monotonic()
    result = answering(
        "import signal, time; [signal.signal(n, signal.SIG_IGN) for n in (2, 15)]; time.sleep(60)",
        replay.Limits(1.0, 10**10),
    )
    mentions(result.failure, "1 s")
    assert time.monotonic() - begun < 20


def test_what_is_known_before_a_crash_is_kept(answering):
    partial = changed(complete=False)
    result = answering(f"print({partial!r}); print({STEP.replace('onnx', 'torchscript')!r}, flush=True); 1 / 0")
    assert result.answer.backends == {"onnx": BackendVerdict("pass")}
    assert result.subject == "torchscript"
    assert "exit status 1" in result.failure


def test_a_backend_without_a_verdict_fails(built, answering):
    answering("")  # so that every replay runs what is set next
    line = changed(backends={})
    answering(f"print({line!r})")
    report = packager.verify(built.bundle)
    assert report.parity == {"onnx": "fail", "torchscript": "not-checked"}


# -- the files ------------------------------------------------------------------------------


def verify_after(monkeypatch, bundle, change):
    """Verify a bundle that is changed between the check of its digests and the replay."""

    def change_and_replay(request, limits):
        change()
        return replay.replay(request, limits)

    monkeypatch.setattr(verify, "replay", change_and_replay)
    return packager.verify(bundle, trust_program=True)


@pytest.mark.parametrize("path", ["model.onnx", "model.ts", layout.GOLDEN, layout.PARITY])
def test_a_file_that_is_replaced_after_the_check_is_not_used(bundle, monkeypatch, path):
    def replace():
        (bundle / "new").write_bytes(b"different")
        (bundle / "new").replace(bundle / path)

    assert verify_after(monkeypatch, bundle, replace).ok


@pytest.mark.parametrize("path", ["model.onnx", "model.ts", layout.GOLDEN, layout.PARITY])
def test_a_file_that_is_written_to_after_the_check_is_refused(bundle, monkeypatch, path):
    def write():
        with (bundle / path).open("r+b") as stream:
            stream.seek(-1, os.SEEK_END)
            last = stream.read(1)
            stream.seek(-1, os.SEEK_END)
            stream.write(bytes([last[0] ^ 1]))

    report = verify_after(monkeypatch, bundle, write)
    assert not report.ok
    mentions("\n".join((*report.structure, *report.notes)), path, "changed while it was read")


@pytest.mark.parametrize("is_archive", [False, True])
@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_external_weights_are_mapped_by_the_child(bundle, is_archive, shift):
    model = onnx.load(bundle / "model.onnx")
    (bundle / "model.onnx").unlink()
    for weight in model.graph.initializer:
        if weight.data_type == TensorProto.FLOAT:
            weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) + shift, weight.name))
    onnx.save(model, bundle / "model.onnx", save_as_external_data=True, location="model.onnx_data", size_threshold=0)
    config = json.loads((bundle / "config.json").read_text())
    config["artifacts"]["onnx"]["data"] = {"path": "model.onnx_data", "sha256": ""}
    (bundle / "config.json").write_text(json.dumps(config))
    update_digests(bundle)
    path = bundle
    if is_archive:
        path = bundle.with_name("net.zip")
        archive.write_archive(bundle, path)
    assert packager.verify(path).parity == {"onnx": "fail" if shift else "pass", "torchscript": "not-checked"}


def test_the_session_is_closed_before_the_fallback_is_opened(built, monkeypatch):
    opened, run = [], check.check_torchscript

    def check_torchscript(*arguments, **options):
        opened.extend(item for item in gc.get_objects() if isinstance(item, onnxruntime.InferenceSession))
        return run(*arguments, **options)

    gc.collect()
    before = [item for item in gc.get_objects() if isinstance(item, onnxruntime.InferenceSession)]
    monkeypatch.setattr(check, "check_torchscript", check_torchscript)
    messages = []
    with open_bundle(built.bundle) as files:
        replay_process.replay(json.loads(files.read("config.json")), files, messages.append)
    assert messages[-1].backends == {"onnx": BackendVerdict("pass"), "torchscript": BackendVerdict("pass")}
    assert len(opened) == len(before)
    steps = [message for message in messages if isinstance(message, Step)]
    assert [step.subject for step in steps[:2]] == ["onnx", "evidence"]
    assert {step.subject for step in steps} == {"onnx", "evidence", "torchscript"}

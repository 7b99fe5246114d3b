"""Make what is mutated: real files, each written by the library that writes such files."""

import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import pki
import projects
import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
from fuzz import targets
from fuzz.targets import Target, World
from onnx import TensorProto, helper

import packager
from packager.bundle import layout
from packager.bundle.archive import write_archive
from packager.checkpoint.sharded_index import Piece, PieceIndex, TensorPieces
from packager.common import deterministic_zip
from packager.export import exported_program
from packager.project.manifest import load_manifest
from packager.signature.verify import read_trust

STATE = {"layer.weight": torch.arange(12.0).reshape(3, 4), "layer.bias": torch.tensor([1.0, 2.0, 3.0])}
TRAINED = {"state_dict": STATE, "epoch": 3, "hyper_parameters": {"lr": 0.1}, "loss": np.float64(0.5)}


def make_world(folder: Path) -> World:
    """Build a small bundle in an empty folder, sign a copy of it, and load it."""
    os.environ.setdefault("PACKAGER_CACHE", str(folder / "cache"))
    built = packager.build(projects.project(folder / "project"), folder / "out").bundle
    write_archive(built, folder / "net.zip")
    signed = Path(shutil.copytree(built, folder / "signed" / built.name))
    private, public = pki.write_key(folder)
    packager.sign(signed, key=private)
    (folder / "work").mkdir()
    return World(
        bundle=built,
        files={path.relative_to(built).as_posix(): path.read_bytes() for path in built.rglob("*") if path.is_file()},
        loaded=packager.load(folder / "net.zip", threads=1),
        archive=(folder / "net.zip").read_bytes(),
        signature=(signed / layout.SIGNATURE).read_bytes(),
        trust=read_trust(public),
        work=folder / "work",
    )


def make_targets(world: World) -> list[Target]:
    """Return every target with its seeds; writes the files beside those that are mutated to the work folder."""
    return [*_make_bundle_targets(world), *_make_checkpoint_targets(world), *_make_input_targets(world)]


def _make_bundle_targets(world):
    files = world.files
    in_folder = tuple(f"{path}\n".encode() + content for path, content in files.items())
    records = (layout.CONFIG, layout.PARITY, layout.BUILD, layout.GOLDEN, *sorted(layout.DOCUMENTS))
    resealed = tuple(f"{path}\n".encode() + files[path] for path in records)
    models = (files["model.onnx"], _make_external_onnx())
    return [
        Target("archive", (world.archive,), targets.check_archive_of_bundle),
        Target("folder", in_folder, targets.check_folder),
        Target("resealed", resealed, targets.check_resealed),
        Target("sums", (files[layout.SUMS],), targets.check_sums),
        Target("signature", (world.signature,), targets.check_model_signature),
        Target("parity-record", (files[layout.PARITY],), targets.check_parity_record),
        Target("golden", (files[layout.GOLDEN],), targets.check_golden),
        Target("onnx-wire", models, targets.check_onnx_wire),
        Target("onnx-inspect", models, targets.check_onnx_inspect),
        Target("exported-program", (_make_program(world),), targets.check_exported_program),
    ]


def _make_checkpoint_targets(world):
    pieces, shards = world.work / "pieces", world.work / "shards"
    for folder in (pieces, shards):
        folder.mkdir()
    for name in ("metadata", "chunks"):
        dcp.save({"model": STATE, "epoch": 3}, checkpoint_id=world.work / f"dcp-{name}", no_dist=True)
    metadata = (world.work / "dcp-metadata/.metadata").read_bytes()
    chunks = (world.work / "dcp-chunks/__0_0.distcp").read_bytes()
    saved = safetensors.torch.save(STATE, {"epoch": "3"})
    return [
        Target("safetensors", (saved,), targets.check_safetensors),
        Target("torch", _make_torch_files(), targets.check_torch_file),
        Target("dcp-metadata", (metadata,), targets.check_dcp_metadata),
        Target("dcp-chunks", (chunks,), targets.check_dcp_chunks),
        Target("piece-index", (_make_pieces(pieces),), targets.check_piece_index),
        Target("shard-index", (_make_shards(shards),), targets.check_shard_index),
    ]


def _make_input_targets(world):
    manifest = projects.project(world.work / "project").read_bytes()
    rich = projects.digits(world.work / "digits").read_bytes()
    stream = io.BytesIO()
    np.savez(stream, x=np.ones((2, 4), np.float32))
    return [
        Target("manifest", (manifest, rich), targets.check_manifest),
        Target("npz", (stream.getvalue(),), targets.check_npz),
        Target("request", targets.REQUESTS, targets.check_request),
    ]


def _make_torch_files():
    contents = []
    for zipped in (True, False):
        stream = io.BytesIO()
        torch.save(TRAINED, stream, _use_new_zipfile_serialization=zipped)
        contents.append(stream.getvalue())
    return tuple(contents)


def _make_pieces(folder):
    """Write the parts of a checkpoint whose weight two ranks have saved, and return its index."""
    halves = STATE["layer.weight"].split([2, 1])
    for rank, half in enumerate(halves):
        safetensors.torch.save_file({"layer.weight": half.contiguous()}, folder / f"model.rank-{rank:05d}.safetensors")
    safetensors.torch.save_file({"layer.bias": STATE["layer.bias"]}, folder / "model.safetensors")
    pieces = [
        Piece(f"model.rank-{rank:05d}.safetensors", (2 * rank, 0), tuple(half.shape))
        for rank, half in enumerate(halves)
    ]
    return (
        PieceIndex("model.safetensors", {"layer.weight": TensorPieces("F32", (3, 4), tuple(pieces))}).to_json().encode()
    )


def _make_shards(folder):
    """Write two shards, and return their index."""
    places = {name: f"model-0000{number}-of-00002.safetensors" for number, name in enumerate(STATE, start=1)}
    for name, file in places.items():
        safetensors.torch.save_file({name: STATE[name]}, folder / file)
    return json.dumps({"metadata": {"total_size": 60}, "weight_map": places}).encode()


def _make_external_onnx():
    """Return a model with a weight in a data file, one inside, and a subgraph."""
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4, 3], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": targets.DATA, "offset": "64", "length": "48"}.items():
        weight.external_data.add(key=key, value=value)
    inner = helper.make_tensor("v", TensorProto.FLOAT, [3], [1.0, 2.0, 3.0])
    branch = helper.make_graph([helper.make_node("Identity", ["v"], ["b"])], "branch", [], [], [inner])
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        helper.make_node("If", ["c"], ["z"], then_branch=branch, else_branch=branch),
    ]
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size]) for name, size in (("x", 4), ("y", 3))
    )
    model: bytes = onnx.ModelProto.SerializeToString(
        helper.make_model(helper.make_graph(nodes, "g", [x], [y], [weight]))
    )
    return model


def _make_program(world):
    """Return the program of a .pt2, without the tensors beside it."""
    folder = world.work / "exported"
    project = load_manifest(projects.project(folder))
    program = exported_program.export(project, torch.nn.Linear(4, 3).eval(), (torch.rand(2, 4),))
    exported_program.save(program, folder / "model.pt2", folder)
    with (folder / "model.pt2").open("rb") as stream:
        for name, chunks in deterministic_zip.read_zip(stream):
            if name.endswith("models/model.json"):
                return b"".join(chunks)
    raise AssertionError("the archive has no program")

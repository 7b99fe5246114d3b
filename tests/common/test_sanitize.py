"""Messages of libraries are recorded without details of the machine."""

from pathlib import Path

import pytest

from packager.common.sanitize import sanitize_message


@pytest.mark.parametrize(
    ("text", "recorded"),
    [
        ("Load model from /tmp/out/.net-1.0.0.x/model.onnx failed:Node", "Load model from model.onnx failed:Node"),
        ('File "/home/ann/lib/python3.11/site-packages/torch/nn.py", line 3', 'File "nn.py", line 3'),
        ("/srv/core/concat.h:133 Axes must match", "concat.h:133 Axes must match"),
        ("<function step at 0x7f3aa04c1580> is none", "<function step at 0x…> is none"),
        ("3 and/or 4, a/b and x86/0x10", "3 and/or 4, a/b and x86/0x10"),
        ("", ""),
    ],
)
def test_folders_and_addresses_are_removed(text, recorded):
    assert sanitize_message(text) == recorded


def test_a_folder_with_a_space_in_its_name_is_removed_if_given(golden):
    golden(sanitize_message("no /my models/a b/net.onnx", Path("/my models/a b")), "net.onnx")


def test_a_long_text_is_truncated_after_its_folders_are_removed():
    texts = {
        sanitize_message(f"{folder}/net.py: " + "what happened " * 40) for folder in ("/a", "/a/rather/deep/folder")
    }
    assert len(texts) == 1
    assert len(texts.pop()) == 300

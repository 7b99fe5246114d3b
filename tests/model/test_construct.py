"""Constructing the module: it is the one that a plain build gives, even where the meta device was used."""

import pytest
import torch
from loading import load, refused, zero_project
from messages import mentions
from projects import LINEAR, project

from packager.errors import ModelArgumentsWrong, ModelConstructionFailed, StateDoesNotFit, render_error

HEAD = "import torch\nfrom torch import nn\n\n\n"


SIZED = HEAD + (
    "class Net(nn.Module):\n"
    "    def __init__(self, size, depth=1):\n"
    "        super().__init__()\n"
    "        if size < 0:\n"
    "            raise ValueError('size must be positive')\n"
    "        self.layer = nn.Linear(4, size)\n"
)


def test_kwargs_that_the_entry_does_not_take_name_the_nearest(tmp_path, golden):
    path = zero_project(tmp_path, SIZED, kwargs={"size": 3, "dept": 2})
    golden(
        render_error(refused(path, ModelArgumentsWrong)),
        "error[model-arguments]",
        "model.py:Net",
        f"{path}:6: model.kwargs",
        "dept",
        "depth",
    )


def test_kwargs_that_are_missing_are_named(tmp_path, golden):
    error = refused(zero_project(tmp_path, SIZED), ModelArgumentsWrong)
    golden(error.why, "size")
    golden(error.hint)
    assert error.where.endswith("package.yaml:5: model.entry")


def test_a_constructor_that_fails_shows_the_users_last_line(tmp_path, golden):
    path = zero_project(tmp_path, SIZED, kwargs={"size": -3})
    golden(
        render_error(refused(path, ModelConstructionFailed)),
        "error[model-construction-failed]",
        "model.py:Net",
        f"{path}:5: model.entry",
        "model.py:9",
        "__init__",
        "ValueError('size",
        "ValueError",
    )


def test_a_constructor_that_fails_in_torch_shows_the_users_line(tmp_path):
    error = refused(zero_project(tmp_path, SIZED, kwargs={"size": "three"}), ModelConstructionFailed)
    mentions(error.why, "model.py:8", "__init__", "0", "TypeError")


def test_a_constructor_that_exits_is_a_failed_construction(tmp_path):
    text = LINEAR.replace("super().__init__()", "raise SystemExit('bye')")
    why = refused(zero_project(tmp_path, text), ModelConstructionFailed).why
    assert why.endswith("SystemExit: bye")


@pytest.mark.parametrize("prefix", ["", "layer._orig_mod."])
@pytest.mark.parametrize(
    "change",
    [
        ("self.layer = nn.Linear(4, 3)", "self.layer = torch.compile(nn.Linear(4, 3))"),
        ("self.layer = nn.Linear(4, 3)", "self.layer = nn.Linear(4, 3); self.layer.compile()"),
        ("class Net(", "def Net():\n    return torch.compile(Inner())\n\n\nclass Inner("),
        ("class Net(", "def Net():\n    return nn.DataParallel(Inner())\n\n\nclass Inner("),
        ("self.layer = nn.Linear(4, 3)", "self.layer = nn.DataParallel(nn.Linear(4, 3))"),
        ("class Net(", "def Net():\n    return nn.DataParallel(torch.compile(Inner()))\n\n\nclass Inner("),
    ],
    ids=["a part", "in place", "the whole", "parallel", "a parallel part", "both"],
)
def test_compile_and_data_parallel_are_removed_from_the_module_and_its_parts(tmp_path, change, prefix):
    text = LINEAR.replace(*change)
    assert text != LINEAR
    head = prefix or "layer."
    state = {f"{head}weight": torch.ones(3, 4), f"{head}bias": torch.zeros(3)}
    model = load(project(tmp_path, text, state=state))
    assert list(model.module.state_dict()) == ["layer.weight", "layer.bias"]
    x = torch.ones(2, 4)
    traced = torch.jit.trace(model.module, (x,), check_trace=False)
    assert torch.equal(traced(x), torch.full((2, 3), 4.0))


def test_a_compiled_part_that_has_two_names_is_unwrapped_under_both(tmp_path):
    text = LINEAR.replace("nn.Linear(4, 3)", "torch.compile(nn.Linear(4, 3))\n        self.again = self.layer")
    state = {"layer.weight": torch.ones(3, 4), "layer.bias": torch.zeros(3)}
    module = load(project(tmp_path, text, state=state)).module
    assert type(module.layer) is torch.nn.Linear and module.again is module.layer


LEFTOVERS = (
    HEAD
    + '''
class Net(nn.Module):
    """Everything that is not in a checkpoint and has a value all the same."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.layer = nn.Linear(4, 3)
        self.register_buffer("position", torch.arange(3.0), persistent=False)
        self.register_buffer("noise", torch.randn(3), persistent=False)
        self.register_buffer("count", torch.tensor(5))
        self.plain = torch.linspace(0, 1, 3)

    def forward(self, x):
        return self.layer(x) + self.position + self.noise + self.plain
'''
)


def plainly_built(text):
    namespace = {"__name__": "model"}
    exec(compile(text, "model.py", "exec"), namespace)
    return namespace["Net"]()


# Without random buffers, which alone are reason enough to build plainly.
FIXED = LEFTOVERS.replace('        self.register_buffer("noise", torch.randn(3), persistent=False)\n', "")


FIXED = FIXED.replace(" + self.noise", "")


@pytest.mark.parametrize("text", [FIXED, FIXED.replace("        torch.manual_seed(3)\n", "")])
def test_buffers_that_are_not_in_the_checkpoint_keep_the_values_of_a_plain_build(tmp_path, text):
    plain = plainly_built(text)
    module = load(project(tmp_path, text, state=plain.state_dict())).module
    assert torch.equal(module.position, torch.arange(3.0))
    assert torch.equal(module(torch.ones(2, 4)), plain.eval()(torch.ones(2, 4)))


def test_seeded_random_buffers_are_those_of_a_plain_build(tmp_path):
    plain = plainly_built(LEFTOVERS)
    module = load(project(tmp_path, LEFTOVERS)).module
    assert torch.equal(module.noise, plain.noise)
    assert torch.equal(module(torch.ones(2, 4)), plain.eval()(torch.ones(2, 4)))


def test_a_parameter_that_may_be_missing_keeps_its_initial_value(tmp_path):
    path = project(
        tmp_path, LEFTOVERS, state={"layer.weight": torch.zeros(3, 4), "count": torch.tensor(5)},
        checkpoint={"path": "best.pt", "allow_missing": ["layer.bias"]},
    )  # fmt: skip
    model = load(path)
    assert torch.equal(model.module.layer.bias, plainly_built(LEFTOVERS).layer.bias)
    assert torch.equal(model.module.layer.weight, torch.zeros(3, 4))
    assert model.key_match.missing == ("layer.bias",)


def test_a_buffer_that_may_be_missing_keeps_its_initial_value(tmp_path):
    path = project(
        tmp_path, LEFTOVERS, state={"layer.weight": torch.zeros(3, 4), "layer.bias": torch.zeros(3)},
        checkpoint={"path": "best.pt", "allow_missing": ["count"]},
    )  # fmt: skip
    assert load(path).module.count == 5


def test_a_buffer_computed_from_a_parameter_has_its_value(tmp_path):
    text = FIXED.replace("torch.arange(3.0)", "self.layer.weight.detach().abs().sum(1)")
    plain = plainly_built(text)
    path = project(tmp_path, text, state={**plain.state_dict(), "layer.bias": torch.zeros(3)})
    assert torch.equal(load(path).module.position, plain.position)


def test_an_attribute_computed_from_a_parameter_has_its_value(tmp_path):
    text = FIXED.replace("        torch.manual_seed(3)\n", "")
    text = text.replace("torch.linspace(0, 1, 3)", "torch.full_like(self.layer.bias.detach(), 0.5)")
    plain = plainly_built(text)
    module = load(project(tmp_path, text, state=plain.state_dict())).module
    assert torch.equal(module.plain, plain.plain)
    assert torch.equal(module(torch.ones(2, 4)), plain.eval()(torch.ones(2, 4)))


def test_a_number_computed_from_a_parameter_has_its_value(tmp_path):
    text = FIXED.replace("torch.linspace(0, 1, 3)", "float(self.layer.weight.abs().sum())")
    plain = plainly_built(text)
    assert load(project(tmp_path, text, state=plain.state_dict())).module.plain == plain.plain


def test_a_constructor_that_writes_into_its_parameters_works(tmp_path):
    lines = (
        "nn.init.orthogonal_(self.layer.weight)",
        "with torch.no_grad():",
        "    self.layer.bias[0] = 7",
        "self.plain =",
    )
    text = FIXED.replace("self.plain =", "\n        ".join(lines))
    plain = plainly_built(text)
    module = load(project(tmp_path, text, state=plain.state_dict())).module
    assert torch.equal(module(torch.ones(2, 4)), plain.eval()(torch.ones(2, 4)))


def test_tied_parameters_stay_tied(tmp_path):
    text = HEAD + (
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.embed, self.head = nn.Linear(4, 4), nn.Linear(4, 4)\n"
        "        self.head.weight = self.embed.weight\n\n"
        "    def forward(self, x):\n"
        "        return self.head(self.embed(x))\n"
    )
    module = load(project(tmp_path, text)).module
    assert module.head.weight is module.embed.weight
    assert len(list(module.parameters())) == 3


def test_a_lazy_module_is_refused(tmp_path, golden):
    text = "import torch\n\n\nclass Net(torch.nn.LazyLinear):\n    def __init__(self):\n        super().__init__(3)\n"
    path = project(tmp_path, text, state={"weight": torch.ones(3, 4), "bias": torch.ones(3)})
    error = refused(path, StateDoesNotFit)
    golden(error.why, "bias")

"""Networks by name: sizes, shapes, seeds, and what they say to bad input."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fds_dist.common.faults import UserError
from fds_dist.models import build_model
from fds_dist.models.wide_resnet import wide_resnet_builder

COLOR, DIGIT = (3, 32, 32), (1, 8, 8)


def build(name, input_shape=DIGIT, classes=10, seed=0, **options):
    return build_model(name, options, input_shape=input_shape, classes=classes, seed=seed)


def weights(model):
    return nn.utils.parameters_to_vector(model.parameters()).detach()


def first_linear(model):
    return next(module for module in model.modules() if isinstance(module, nn.Linear))


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def faults_of(function, *args, **kwargs):
    with pytest.raises(UserError) as error:
        function(*args, **kwargs)
    return {fault.key: str(fault) for fault in error.value.faults}


@pytest.mark.parametrize(
    ("name", "input_shape", "expected"),
    [
        ("lenet", COLOR, 62_006),
        ("lenet", (1, 28, 28), 44_426),
        ("wrn-16-1", COLOR, 175_066),
        ("mlp", DIGIT, 64 * 64 + 64 + 64 * 64 + 64 + 64 * 10 + 10),
    ],
)
def test_numbers_of_weights(name, input_shape, expected):
    assert count(build(name, input_shape)) == expected


def test_the_widest_of_the_paper_has_36_million_weights():
    with torch.device("meta"):
        model = wide_resnet_builder(depth=28, width=10)(COLOR, 10)
    assert count(model) == 36_479_194  # "36.5M" in the paper's table 1


@pytest.mark.parametrize(
    ("name", "input_shape"),
    [
        ("mlp", DIGIT),
        ("mlp", (7,)),
        ("lenet", (1, 4, 4)),
        ("lenet", DIGIT),
        ("lenet", (3, 27, 40)),
        ("lenet", (1, 28, 28)),
        ("wrn-10-1", DIGIT),
        ("wrn-10-2", (3, 9, 13)),
    ],
)
def test_one_row_of_logits_per_sample(name, input_shape):
    assert build(name, input_shape, classes=7)(torch.zeros(2, *input_shape)).shape == (2, 7)


def test_options_shape_the_network():
    assert count(build("mlp", hidden=[])) == 64 * 10 + 10
    model = build("wrn-10-1", dropout=0.5)
    inputs = torch.ones(4, *DIGIT)
    assert not torch.equal(model(inputs), model(inputs))
    model = build("wrn-10-1")
    assert torch.equal(model(inputs), model(inputs))


@pytest.mark.parametrize("name", ["mlp", "lenet", "wrn-10-1"])
@pytest.mark.parametrize("init", ["default", "xavier", "kaiming", "orthogonal"])
def test_weights_are_a_function_of_the_seed_alone(name, init):
    state = torch.get_rng_state()
    first, again, other = (weights(build(name, seed=seed, init=init)) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(1)  # the global generator's position does not matter
    assert torch.equal(first, again) and torch.equal(first, weights(build(name, seed=0, init=init)))
    assert not torch.equal(first, other)


def test_initializations_draw_what_their_names_say():
    wide = {"input_shape": (300,), "classes": 10, "hidden": [200]}  # 60,000 weights: the deviation is known to 0.3 %
    for init, deviation in [("xavier", (2 / 500) ** 0.5), ("kaiming", (2 / 300) ** 0.5)]:
        layer = first_linear(build("mlp", init=init, **wide))
        assert layer.weight.std().item() == pytest.approx(deviation, rel=0.02)
        assert not layer.bias.any()
    rows = first_linear(build("mlp", init="orthogonal", **wide)).weight
    torch.testing.assert_close(rows @ rows.T, torch.eye(200), rtol=0, atol=1e-5)  # float32 rounding over 300 terms


def test_initializations_leave_batch_norm_alone():
    for module in build("wrn-10-1", init="xavier").modules():
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all() and (module.bias == 0).all()


def test_convolutions_of_wide_resnets_start_with_kaimings_deviation():
    weight = build("wrn-10-4", COLOR).get_parameter("groups.2.0.conv2.weight")  # 256 -> 256 channels, 590,000 weights
    assert weight.std().item() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.01)


@pytest.mark.parametrize(
    ("name", "options", "key", "words"),
    [
        ("lennet", {}, "model.name", ["did you mean lenet", "mlp", "wrn-"]),
        ("wrn16-1", {}, "model.name", ["did you mean wrn-16-1"]),
        ("wrn-17-1", {}, "model.name", ["17", "16 or 22"]),
        ("wrn-4-1", {}, "model.name", ["4", "10"]),
        ("wrn-16-0", {}, "model.name", ["width 0"]),
        ("wrn-16-1", {"dropout": 1.0}, "model.dropout", ["1.0"]),
        ("wrn-16-1", {"droput": 0.1}, "model.droput", ["dropout"]),
        ("wrn-16-1", {"depth": 40}, "model.depth", ["unknown"]),
        ("mlp", {"hidden": 64}, "model.hidden", ["64", "list"]),
        ("mlp", {"hidden": [8, 0]}, "model.hidden[1]", ["0 is out of range", "at least 1"]),
        ("mlp", {"hidden": [8, "8"]}, "model.hidden[1]", ["'8' is text", "at least 1"]),
        ("mlp", {"init": "xavir"}, "model.init", ["did you mean xavier"]),
        ("mlp", {"init": ["xavier"]}, "model.init", ["orthogonal"]),
        ("mlp", {"input_shape": 3}, "model.input_shape", ["3", "list"]),
        ("mlp", {"classes": 0}, "model.classes", ["0", "at least 1"]),
    ],
)
def test_bad_names_and_options_are_told(name, options, key, words):
    message = faults_of(build, name, **options)[key]
    assert all(word in message for word in words), message


def test_several_faults_come_at_once():
    assert set(faults_of(build, "mlp", hiden=[3], init="none")) == {"model.hiden", "model.init"}


@pytest.mark.parametrize(("name", "shape"), [("lenet", (1, 3, 8)), ("wrn-10-1", (1, 7, 8)), ("lenet", (64,))])
def test_images_that_do_not_fit_are_told(name, shape):
    assert "at least" in faults_of(build, name, shape)["model.input_shape"]


def test_what_the_task_does_not_say_can_be_an_option():
    message = faults_of(build, "mlp", input_shape=None, classes=None)
    assert set(message) == {"model.input_shape", "model.classes"}
    options = {"input_shape": [3], "classes": 2}
    model = build_model("mlp", options, input_shape=None, classes=None, seed=0)
    assert model(torch.zeros(1, 3)).shape == (1, 2)


@pytest.fixture
def own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_models.py").write_text(
        "from torch import nn\n"
        "def plain(width): return nn.Linear(width, 1)\n"
        "def told(input_shape, classes, seed):\n"
        "    model = nn.Identity()\n"
        "    model.told = input_shape, classes, seed\n"
        "    return model\n"
        "def wrong(): return 3\n"
        "def raises(): raise KeyError('oops')\n"
    )


@pytest.mark.usefixtures("own")
def test_a_users_function_gets_what_it_has_parameters_for():
    assert build("own_models:told", seed=4).told == (DIGIT, 10, 4)
    assert torch.equal(weights(build("own_models:plain", width=3)), weights(build("own_models:plain", width=3)))


@pytest.mark.usefixtures("own")
def test_faults_of_a_users_function_are_told():
    assert "int" in faults_of(build, "own_models:wrong")["model.name"]
    assert "own_models.py:8" in faults_of(build, "own_models:raises")["model.name"]
    assert set(faults_of(build, "own_models:plain")) == {"model.width"}
    assert "model.init" in faults_of(build, "own_models:plain", width=3, init="xavier")

import copy

import pytest
import torch
from torch import nn

from clip_more.adapters import MoreConfig, MoreConv2d, MoreLinear, add_tail, merge_tail, tail, tail_parameters


def randomise_tail(model: nn.Module, std: float = 0.2) -> None:
    torch.manual_seed(1)
    for parameter in tail_parameters(model).values():
        nn.init.normal_(parameter, std=std)


@pytest.fixture
def linear() -> nn.Module:
    torch.manual_seed(0)
    return add_tail(nn.Sequential(nn.Linear(6, 4)), MoreConfig(rho=0.5, target_modules="all")).double()


@pytest.fixture
def conv() -> nn.Module:
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 4, 3, stride=2, padding=1, padding_mode="reflect")
    return add_tail(nn.Sequential(layer), MoreConfig(rho=0.5, target_modules="all")).double()


def test_linear_is_the_base_plus_b_a(linear):
    randomise_tail(linear)
    layer, x = linear[0], torch.randn(5, 6, dtype=torch.float64)
    assert isinstance(layer, MoreLinear)
    weight = layer.base_layer.weight + layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    torch.testing.assert_close(linear(x), x @ weight.T + layer.base_layer.bias, rtol=0, atol=1e-14)


def test_convolution_is_the_base_plus_b_a_flattened(conv):
    randomise_tail(conv)
    layer, x = conv[0], torch.randn(2, 3, 8, 8, dtype=torch.float64)
    assert isinstance(layer, MoreConv2d)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    assert a.shape == (2, 3, 3, 3)
    plain = copy.deepcopy(layer.base_layer)
    with torch.no_grad():
        plain.weight += (b.view(4, 2) @ a.view(2, 27)).view(4, 3, 3, 3)
    torch.testing.assert_close(conv(x), plain(x), rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", ["linear", "conv"])
def test_gradients_of_w_b_and_a_pass_gradcheck(name, request):
    model = request.getfixturevalue(name)
    randomise_tail(model)
    x = torch.randn(2, 6, dtype=torch.float64) if name == "linear" else torch.randn(1, 3, 4, 4, dtype=torch.float64)
    names, values = zip(*model.named_parameters(), strict=True)

    def run(*parameters):
        return torch.func.functional_call(model, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, values)


def test_weight_space_gradients_equal_those_of_stock_lora_in_token_space():
    from peft import inject_adapter_in_model

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    ours = add_tail(copy.deepcopy(net), MoreConfig(rho=0.4, target_modules="all"))
    randomise_tail(ours)
    stock = inject_adapter_in_model(MoreConfig(rho=0.4, target_modules="all").to_lora(net), net)
    stock.requires_grad_(True)
    stock.load_state_dict(ours.state_dict())
    x = torch.randn(7, 6, dtype=torch.float64)
    for model in (ours, stock):
        model(x).square().sum().backward()
    for (name, p), (_, q) in zip(ours.named_parameters(), stock.named_parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-10, atol=1e-12, msg=name)


def test_tail_product_stays_fp32_under_autocast(linear):
    linear.float()
    randomise_tail(linear)
    exact = linear[0].lora_B["default"].weight @ linear[0].lora_A["default"].weight
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(linear[0].tail_weight(), exact)
        assert linear(torch.randn(2, 6)).dtype == torch.bfloat16


def test_switch_off_gives_the_general_part_and_comes_back(linear):
    randomise_tail(linear)
    x = torch.randn(5, 6, dtype=torch.float64)
    full = linear(x)
    with tail(linear, enabled=False):
        assert torch.equal(linear(x), linear[0].base_layer(x))
        with tail(linear, enabled=True):
            assert torch.equal(linear(x), full)
        assert torch.equal(linear(x), linear[0].base_layer(x))
    assert torch.equal(linear(x), full)


def test_switch_comes_back_after_an_error(linear):
    with pytest.raises(ZeroDivisionError), tail(linear, enabled=False):
        raise ZeroDivisionError
    assert linear[0].tail_enabled


def test_half_precision_model_adds_the_tail_in_fp32(linear):
    linear.to(torch.bfloat16)
    randomise_tail(linear)
    layer = linear[0]
    exact = (
        layer.base_layer.weight
        + (layer.lora_B["default"].weight.float() @ layer.lora_A["default"].weight.float()).bfloat16()
    )
    assert torch.equal(layer.full_weight(), exact)
    assert torch.equal(merge_tail(linear)[0].weight, exact)


@pytest.mark.parametrize("autocast", [False, True])
def test_backward_keeps_x_and_the_factors_and_no_sum_of_weights(linear, autocast):
    """`W + B A` is made again in the backward pass: kept, it would double the memory of the weights."""
    linear.float()
    randomise_tail(linear)
    x, kept = torch.randn(5, 6, requires_grad=True), []
    parameters = {p.data_ptr() for p in linear.parameters()}
    with (
        torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast),
    ):
        linear(x)
    others = [t for t in kept if t.data_ptr() not in parameters]
    assert [t.shape for t in others] == [x.shape]
    assert others[0].dtype == (torch.bfloat16 if autocast else torch.float32)


def test_gradients_under_autocast_are_those_of_autocast_on_the_sum_of_weights(linear):
    """Half precision enters where torch's own autocast puts it; the parameters' gradients come back in fp32."""
    linear.float()
    randomise_tail(linear)
    layer, x = linear[0], torch.randn(7, 6)
    found = []
    for ours in (True, False):
        linear.zero_grad()
        inputs = x.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            if ours:
                y = linear(inputs)
            else:
                y = torch.nn.functional.linear(inputs, layer.full_weight(), layer.base_layer.bias)
        y.float().square().sum().backward()
        found.append([y, inputs.grad, *(p.grad for p in linear.parameters())])
    for ours, theirs in zip(*found, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    "frozen", [["weight"], ["lora_A"], ["lora_B"], ["bias"], ["weight", "lora_A", "lora_B", "bias"]]
)
def test_what_is_frozen_gets_no_gradient_and_the_rest_its_own(linear, frozen):
    randomise_tail(linear)
    x = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    linear(x).square().sum().backward()
    expected = {name: p.grad for name, p in linear.named_parameters()} | {"x": x.grad}
    linear.zero_grad()
    x.grad = None
    for name, parameter in linear.named_parameters():
        parameter.requires_grad_(not any(part in name for part in frozen if part != "weight" or "base" in name))
    linear(x).square().sum().backward()
    torch.testing.assert_close(x.grad, expected["x"])
    for name, parameter in linear.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, expected[name], msg=name)
        else:
            assert parameter.grad is None, name


def test_a_base_in_half_precision_takes_a_tail_in_full_precision():
    torch.manual_seed(0)
    model = add_tail(nn.Sequential(nn.Linear(6, 4)), MoreConfig(rho=0.5, target_modules="all"))
    randomise_tail(model)
    layer = model[0]
    exact = layer.full_weight().detach()
    layer.base_layer.bfloat16()
    x = torch.randn(5, 6, dtype=torch.bfloat16)
    y = model(x)
    y.float().square().sum().backward()
    torch.testing.assert_close(y.float(), x.float() @ exact.T + layer.base_layer.bias.float(), rtol=0.02, atol=0.02)
    assert all(p.grad.dtype == p.dtype for p in model.parameters())


def test_a_single_vector_goes_through(linear):
    randomise_tail(linear)
    x = torch.randn(6, dtype=torch.float64)
    linear(x).sum().backward()
    single = [p.grad.clone() for p in linear.parameters()]
    linear.zero_grad()
    linear(x[None]).sum().backward()
    for one, p in zip(single, linear.parameters(), strict=True):
        torch.testing.assert_close(one, p.grad)

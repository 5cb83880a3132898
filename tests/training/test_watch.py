import json
import math
import sys

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from clip_more.adapters import MoreConfig, add_lora, add_tail, tail_parameters
from clip_more.models.clip import load_clip
from clip_more.training.watch import Throughput, flat, gradient_norms, memory, tail_share
from tests.training.forked_pair import fork_two

GROUPS = {
    "vision.attention": "vision_model.encoder.layers.0.self_attn.q_proj",
    "vision.mlp": "vision_model.encoder.layers.0.mlp.fc1",
    "vision.embedding": "vision_model.embeddings.patch_embedding",
    "text.attention": "text_model.encoder.layers.0.self_attn.out_proj",
    "text.mlp": "text_model.encoder.layers.0.mlp.fc2",
    "projection": "text_projection",
}


class Task(nn.Module):
    """The names of a LongTailTask: a CLIP and a head of one scale and three biases."""

    def __init__(self, add=add_tail):
        super().__init__()
        torch.manual_seed(0)
        clip = load_clip("tiny")
        add(clip.model)
        for tensor in tail_parameters(clip.model).values():
            nn.init.normal_(tensor, std=0.05)
        self.classifier = nn.Module()
        self.classifier.clip = clip
        self.classifier.head = nn.ParameterDict({"log_scale": torch.ones(1), "bias": torch.zeros(3)})

    @property
    def model(self):
        return self.classifier.clip.model


def matrices(task, path):
    layer = task.model.get_submodule(path)
    found = layer.get_base_layer().weight, layer.lora_A["default"].weight, layer.lora_B["default"].weight
    return (matrix.detach().double().flatten(1) for matrix in found)


def oracle(task, start):
    """In float64, with every product made."""
    tail = full = 0.0
    for path, layer in task.model.named_modules():
        if hasattr(layer, "lora_A") and start(path):
            weight, a, b = matrices(task, path)
            tail += (b @ a).square().sum().item()
            full += (weight + b @ a).square().sum().item()
    return math.sqrt(tail / full)


def test_gradient_norms_of_the_parts_are_those_of_their_parameters():
    task = Task()
    torch.manual_seed(1)
    for parameter in task.parameters():
        parameter.grad = torch.randn_like(parameter)
    tail = tail_parameters(task)
    expected = {"general": 0.0, "tail": 0.0, "head": 0.0}
    for name, parameter in task.named_parameters():
        part = "tail" if name in tail else "head" if name.startswith("classifier.head.") else "general"
        expected[part] += parameter.grad.double().square().sum().item()
    expected = {part: math.sqrt(square) for part, square in expected.items()}
    assert gradient_norms(task) == pytest.approx(expected, rel=1e-4)


def test_parts_without_a_gradient_are_left_out():
    task = Task()
    assert gradient_norms(task) == {}
    task.classifier.head["bias"].grad = torch.tensor([3.0, 0.0, 4.0])
    assert gradient_norms(task) == {"head": 5.0}


def test_parts_whose_norm_is_not_finite_are_left_out():
    """An overflow under fp16 is the scaler's business, and JSON has no number for it."""
    task = Task()
    task.classifier.head["bias"].grad = torch.tensor([3.0, torch.inf, 4.0])
    tail = task.model.visual_projection.lora_A["default"].weight
    tail.grad = torch.ones_like(tail)
    assert list(gradient_norms(task)) == ["tail"]


def test_gradients_in_half_precision_do_not_overflow():
    task = Task()
    task.classifier.head["bias"] = nn.Parameter(torch.zeros(3, dtype=torch.float16))
    task.classifier.head["bias"].grad = torch.full((3,), 60_000.0, dtype=torch.float16)
    assert gradient_norms(task)["head"] == pytest.approx(60_000 * math.sqrt(3), rel=1e-3)


def test_tail_share_of_every_group_is_that_of_the_products_in_float64():
    task = Task()
    share = tail_share(task)
    parts = {
        "vision.attention": lambda p: "vision_model" in p and "self_attn" in p,
        "vision.mlp": lambda p: "vision_model" in p and "mlp" in p,
        "vision.embedding": lambda p: "patch_embedding" in p,
        "text.attention": lambda p: "text_model" in p and "self_attn" in p,
        "text.mlp": lambda p: "text_model" in p and "mlp" in p,
        "projection": lambda p: p in ("visual_projection", "text_projection"),
    }
    assert share == pytest.approx({group: oracle(task, start) for group, start in parts.items()}, rel=1e-5)


@pytest.mark.parametrize(("group", "path"), GROUPS.items(), ids=list(GROUPS))
def test_only_the_group_of_a_layer_shows_its_tail(group, path):
    task = Task(lambda model: add_tail(model, MoreConfig(target_modules=(path.rpartition(".")[2],))))
    for name, tensor in tail_parameters(task.model).items():
        if not name.startswith(path):
            nn.init.zeros_(tensor)
    assert [name for name, share in tail_share(task).items() if share > 0] == [group]


def test_new_tail_has_no_share_and_a_tail_alone_has_all_of_it():
    task = Task()
    for name, tensor in tail_parameters(task).items():
        if ".lora_B." in name:
            nn.init.zeros_(tensor)
    assert set(tail_share(task).values()) == {0.0}
    task = Task()
    for path in GROUPS.values():
        nn.init.zeros_(task.model.get_submodule(path).get_base_layer().weight)
    assert tail_share(task)["vision.embedding"] == pytest.approx(1.0, rel=1e-6)


def test_a_tail_that_takes_the_general_weight_away_has_a_share_above_one():
    task = Task()
    path = GROUPS["vision.embedding"]
    layer = task.model.get_submodule(path)
    _, a, b = matrices(task, path)
    with torch.no_grad():
        layer.get_base_layer().weight.copy_(-0.75 * (b @ a).view(layer.get_base_layer().weight.shape))
    assert tail_share(task)["vision.embedding"] == pytest.approx(4.0, rel=1e-4)


def test_stock_lora_has_a_share_and_a_plain_model_has_none():
    assert set(tail_share(Task(add_lora))) == set(GROUPS)
    assert tail_share(Task(lambda model: model)) == {}


def test_share_leaves_no_graph_and_no_gradient():
    task = Task()
    tail_share(task)
    assert all(parameter.grad is None for parameter in task.parameters())


def with_gradients(task):
    """Each trained parameter's gradient is the parameter itself."""
    task.model.logit_scale.requires_grad_(False)
    for parameter in task.parameters():
        if parameter.requires_grad:
            parameter.grad = parameter.detach().clone()
    return task


def sharded(rank, folder):
    """Of one of two processes: what it sees of a task whose parameters are shared out."""
    torch.distributed.init_process_group("gloo")
    task = Task()
    fully_shard(task, ignored_params={task.model.logit_scale})  # 0-d, and frozen in a LongTailTask
    with_gradients(task)
    assert all(isinstance(p, DTensor) for p in task.parameters() if p.grad is not None)
    seen = [gradient_norms(task), tail_share(task)]
    torch.distributed.destroy_process_group()
    (folder / f"{rank}.json").write_text(json.dumps(seen))


def test_shards_of_two_processes_show_what_the_whole_task_shows(tmp_path):
    for code, printed in fork_two(tmp_path, sharded, (0, tmp_path), (1, tmp_path)):
        assert code == 0, printed
    task = with_gradients(Task())
    for rank in range(2):
        norms, share = json.loads((tmp_path / f"{rank}.json").read_text())
        assert norms == pytest.approx(gradient_norms(task), rel=1e-4)
        assert share == pytest.approx(tail_share(task), rel=1e-6)


def test_memory_grows_with_what_the_process_holds_and_its_peak_stays():
    if not sys.platform.startswith("linux"):
        pytest.skip("/proc is Linux's")
    before = memory(torch.device("cpu"))
    held = torch.ones(64 * 2**18)
    holding = memory(torch.device("cpu"))
    del held
    after = memory(torch.device("cpu"))
    assert holding["cpu_mib"] - before["cpu_mib"] == pytest.approx(64, abs=8)
    assert holding["cpu_mib"] - after["cpu_mib"] == pytest.approx(64, abs=8)
    assert after["cpu_peak_mib"] >= holding["cpu_mib"] - 1
    assert set(after) == {"cpu_mib", "cpu_peak_mib"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_memory_of_a_gpu_is_that_of_its_tensors():
    device = torch.device("cuda")
    before = memory(device)["gpu_mib"]
    held = torch.ones(2**20, device=device)
    assert memory(device)["gpu_mib"] == before + 4
    del held
    assert memory(device)["gpu_peak_mib"] >= before + 4


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_throughput_counts_photos_since_the_last_reading_and_no_pauses():
    clock = Clock()
    throughput = Throughput(clock)
    throughput.add(32)
    clock.now += 2
    with throughput.pause():
        clock.now += 50
    throughput.add(32)
    clock.now += 2
    assert throughput.reading() == 16.0
    clock.now += 1
    throughput.add(8)
    clock.now += 1
    assert throughput.reading() == 4.0
    assert throughput.reading() is None


def test_pause_ends_also_when_what_is_inside_fails():
    clock = Clock()
    throughput = Throughput(clock)
    throughput.add(10)

    def validation():
        with throughput.pause():
            clock.now += 7
            raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        validation()
    clock.now += 5
    assert throughput.reading() == 2.0


def test_flat_joins_names_and_leaves_none_out():
    nested = {"loss": 1, "discrepancy": None, "memory": {"cpu_mib": 2.5, "gpu_mib": None}, "a": {"b": {"c": 3}}}
    assert flat(nested) == {"loss": 1.0, "memory/cpu_mib": 2.5, "a/b/c": 3.0}

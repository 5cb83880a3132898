import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).parents[2]
EVAL = ROOT / "eval"
SIZE, PATCH, LAYERS, WIDTH, MLP, JOINT = 32, 8, 3, 64, 192, 48


@pytest.fixture(autouse=True)
def scaling(monkeypatch):
    monkeypatch.syspath_prepend(EVAL)
    import scaling

    return scaling


@pytest.fixture
def counted():
    """The small CLIP of these tests, as the program counts it."""
    from scaling_counts import Clip, Tower

    tower = Tower(WIDTH, LAYERS, MLP, JOINT)
    return Clip("small", replace(tower, patch=PATCH, image=SIZE), tower)


@pytest.fixture
def batch():
    from bench_batch import synthetic_batch

    return synthetic_batch("cpu", photos=4, classes=6, size=SIZE)


def small_clip(**options):
    from transformers import CLIPConfig, CLIPModel

    tower = {"hidden_size": WIDTH, "intermediate_size": MLP, "num_hidden_layers": LAYERS, "num_attention_heads": 2}
    torch.manual_seed(0)
    vision = tower | {"image_size": SIZE, "patch_size": PATCH}
    return CLIPModel(CLIPConfig(text_config=tower, vision_config=vision, projection_dim=JOINT), **options).train()


def job_of(counted, batch, **options):
    from scaling_step import Job

    photos, (classes, tokens) = len(batch.pixel_values), batch.trimmed["input_ids"].shape
    return Job(counted, photos, classes, tokens, rows=100, **options)


def operations(call) -> int:
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        call()
    return counter.get_total_flops()


@pytest.mark.parametrize("name", ["plain", "stopped", "exact", "upper_half", "last4", "text_only", "peft", "lora"])
def test_operations_are_those_that_torch_counts(counted, batch, name):
    import scaling_step
    from bench_contenders import contender

    methods = {
        "plain": scaling_step.PLAIN, "stopped": scaling_step.STOPPED, "exact": scaling_step.EXACT,
        "upper_half": scaling_step.UPPER, "last4": scaling_step.LAST, "text_only": scaling_step.TEXT_ONLY,
        "peft": scaling_step.PEFT, "lora": scaling_step.LORA,
    }  # fmt: skip
    one = contender(name, small_clip(), batch)
    found = operations(lambda: one.losses()["loss"].backward())
    assert scaling_step.work(methods[name], job_of(counted, batch)).total == pytest.approx(found, rel=1e-3)


@pytest.mark.parametrize("gradient", ["both", "stop_general"])
@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        ({"discrepancy_fraction": 0.5}, {}),
        ({"text_chunk": 2}, {"text": "chunks", "chunk": 2}),
        ({"text_chunk": 4, "tail_depth": 1 / 3}, {"text": "chunks", "chunk": 4}),
        ({"text_tower": "freeze", "tail_towers": "vision"}, {"text": "frozen"}),
    ],
)
def test_recipes_take_the_operations_that_torch_counts(counted, batch, recipe, options, gradient):
    from bench_contenders import ours
    from scaling_step import EXACT, work

    one = ours(small_clip(), batch, discrepancy_gradient=gradient, **recipe)
    found = operations(lambda: one.losses()["loss"].backward())
    fraction, depth = recipe.get("discrepancy_fraction", 1), recipe.get("tail_depth", 1)
    method = replace(EXACT, fraction=fraction, depth=depth, gradient=gradient == "both")
    assert work(method, job_of(counted, batch, **options)).total == pytest.approx(found, rel=1e-3)


@pytest.mark.parametrize("name", ["B16", "L14"])
def test_parameters_are_those_of_the_published_checkpoints(name):
    import scaling_counts

    # Of openai/clip-vit-base-patch16 and openai/clip-vit-large-patch14, CLIP's own scale apart.
    published = {"B16": 149_620_737, "L14": 427_616_513}
    assert getattr(scaling_counts, name).parameters(49408) == published[name] - 1


def test_trained_parameters_are_those_of_the_optimiser(counted, batch):
    import scaling_memory
    import scaling_step
    from bench_contenders import contender

    job = job_of(counted, batch)
    whole = replace(job, rows=scaling_memory.VOCABULARY)
    head = 1 + job.classes
    for name, method, own in (("exact", scaling_step.EXACT, whole), ("upper_half", scaling_step.UPPER, whole),
                              ("plain", scaling_step.PLAIN, job), ("lora", scaling_step.LORA, job)):  # fmt: skip
        one = contender(name, small_clip(), batch)
        found = sum(p.numel() for group in one.groups for p in group["params"])
        extra = {"plain": 1, "lora": 0}.get(name, head)  # the scale; scale and biases
        assert scaling_memory.trained(method, own) == found - extra


@pytest.mark.parametrize(("dtype", "number"), [(None, 4), (torch.bfloat16, 2)])
def test_kept_bytes_are_what_autograd_keeps_of_a_block(counted, dtype, number):
    from clip_more.models.towers import ReadoutLayer

    first, *_, last = small_clip().vision_model.encoder.layers
    last.__class__ = ReadoutLayer
    tokens = counted.vision.tokens

    def of_a_row(block, **options):
        found = []
        for rows in (8, 16):  # in the difference there are no weights, nor copies of them
            hidden = torch.randn(rows, tokens, WIDTH, requires_grad=True)
            read = {name: value.expand(rows) for name, value in options.items()}
            with torch.autocast("cpu", dtype, enabled=dtype is not None):
                found.append(kept(lambda: block(hidden * 1, None, **read)))  # noqa: B023 - called at once
        return (found[1] - found[0]) / 8

    expected = counted.vision.kept(tokens, number)
    # Besides, norms and attention keep a few numbers a token.
    assert of_a_row(first) == pytest.approx(expected[0], rel=0.02)
    assert of_a_row(last, read=torch.zeros(1, dtype=torch.long)) == pytest.approx(expected[-1], rel=0.05)


def kept(call) -> int:
    """Bytes that autograd keeps."""
    sizes, alive = {}, []

    def note(tensor):
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = call()
    assert output.requires_grad
    return sum(sizes.values())


def test_a_general_pass_without_a_gradient_keeps_nothing(batch):
    from bench_batch import synthetic_batch
    from bench_contenders import contender

    twice = synthetic_batch("cpu", photos=8, classes=6, size=SIZE)

    def of_a_photo(name):
        few, many = (contender(name, small_clip(), photos) for photos in (batch, twice))
        return (kept(lambda: many.losses()["loss"]) - kept(lambda: few.losses()["loss"])) / 4

    plain = of_a_photo("one_pass")
    assert of_a_photo("stopped") == pytest.approx(plain, rel=0.02)
    assert of_a_photo("exact") > 1.5 * plain


def test_gradients_are_whole_in_the_second_half_of_the_way_back():
    layers = [torch.nn.Linear(4, 4) for _ in range(2)]
    order = []

    def run(name):
        hidden = torch.randn(2, 4)
        for i, layer in enumerate(layers):
            hidden = layer(hidden)
            hidden.register_hook(lambda _, i=i: order.append(f"{name}{i}"))
        return hidden

    for i, layer in enumerate(layers):
        layer.weight.register_post_accumulate_grad_hook(lambda _, i=i: order.append(f"weight{i}"))
    (run("full") - run("general")).square().sum().backward()
    assert order == ["general1", "general0", "full1", "weight1", "full0", "weight0"]


def test_all_reduce_by_hand():
    from scaling_machine import H100, Assumptions, all_reduce

    whole = Assumptions(network_share=1.0)
    assert all_reduce(450e9, H100, whole, 1) == 0
    assert all_reduce(450e9, H100, whole, 8) == pytest.approx(2 * 7 / 8)
    assert all_reduce(400e9, H100, whole, 64) == pytest.approx(2 * 63 / 64)  # eight links of 50 GB/s a node
    assert all_reduce(50e9, H100, whole, 64, rails=1) == pytest.approx(2 * 63 / 64)


def test_bytes_of_fsdp_by_hand():
    from scaling_machine import H100, Assumptions, sharded
    from scaling_step import EXACT, LORA, PEFT, PLAIN, STOPPED

    # Weights gathered and gradients scattered, in units of their size, on two GPUs half of it each time.
    times = {PLAIN: 3, LORA: 3, STOPPED: 4, EXACT: 6, PEFT: 6}
    for method, number in times.items():
        assert sharded(100.0, H100, Assumptions(), 2, method)[0] == number * 50


def test_a_general_pass_without_a_gradient_costs_a_third_and_no_memory(counted, batch):
    from scaling_memory import memory
    from scaling_step import EXACT, PLAIN, STOPPED, work

    job = replace(job_of(counted, batch), photos=64)
    kept = {method: memory(method, job).a_photo for method in (PLAIN, STOPPED, EXACT)}
    assert kept[STOPPED] < kept[PLAIN] < 0.7 * kept[EXACT]  # plain keeps all positions of the last block
    assert work(STOPPED, job).again == pytest.approx(work(EXACT, job).again / 3, rel=0.05)  # patches: a half


@pytest.mark.parametrize(("text", "units"), [("step", (6, 2)), ("frozen", (4, 2))])
def test_operations_of_the_logits_by_hand(counted, batch, text, units):
    """Forward, gradient of the image features, and of the text features where they have one: 2 N C D each."""
    from scaling_step import EXACT, PLAIN, STOPPED, work

    job = job_of(counted, batch, text=text)
    unit = job.photos * job.classes * JOINT
    full, forward = units
    assert work(PLAIN, job).logits == full * unit
    assert work(STOPPED, job).logits == pytest.approx((full + forward) * unit)
    assert work(EXACT, job).logits == pytest.approx(2 * full * unit)


@pytest.mark.parametrize("text", ["step", "chunks", "refresh", "sampled"])
def test_time_of_the_text_tower_is_in_the_step(scaling, text):
    from scaling_machine import H100, Assumptions, overheads, text_seconds
    from scaling_step import STOPPED
    from scaling_tables import OPEN, Plan

    plan = Plan(Assumptions(), {name: 2 * value[0] for name, value in scaling.MEASURED.items()})
    overhead = overheads(plan.measured)[STOPPED]
    for job in OPEN.values():
        more = plan.step(STOPPED, replace(job, text=text)).total - plan.step(STOPPED, job).total
        # Besides, the text tower is moved, and logits have a gradient of its features.
        assert 0.8 * more < text_seconds(STOPPED, replace(job, text=text), H100, plan.assumed, overhead) < more


def test_gradients_hide_behind_the_way_back_of_the_full_pass(scaling):
    from scaling_lists import _window
    from scaling_machine import H100, Assumptions, overheads
    from scaling_step import STOPPED, work
    from scaling_tables import COCO, Plan

    plan = Plan(Assumptions(), {name: value[0] for name, value in scaling.MEASURED.items()})
    for clip, job in COCO.items():
        back = 2 / 3 * work(STOPPED, job).once / (plan.assumed.share * H100.half)
        assert _window(plan, clip) == pytest.approx(overheads(plan.measured)[STOPPED] * back, rel=0.01)


def test_measured_rows_scale_what_was_counted(scaling):
    from scaling_machine import Assumptions
    from scaling_step import EXACT, PEFT, PLAIN
    from scaling_tables import COCO, Plan

    measured = {name: value[0] for name, value in scaling.MEASURED.items()}
    slower = measured | {"exact_vs_plain": 2 * measured["exact_vs_plain"]}
    job = next(iter(COCO.values()))
    before, after = Plan(Assumptions(), measured), Plan(Assumptions(), slower)
    assert after.step(EXACT, job).products == pytest.approx(2 * before.step(EXACT, job).products)
    assert after.step(PEFT, job).products == pytest.approx(2 * before.step(PEFT, job).products)
    assert after.step(PLAIN, job) == before.step(PLAIN, job)


def test_rows_are_read_in_fp32_and_what_lacks_is_named(scaling, tmp_path):
    file = tmp_path / "rows.json"
    rows = [{"row": f"step.{name}", "dtype": "fp32", "ratio": 1.5} for name in scaling.MEASURED]
    file.write_text(json.dumps([*rows, {**rows[0], "dtype": "bf16", "ratio": 9.0}]))
    assert scaling.read_rows(file) == dict.fromkeys(scaling.MEASURED, 1.5)
    file.write_text(json.dumps(rows[1:]))
    with pytest.raises(ValueError, match=r"rows\.json: there is no fp32 row step\.stopped_vs_plain"):
        scaling.read_rows(file)
    file.write_text("{}")
    with pytest.raises(ValueError, match=r"there is no fp32 row"):
        scaling.read_rows(file)
    file.write_text("[1]")
    with pytest.raises(ValueError, match=r"no rows of eval/benchmark\.py"):
        scaling.read_rows(file)


def run(scaling, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["scaling.py", *map(str, arguments)])
    scaling.main()


def test_the_document_holds_what_the_program_prints(scaling, monkeypatch):
    run(scaling, monkeypatch, "--check", ROOT / "docs" / "scaling.md")


def test_a_changed_figure_is_found_and_written_back(scaling, monkeypatch, tmp_path):
    document = tmp_path / "scaling.md"
    text = (ROOT / "docs" / "scaling.md").read_text()
    document.write_text(text.replace("| ViT-B/16 | plain, stock |", "| ViT-B/16 | plain! |", 1))
    with pytest.raises(SystemExit, match=r"scaling\.md: expected differ"):
        run(scaling, monkeypatch, "--check", document)
    run(scaling, monkeypatch, "--write", document)
    assert document.read_text() == text
    with pytest.raises(SystemExit, match="differ"):
        run(scaling, monkeypatch, "--price", "9", "--check", document)
    document.write_text(text.replace("<!-- table: many -->", ""))
    with pytest.raises(SystemExit, match="many"):
        run(scaling, monkeypatch, "--check", document)


def test_the_least_number_of_classes_is_the_trainers():
    import scaling_step
    from clip_more.training.task import LEAST_CLASSES

    assert scaling_step.LEAST_CLASSES == LEAST_CLASSES

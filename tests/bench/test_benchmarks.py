"""The benchmark suite: rows, arithmetic, baselines, and that what is wrong has no time."""

import dataclasses
import functools
import re

import pytest
import torch

from benchmarks.compared import baselines
from benchmarks.harness import check, machine, measure, roofline, timing
from benchmarks.harness.rows import Row, file_name, read_rows, write_rows
from benchmarks.harness.settings import Settings
from benchmarks.questions import classifier_step, layers, lm_step
from benchmarks.questions.all import ON_REQUEST, QUESTIONS


def test_rows_survive_the_csv(tmp_path, settings):
    full = settings.row(
        question="layer",
        implementation="ours, with a comma",
        passes="training",
        dtype="float32",
        error=1.5e-7,
        median_us=12.25,
        peak_bytes=7,
        tokens_per_second=3.5,
    )
    wrong = dataclasses.replace(full, right=False, error=float("inf"), median_us=None)
    path = tmp_path / "results" / "rows.csv"
    write_rows(path, [full, wrong])
    assert read_rows(path) == [full, wrong]
    assert [p.name for p in path.parent.iterdir()] == ["rows.csv"]
    header = path.read_text(encoding="utf-8").splitlines()[0].split(",")
    assert header == [field.name for field in dataclasses.fields(Row)]


def test_a_device_has_one_file():
    assert file_name("cpu", "AMD EPYC") == "cpu_amd_epyc.csv"


@pytest.mark.parametrize(
    ("lines", "name"),
    [
        (["cpu family\t: 25", "model\t\t: 17", "model name\t: AMD EPYC"], "AMD EPYC 25-17"),
        (["model\t\t: 85", "model name\t: Xeon 8259CL"], "Xeon 8259CL"),
    ],
)
def test_a_processor_whose_name_says_nothing_has_its_family(lines, name, monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "_CPUINFO", tmp_path / "cpuinfo")
    machine._CPUINFO.write_text("\n".join(lines), encoding="utf-8")
    assert machine.processor() == name
    assert file_name("cuda", "NVIDIA H100 80GB HBM3") == "cuda_nvidia_h100_80gb_hbm3.csv"


def test_a_row_names_the_machine(settings):
    row = settings.row(question="layer", implementation="x", passes="forward", dtype="float32")
    assert row.device and row.cores >= 1 and row.threads >= 1
    assert row.torch == torch.__version__ and row.python.startswith("3.")
    assert row.driver == row.cudnn == ""
    assert isinstance(row.dirty, bool)


def test_the_arithmetic_of_a_step():
    # H = 1152, B = 64: W_hh in bfloat16 is 4 * 1152 * 1152 * 2 bytes; a step multiplies it by h.
    one = roofline.layer_cost(0, 1152, 64, 1, 2, training=False)
    assert one.operations == 2 * 64 * 4608 * 1152 == pytest.approx(0.68e9, rel=2e-3)
    w_hh, biases, output = 10_616_832, 2 * 4608 * 2, 64 * 1152 * 2
    assert one.moved == w_hh + biases + output
    assert one.barriers == 1


def test_the_arithmetic_of_a_layer_by_hand():
    # E = 2, H = 3, B = 5, T = 7, 4 bytes: parameters 12 * (2 + 3 + 2), ends 35 * (2 + 3).
    forward = roofline.layer_cost(2, 3, 5, 7, 4, training=False)
    assert forward == roofline.Cost(2 * 35 * 12 * 5, 4 * (84 + 175), 7)
    training = roofline.layer_cost(2, 3, 5, 7, 4, training=True)
    assert training == roofline.Cost(3 * forward.operations, 3 * forward.moved, 14)
    stack = roofline.stack_cost((2, 3, 3), 5, 7, 4, training=True)
    assert stack == training + roofline.layer_cost(3, 3, 5, 7, 4, training=True)


def test_the_arithmetic_of_decoder_and_adam():
    decoder = roofline.decoder_cost(4480, 400, 60_008, 2)
    assert decoder.operations / 3 == pytest.approx(215e9, rel=2e-3)
    assert decoder.moved == 3 * 2 * 400 * (60_008 + 4480)
    assert roofline.adam_cost(10) == roofline.Cost(0, 280, 0)
    assert roofline.embedding_cost(5, 3, 100).moved == 4 * 3 * (3 * 5 + 100)


def test_the_arithmetic_of_a_whole_step():
    asked = lm_step.problem(Settings(tiny=True))
    costs = lm_step.costs_of(asked, torch.float32)
    parts = [costs[part] for part in ("embedding", "layers", "decoder", "optimizer")]
    assert costs["step"] == tuple(sum(values) for values in zip(*parts, strict=True))
    # The tied weight counts once: embedding 40 x 6, its bias, two layers 6->16 and 16->6.
    parameters = 40 * 6 + 40 + 4 * 16 * (6 + 16 + 2) + 4 * 6 * (16 + 6 + 2)
    assert costs["optimizer"].moved == 7 * 4 * parameters
    assert costs["layers"].barriers == 2 * 2 * asked.steps


def test_the_barrier_compiles_for_a_gpu():
    pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget

    from benchmarks.compile.inspect import Launch, compile_launch
    from benchmarks.harness import barrier

    counter, error = (torch.zeros(32, dtype=torch.int32, device="meta") for _ in range(2))
    options = {"num_warps": 4, "launch_cooperative_grid": True}
    constants = {"SPINS": 10, "INLINE_POLL": True}
    launch = Launch(barrier._barrier_kernel, (counter, error, 10), constants, options)
    code = compile_launch(launch, GPUTarget("cuda", 90, 32)).asm["ptx"]
    assert "atom.global.gpu.release" in code and "ld.acquire.gpu" in code
    # A block gives up after a time, not after a number of polls; of its threads one warp polls, and
    # the others wait at a barrier for what it saw.
    one_warp = r"setp.lt.u32 mine, \w+, 32;\s+@!mine bra found;.*%globaltimer.*look:\s+ld.acquire"
    assert re.search(one_warp + r".*found:\s.*barrier.red.or.pred", code, re.DOTALL)


def test_the_floor_is_the_busier_of_the_two_and_the_waiting():
    busy = roofline.Cost(2e9, 1e6, 10)
    assert roofline.floor_us(busy, copied=1e9, rate=1e12, barrier_us=1.5) == 2000 + 15
    moving = roofline.Cost(2e9, 8e6, 10)
    assert roofline.floor_us(moving, copied=1e9, rate=1e12, barrier_us=0) == 8000


def test_ceilings_are_measured():
    found = roofline.measure(Settings(tiny=True, repeats=2))
    assert found.copied > 0 and found.rate(torch.float32) > 0 and found.barrier_us == 0
    assert "float32" in str(found)


def ours(backend, **drops):
    return lambda settings, dtype: layers.ours(settings, backend, dtype, **drops)


MAKERS = {
    "today": layers.today,
    "plain": layers.plain,
    "auto": ours("auto"),
    "eager": ours("eager"),
    "reference": ours("reference"),
    "gates": ours("eager", weight_p=0.5, gate_p=0.1),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", MAKERS)
def test_every_implementation_has_the_same_results(name, dtype, settings):
    weights = baselines.make_weights((6, 16, 5), "cpu")
    implementation = MAKERS[name](settings, dtype)(weights)
    x, grad = torch.randn(7, 3, 6), torch.randn(7, 3, 5)
    wanted = baselines.truth(implementation, weights, x, grad)
    got = baselines.results(implementation, x, grad)
    assert len(got) == len(wanted) == 4
    assert check.error_of(got, wanted) < (1e-5 if dtype == torch.float32 else 1e-12)


def test_masks_matter_to_the_truth(settings):
    weights = baselines.make_weights((6, 16), "cpu")
    x, grad = torch.randn(7, 3, 6), torch.randn(7, 3, 16)
    dropped = layers.today(settings)(weights)
    wanted = baselines.truth(layers.plain(settings)(weights), weights, x, grad)
    assert check.error_of(baselines.results(dropped, x, grad), wanted) > 0.05


def test_an_error_is_a_share_of_the_largest_value():
    wanted = [torch.tensor([1.0, -4.0]), torch.tensor([0.5])]
    got = [torch.tensor([1.0, -3.0]), torch.tensor([0.5])]
    assert check.error_of(got, wanted) == 0.25
    assert check.error_of([torch.tensor([float("nan"), 0.0]), wanted[1]], wanted) == float("inf")


def test_what_is_wrong_has_no_time(settings, said):
    def wrong(weights):
        made = layers.ours(settings, "eager")(weights)
        right = made.seeded
        return dataclasses.replace(made, name="wrong", seeded=lambda x, seed: 1.01 * right(x, seed))

    rows = layers.compare_layers(
        settings,
        [layers.today(settings), wrong, layers.ours(settings, "eager")],
        question="layer",
        widths=(6, 16),
        batch_size=3,
        steps=4,
    )
    by_name = {}
    for row in rows:
        by_name.setdefault(row.implementation, []).append(row)
    assert all(not row.right and row.median_us is None for row in by_name["wrong"])
    assert all(row.times_as_fast is None and row.p10_us is None for row in by_name["wrong"])
    assert all(row.right and row.median_us > 0 for row in by_name["ulmfit_fast eager"])
    lines = [line for line in said if " wrong " in line]
    assert len(lines) == 2 and all("WRONG" in line and " us " not in line for line in lines)


def test_what_raises_is_noted_and_the_others_go_on(settings):
    def broken(turn):
        raise RuntimeError("no such primitive\nand more")

    entries = [
        measure.Entry("broken", "step", torch.float32, broken),
        measure.Entry("unchecked", "step", torch.float32, broken, lambda: broken(0)),
        measure.Entry("right", "step", torch.float32, lambda turn: None, lambda: 0.0),
    ]
    rows = measure.compare(entries, settings, question="q", baseline="right")
    assert [row.implementation for row in rows] == ["right"]
    assert rows[0].times_as_fast == 1.0
    assert len(settings.notes) == 2 and all("no such primitive" in n for n in settings.notes)


def test_implementations_take_turns_and_rotate_their_inputs():
    seen = []
    steps = {name: lambda turn, name=name: seen.append((name, turn)) for name in "ab"}
    times, failed = timing.time_interleaved(steps, repeats=3, cuda=False, warm_up=False)
    assert seen == [("a", 0), ("b", 0), ("b", 1), ("a", 1), ("a", 2), ("b", 2)]
    assert set(times) == set("ab") and not failed
    assert all(time.repeats == 3 and time.p10 <= time.median <= time.p90 for time in times.values())


def test_nothing_begins_when_the_time_is_up(settings):
    settings.end = 0.0
    for question in {**QUESTIONS, **ON_REQUEST}.values():
        assert question(settings) == []
    assert len(settings.notes) >= len(QUESTIONS)


def test_language_model_steps_agree():
    asked = lm_step.problem(Settings(tiny=True))
    batches = asked.batches()
    results = functools.partial(lm_step._results, asked=asked, batches=batches)
    wanted = results(lm_step.make_plain, dtype=torch.float64)
    assert len(wanted) == 5  # the loss, the embedding, two recurrent weights, the decoder's bias
    for make in (lm_step.make_plain, lm_step.make_ours):
        assert check.error_of(results(make, dtype=torch.float32), wanted) < 1e-4


@pytest.mark.parametrize("passes", [classifier_step.ALL, classifier_step.LAST])
def test_classifier_steps_agree(passes):
    asked = classifier_step.problem(Settings(tiny=True))
    results = functools.partial(classifier_step._results, asked=asked, passes=passes)
    wanted = results(classifier_step._plain, dtype=torch.float64)
    for make in (classifier_step._plain, classifier_step._ours):
        assert check.error_of(results(make, dtype=torch.float32), wanted) < 1e-4


@pytest.mark.parametrize("why", ["it has neither AMX nor AVX512-bf16", None])
def test_what_is_emulated_has_no_floor_and_is_not_measured(settings, monkeypatch, why):
    measured = []
    monkeypatch.setattr(roofline.machine, "why_no_bfloat16", lambda: why)
    monkeypatch.setattr(
        roofline, "product_rate", lambda settings, dtype: measured.append(dtype) or 1e9
    )
    cost = roofline.Cost(2e9, 1.0, 0)
    floor = roofline.ceilings(settings).floor_us(cost, torch.bfloat16)
    assert floor == (None if why else 2e6) and measured == ([] if why else [torch.bfloat16])
    assert roofline.ceilings(settings).floor_us(cost, torch.float32) == 2e6


@pytest.mark.parametrize("p", [0.0, 0.5])
def test_a_dropped_weight_does_not_hold_the_graph_of_its_call(p):
    """What holds one ties later calls to its stream, which a captured one may not use."""
    layer = baselines.WeightDropped(torch.nn.LSTM(3, 4), p)
    for _ in range(2):
        layer(torch.randn(2, 1, 3))[0].sum().backward()
    assert layer.raw.grad is not None and layer.lstm.weight_hh_l0.grad_fn is None
    assert "weight_hh_l0" not in dict(layer.lstm.named_parameters())

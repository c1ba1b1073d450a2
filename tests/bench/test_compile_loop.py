"""What is read of a listing of compiled code."""

import pytest

from benchmarks.compile import loop as compile_loop
from benchmarks.compile.expect import Expected, loaded_in_a_step
from benchmarks.compile.inspect import Found
from benchmarks.compile.variants import Variant


def sass(*lines: str) -> str:
    return "\n".join(f"        /*{16 * n:04x}*/    {line} ;" for n, line in enumerate(lines))


STEPS = sass(
    "LDGSTS.E.BYPASS.128 [R1], [R2.64]",  # 0x00, a turn that was moved out of the loop
    "LDG.E.64 R4, [R2.64]",
    "LDG.E.128.STRONG.GPU R4, [R2.64]",  # 0x20, the time step begins
    "@!P0 LDG.E.U16 R6, [R2.64]",
    "HGMMA.64x64x16.F32.BF16 R24, gdesc[UR56], R24",
    "WARPGROUP.DEPBAR.LE gsb0, 0x0",
    "MUFU.EX2 R5, R5",
    "BAR.SYNC.DEFER_BLOCKING 0x0",
    "LDG.E.STRONG.GPU R7, [R8.64]",  # 0x80, the poll begins
    "@P1 BRA 0x80",
    "BAR.ALL.CTA",
    "@P0 BRA 0x20",  # 0xb0
    "STG.E R4, [R2.64]",
    "@P3 BRA 0xf0",  # forwards
    "EXIT",
    "BRA 0xf0",  # a trap behind the end
)


def test_a_time_step_with_its_poll() -> None:
    assert compile_loop.read_sass(STEPS) == compile_loop.Loop(
        code=16,
        instructions=10,
        barriers=2,
        waits=1,
        special=1,
        loaded=16 + 2,
        loaded_outside=8,
        products={"HGMMA.64x64x16.F32.BF16": 1},
    )


def test_a_time_step_with_a_loop_of_its_own_for_the_products() -> None:
    code = sass(
        "LDGSTS.E.128 [R1], [R2.64]",  # 0x00, the time step begins
        "LDG.E.64 R4, [R2.64]",
        "HGMMA.64x64x16.F32.BF16 R24, gdesc[UR56], R24",  # 0x20, a K tile
        "LDGSTS.E.BYPASS.128 [R1], [R2.64]",
        "@P0 BRA 0x20",
        "@P1 BRA 0x0",
        "EXIT",
    )
    loop = compile_loop.read_sass(code)
    assert (loop.instructions, loop.inner, loop.loaded, loop.copied) == (6, 3, 8, 16)
    assert loop.through_l1 == 1
    variant = Variant("sm_90", "persistent", "forward", 1152, 64, "bf16", "dropout")
    expected = Expected((64, 64, 64), turns=18)
    assert loaded_in_a_step(variant, expected, Found(0, 0, 0, 0, loop=loop), 4) == 128 * (
        8 + 18 * 16
    )


def test_code_without_a_loop_of_products() -> None:
    code = sass("LDG.E.128 R4, [R2.64]", "FADD R4, R4, R4", "@P0 BRA 0x10", "EXIT")
    assert compile_loop.read_sass(code) == compile_loop.Loop(4, loaded_outside=16)


def test_amd() -> None:
    code = "f:\n\ts_load_dwordx2 s[0:1]\n.LBB0_1:  ; loop\n\tv_mfma_f32_32x32x8_bf16 v[0:1]\n"
    code += "\ts_waitcnt vmcnt(0)\n\ts_barrier\n\tv_exp_f32_e32 v1, v2\n"
    code += "\ts_cbranch_scc1 .LBB0_1\n\ts_cbranch_scc0 .LBB0_2\n.LBB0_2:\n\ts_endpgm\n"
    found = compile_loop.read_amd(code)
    assert (found.code, found.instructions, found.products) == (
        8,
        5,
        {"v_mfma_f32_32x32x8_bf16": 1},
    )
    assert (found.barriers, found.waits, found.special) == (1, 1, 1)


@pytest.mark.parametrize(
    ("product", "per_turn"),
    [("HMMA.16816.F32.BF16", 32), ("HGMMA.64x64x16.F32.BF16", 4), ("UTCHMMA", 4)],
)
def test_a_stepwise_step_is_all_turns_of_its_loop(product: str, per_turn: int) -> None:
    """A tile of 64 x 64 x 64 in four warps; two tiles a turn; 18 tiles at H = 1152."""
    variant = Variant("sm_90", "stepwise", "forward", 1152, 64, "bf16", "dropout")
    expected = Expected((64, 64, 64))
    loop = compile_loop.Loop(
        100, 50, loaded=256, loaded_outside=8, products={product: 2 * per_turn}
    )
    found = Found(0, 0, 0, 0, loop=loop)
    assert loaded_in_a_step(variant, expected, found, 4) == 128 * (9 * 256 + 8)
    backward = variant._replace(kernel="backward")
    assert loaded_in_a_step(backward, expected, found, 4) == 128 * (36 * 256 + 8)
    persistent = variant._replace(form="persistent")
    assert loaded_in_a_step(persistent, expected, found, 4) == 128 * 256
    amd = variant._replace(arch="gfx942")
    assert loaded_in_a_step(amd, expected, found, 4) is None

"""What is said of a kernel's machine code, on kernels whose faults are known, and on SASS that is written out here."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from polyserve_kernels.triton.machine_code import occupancy, parse_sass, read_loops
from polyserve_kernels.triton.report.tables import between_markers


@pytest.fixture(scope="module")
def compiled() -> dict[str, Any]:
    """What `support/compiled_badly.py` prints. Nothing can be compiled in this process, which interprets."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "-m", "support.compiled_badly"],
        check=True, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1], env=environment,
    )  # fmt: skip
    return dict(json.loads(run.stdout))


def faults_of(compiled: dict[str, Any], name: str, arch: int) -> str:
    return "\n".join(fault for fault in compiled["faults"] if fault.startswith(f"{name} (4096 rows) on sm_{arch}"))


@pytest.mark.parametrize("arch", [80, 90])
def test_a_kernel_that_spills_is_a_fault_and_says_how_much(compiled, arch):
    spilled = compiled["code"][f"spilling {arch}"]["spill_bytes"]
    assert spilled > 0
    assert f"_product_kernel spills {spilled} bytes a thread" in faults_of(compiled, "spilling", arch)


def test_many_rows_without_wgmma_are_a_fault_on_sm_90_alone(compiled):
    assert "multiplies with HMMA.16816.F32.BF16, not with HGMMA alone" in faults_of(compiled, "few_rows", 90)
    assert faults_of(compiled, "few_rows", 80) == ""


@pytest.mark.parametrize("arch", [80, 90])
def test_a_loop_whose_loads_wait_is_a_fault(compiled, arch):
    assert "loop of matrix instructions without asynchronous copies" in faults_of(compiled, "unpipelined", arch)


def test_calls_that_promise_the_same_bits_must_share_their_matrix_instruction(compiled):
    ways = [fault for fault in compiled["faults"] if fault.startswith("the product")]
    assert ways == [
        "the product on sm_90 is multiplied in more than one way: "
        "HGMMA.64xNx16.F32.BF16 in good; HMMA.16816.F32.BF16 in two_ways"
    ]


@pytest.mark.parametrize(("arch", "instruction"), [(80, "HMMA.16816.F32.BF16"), (90, "HGMMA.64x128x16.F32.BF16")])
def test_a_good_kernel_has_no_fault_and_its_facts_are_told(compiled, arch, instruction):
    assert faults_of(compiled, "good", arch) == ""
    code = compiled["code"][f"good {arch}"]
    assert code["spill_bytes"] == 0
    assert 128 < code["registers"] <= 255  # 128 x 128 sums in 128 threads
    assert code["shared_bytes"] >= 2 * 2 * 128 * 64 * 2  # two stages of two tiles in bfloat16
    assert list(code["matrix"]) == [instruction]
    (loop,) = code["loops"]
    assert loop["matrix"] > 0
    assert loop["async_copies"] == 16  # of 16 bytes a thread: two tiles of 128 x 64
    assert loop["loads"] == 0


def test_the_check_fails_if_one_of_the_calls_has_a_fault(compiled):
    assert (compiled["exit_code_of_good"], compiled["exit_code_of_spilling"]) == (0, 1)


def test_the_bytes_of_a_product_are_those_of_its_three_matrices(compiled):
    assert compiled["least_bytes"] == compiled["moved_bytes"] == 3 * 4096 * 4096 * 2


def test_the_summary_has_a_line_for_each_operation_and_shows_its_worst(compiled):
    lines = compiled["summary"].splitlines()[2:]
    assert [line.split("`")[1] for line in lines] == ["good", "spilling", "few_rows", "unpipelined", "two_ways"]
    cells = [cell.strip() for cell in lines[1].split("|")]
    assert cells[4] == str(max(compiled["code"][f"spilling {arch}"]["spill_bytes"] for arch in (80, 90)))
    assert cells[7] == "HMMA.16816 / HGMMA.64xNx16 / -"  # sm_100 was not asked for


def test_the_report_and_the_json_have_every_call_on_every_architecture(compiled):
    assert len([line for line in compiled["report"].splitlines() if line.startswith("| 4096 rows")]) == 10
    rows = compiled["json"]["rows"]
    assert len(rows) == 10
    good = rows[0]
    assert (good["operation"], good["arch"], good["flops"]) == ("good", 80, 2 * 4096**3)
    assert good["roofline_us"] == {"A100": pytest.approx(2 * 4096**3 / 312e12 * 1e6, abs=0.01)}
    launch = dict(zip(compiled["json"]["launch_fields"], *good["launches"], strict=True))
    loops = [dict(zip(compiled["json"]["loop_fields"], loop, strict=True)) for loop in launch.pop("loops")]
    head = {"kernel": "_product_kernel", "count": 1, "num_warps": 4, "num_stages": 3}
    assert {**launch, "loops": loops} == {**head, **compiled["code"]["good 80"]}


SASS = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;     /* 0x00000a0000017a02 */
                                                              /* 0x000fc40000000f00 */
        /*0010*/              @!P0 BRA 0x90 ;                 /* 0x0000008000008947 */
        /*0020*/                   HMMA.16816.F32.BF16 R4, R132.reuse, R2, R4 ;
        /*0030*/                   LDGSTS.E.BYPASS.128 [R206], [R248.64], P0 ;
        /*0040*/              @!P1 BRA 0xb0 ;
        /*0050*/               @P0 BRA 0x20 ;
        /*0060*/                   BRA.U UP0, 0x80 ;
        /*0070*/                   LDG.E R2, [R2.64] ;
        /*0080*/                   EXIT ;
        /*0090*/                   HMMA.16816.F32.BF16 R4, R132.reuse, R2, R4 ;
        /*00a0*/                   BRA 0x60 ;
        /*00b0*/                   LDG.E.128 R8, [R2.64] ;
        /*00c0*/                   BRA 0x50 ;
        /*00d0*/                   BRA 0xd0;
"""


def test_a_loop_is_what_leads_back_to_its_head_even_where_it_lies_apart():
    (loop,) = read_loops(parse_sass(SASS))
    assert (loop.matrix, loop.async_copies, loop.loads) == (1, 1, 1)


def test_instructions_are_read_with_their_guards():
    instructions = parse_sass(SASS)
    assert len(instructions) == 14
    assert [instruction.address for instruction in instructions if instruction.guarded] == [0x10, 0x40, 0x50]


@pytest.mark.parametrize(
    ("registers", "shared_bytes", "tensor_columns", "expected"),
    [
        (32, 0, 0, 64),  # 32 blocks of 2 warps would fit, and 16 of 4 are all warps there are
        (128, 0, 0, 16),  # registers: 65,536 / (128 x 32) warps
        (129, 0, 0, 12),  # given in units of 8 a thread: 65,536 / (136 x 32) = 15 warps, 3 blocks
        (32, 100 * 1024, 0, 8),  # 228 KiB hold two blocks of 100 KiB and 1 more each
        (32, 113 * 1024, 0, 8),
        (32, 114 * 1024, 0, 4),
        (32, 0, 256, 8),  # 512 columns of tensor memory
    ],
)
def test_occupancy_is_what_the_scarcest_resource_leaves(registers, shared_bytes, tensor_columns, expected):
    assert occupancy(100, 4, registers, shared_bytes, tensor_columns) * 64 == expected


def test_the_report_goes_between_its_markers_and_leaves_the_rest():
    text = "before\n<!-- written by make kernels-report -->\nold\n<!-- end -->\nafter\n"
    assert between_markers(text, "new") == text.replace("old", "new")
    with pytest.raises(ValueError, match="there must be a line"):
        between_markers("no markers", "new")

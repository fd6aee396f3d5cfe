"""The list of shipped calls, which the report on machine code and its rules are about."""

from polyserve_kernels import ops
from polyserve_kernels.triton.shipped import shipped
from polyserve_kernels.triton.tuning import tuned
from support.gpu_operations import OPERATIONS

DIFFERENTIABLE = {
    "attention_varlen", "bias_gelu", "gated_gelu", "gated_silu", "layer_norm", "linear_cross_entropy", "rms_norm",
    "rotary",
}  # fmt: skip


def test_no_operation_is_forgotten():
    assert {call.operation.__name__ for call in shipped()} == OPERATIONS


def test_no_gradient_is_forgotten():
    assert {call.operation.__name__ for call in shipped() if call.gradients_of} == DIFFERENTIABLE


def test_each_configuration_is_named_once():
    names = [(call.name, call.configuration) for call in shipped()]
    assert len(names) == len(set(names))


def test_tensors_are_without_contents():
    for call in shipped():
        assert call.args[0].k.is_meta if call.operation is ops.copy_blocks else call.args[0].is_meta


def test_every_head_size_is_multiplied_in_prefill_and_in_decode_alike():
    for size in (64, 80, 96, 128, 256):
        group = [call for call in shipped() if call.products == f"attention, D {size}, bfloat16"]
        assert {call.operation for call in group} == {ops.attention_varlen, ops.paged_prefill, ops.paged_decode}


def test_an_architecture_without_a_row_takes_one_whose_shared_memory_it_has():
    table = {arch: arch for arch in (80, 86, 90, 100)}
    assert {arch: tuned(table, arch) for arch in (75, 80, 86, 89, 90, 100, 103, 120, 121)} == {
        75: 80, 80: 80, 86: 86, 89: 86, 90: 90, 100: 100, 103: 100, 120: 86, 121: 86
    }  # fmt: skip
    assert tuned({80: "old", 90: "new", 100: "newest"}, 120) == "old"

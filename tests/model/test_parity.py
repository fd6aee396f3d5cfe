"""Every family in every format says what `transformers` says, in fp32 and in bf16."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask
from transformers.models.gemma3.modeling_gemma3 import eager_attention_forward

from polyserve.model.weights.load import load_model
from support.checkpoints import FAMILIES, FOLDER_FORMATS, Family, Sizes, save, tiny_model
from support.logits import disagreements, greedy_tokens, packed_logits, random_ids, reference_logits

GGUF_OF_EACH_KIND = ("gguf-f32", "gguf-f16", "gguf-bf16", "gguf-q8_0", "gguf-q4_0")
LENGTHS = (40, 1, 23)  # longer than Gemma's tiny window, shorter than one padded chunk of rows, and neither
FP32_ERROR = 1e-4  # logits have a standard deviation of 2; summing in another order moves them by about 1e-5


@pytest.mark.parametrize("format", FOLDER_FORMATS + GGUF_OF_EACH_KIND)
@pytest.mark.parametrize("family", FAMILIES)
def test_fp32_logits_and_greedy_tokens_are_those_of_transformers(family: Family, format: str, tmp_path: Path) -> None:
    reference = tiny_model(family)
    path = save(reference, tmp_path, format, family=family)
    prompts = random_ids(*LENGTHS)
    sequences = [prompt + greedy_tokens(reference, prompt, 4) for prompt in prompts]
    wanted = reference_logits(reference, sequences)
    got = packed_logits(load_model(path, dtype=torch.float32), sequences)
    for ours, theirs in zip(got, wanted, strict=True):
        assert (ours - theirs).abs().max() < FP32_ERROR
        assert disagreements(ours, theirs) == []


@pytest.mark.parametrize("format", ["safetensors", "gguf-q8_0"])
@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_error_is_at_most_twice_that_of_transformers(family: Family, format: str, tmp_path: Path) -> None:
    reference = tiny_model(family)
    path = save(reference, tmp_path, format, family=family)
    sequences = random_ids(*LENGTHS)
    exact = torch.cat(reference_logits(reference, sequences))
    theirs = torch.cat(reference_logits(reference.to(torch.bfloat16), sequences))
    ours = torch.cat(packed_logits(load_model(path, dtype=torch.bfloat16), sequences))
    assert (ours - exact).abs().max() <= 2 * (theirs - exact).abs().max()


def test_fp16_error_is_at_most_twice_that_of_transformers(tmp_path: Path) -> None:
    reference = tiny_model("llama")
    path = save(reference, tmp_path, family="llama")
    sequences = random_ids(*LENGTHS)
    exact = torch.cat(reference_logits(reference, sequences))
    theirs = torch.cat(reference_logits(reference.to(torch.float16), sequences))
    ours = torch.cat(packed_logits(load_model(path, dtype=torch.float16), sequences))
    assert (ours - exact).abs().max() <= 2 * (theirs - exact).abs().max()


CONFIGS: dict[str, tuple[Family, dict[str, object]]] = {
    "gpt2 without attention scaling": ("gpt2", {"scale_attn_weights": False}),
    "gpt2 with its own head": ("gpt2", {"tie_word_embeddings": False}),
    "bloom with its own head": ("bloom", {"tie_word_embeddings": False}),
    "llama with a tied head": ("llama", {"tie_word_embeddings": True}),
    "llama with biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama without shared heads": ("llama", {"num_key_value_heads": 6}),
    "llama with one key head": ("llama", {"num_key_value_heads": 1}),
    "gemma3 with biases": ("gemma3", {"attention_bias": True}),
    "gemma3 with capped logits": ("gemma3", {"final_logit_softcapping": 1.5}),
    "gemma3 with capped scores": ("gemma3", {"attn_logit_softcapping": 2.0}),
    "gemma3 with another score scale": ("gemma3", {"query_pre_attn_scalar": 100}),
    "gemma3 with its own head": ("gemma3", {"tie_word_embeddings": False}),
    "gemma3 with scaled positions": (
        "gemma3",
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            }
        },
    ),
}


def capped_attention(
    module: torch.nn.Module, *inputs: torch.Tensor, **options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """transformers' own attention, told of the cap that its Gemma 3 reads from the config and then does not pass on."""
    return eager_attention_forward(module, *inputs, softcap=module.attn_logit_softcapping, **options)


@pytest.fixture(autouse=True, scope="module")
def capped() -> None:
    AttentionInterface.register("capped", capped_attention)
    AttentionMaskInterface.register("capped", eager_mask)


@pytest.mark.parametrize("name", CONFIGS)
def test_what_a_config_can_change_changes_the_logits_as_in_transformers(name: str, tmp_path: Path) -> None:
    family, config = CONFIGS[name]
    reference = tiny_model(family, config=config)
    if family == "gemma3":
        reference.set_attn_implementation("capped")
    path = save(reference, tmp_path, family=family)
    sequences = random_ids(30)
    wanted = reference_logits(reference, sequences)[0]
    got = packed_logits(load_model(path, dtype=torch.float32), sequences)[0]
    assert (got - wanted).abs().max() < FP32_ERROR


@pytest.mark.parametrize("num_heads", [1, 3, 4, 5, 6, 7, 12])
def test_bloom_agrees_for_any_number_of_heads(num_heads: int, tmp_path: Path) -> None:
    sizes = Sizes(hidden_size=16 * num_heads, num_heads=num_heads, num_layers=1)
    reference = tiny_model("bloom", sizes=sizes)
    path = save(reference, tmp_path, family="bloom")
    sequences = random_ids(30)
    got = packed_logits(load_model(path, dtype=torch.float32), sequences)[0]
    assert (got - reference_logits(reference, sequences)[0]).abs().max() < FP32_ERROR


def test_gemma3_in_gguf_has_its_usual_pattern_of_layers(tmp_path: Path) -> None:
    sizes = Sizes(num_layers=7)
    reference = tiny_model("gemma3", sizes=sizes, config={"layer_types": None})  # every sixth sees everything
    path = save(reference, tmp_path, "gguf-f32", family="gemma3")
    sequences = random_ids(30)
    model = load_model(path, dtype=torch.float32)
    assert model.config.windows == (8, 8, 8, 8, 8, None, 8)
    assert (packed_logits(model, sequences)[0] - reference_logits(reference, sequences)[0]).abs().max() < FP32_ERROR

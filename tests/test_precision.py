"""True float64: which casts are dropped, and how little noise is left in every family."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn.functional import log_softmax, softmax
from torch.testing import assert_close

from attention_cases import INTERFACE
from headwater.attention import switched_on
from headwater.precision import context_for, eager_experts, is_float64, true_float64
from tiny_models import BUILDERS, build, shared, tokens

# --- casts -------------------------------------------------------------------------------------

FLOAT32 = torch.zeros(2)
DOWN: dict[str, Callable[[Tensor], Tensor]] = {
    "to(dtype)": lambda x: x.to(torch.float32),
    "to(dtype=)": lambda x: x.to(dtype=torch.bfloat16),
    "to(device, dtype)": lambda x: x.to("cpu", torch.float16),
    "to(device=, dtype=)": lambda x: x.to(device=x.device, dtype=torch.float32),
    "to(other)": lambda x: x.to(FLOAT32),
    "to(other, copy)": lambda x: x.to(FLOAT32, False, True),
    "to(tensor=)": lambda x: x.to(tensor=FLOAT32),
    "float": lambda x: x.float(),
    "half": lambda x: x.half(),
    "bfloat16": lambda x: x.bfloat16(),
    "type(dtype)": lambda x: x.type(torch.float32),
    "type(dtype=)": lambda x: x.type(dtype=torch.float32),
    "type(str)": lambda x: x.type("torch.FloatTensor"),
    "type(class)": lambda x: x.type(torch.FloatTensor),
    "type_as": lambda x: x.type_as(FLOAT32),
    "type_as(other=)": lambda x: x.type_as(other=FLOAT32),
    "F.softmax": lambda x: softmax(x, dim=-1, dtype=torch.float32),
    "F.softmax, by place": lambda x: softmax(x, -1, 3, torch.float32),
    "F.softmax(input=)": lambda x: softmax(input=x, dim=-1, dtype=torch.float32),
    "F.log_softmax": lambda x: log_softmax(x, dim=-1, dtype=torch.float32),
    "torch.softmax": lambda x: torch.softmax(x, -1, torch.float32),
    "torch.softmax(input=)": lambda x: torch.softmax(input=x, dim=-1, dtype=torch.float32),
    "Tensor.softmax": lambda x: x.softmax(-1, dtype=torch.float32),
    "Tensor.log_softmax": lambda x: x.log_softmax(-1, dtype=torch.float32),
    "cumsum": lambda x: torch.cumsum(x, 0, dtype=torch.float32),
    "sum": lambda x: x.sum(dtype=torch.float32),
    "mean": lambda x: torch.mean(x, dim=0, dtype=torch.float32),
    "as_tensor": lambda x: torch.as_tensor(x, dtype=torch.float32),
    "zeros_like": lambda x: torch.zeros_like(x, dtype=torch.float32),
    "new_zeros": lambda x: x.new_zeros(2, dtype=torch.float32),
}


@pytest.mark.parametrize("way", DOWN)
def test_a_cast_down_from_float64_is_dropped_in_the_context_only(way):
    value = torch.tensor([0.1, 0.2], dtype=torch.float64)
    with true_float64():
        assert DOWN[way](value).dtype == torch.float64
    assert DOWN[way](value).dtype != torch.float64


@pytest.mark.parametrize("way", [way for way in DOWN if way.startswith(("to(", "type", "float"))])
def test_a_dropped_cast_keeps_every_bit(way):
    value = torch.tensor([0.1, 0.2], dtype=torch.float64)
    with true_float64():
        kept = DOWN[way](value)
    assert torch.equal(kept, value)


@pytest.mark.parametrize("way", DOWN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_tensor_below_float64_is_cast_as_ever(way, dtype):
    value = torch.tensor([0.1, 0.2], dtype=dtype)
    outside = DOWN[way](value)
    with true_float64():
        inside = DOWN[way](value)
    assert inside.dtype == outside.dtype
    assert torch.equal(inside, outside)


def test_casts_up_and_to_integers_and_the_reading_of_bits_are_left_alone():
    value = torch.tensor([1.7, -2.2], dtype=torch.float64)
    with true_float64():
        assert FLOAT32.double().dtype == torch.float64
        assert FLOAT32.to(value).dtype == torch.float64
        assert value.long().tolist() == value.to(torch.int64).tolist() == [1, -2]
        assert value.to(torch.tensor([1])).dtype == torch.int64
        assert value.to(torch.bool).tolist() == [True, True]
        assert value.type() == "torch.DoubleTensor"
        assert value.view(torch.float32).shape == (4,)


def test_complex_rotary_keeps_float64_too():
    angle = torch.tensor([0.1, 0.2], dtype=torch.float64)
    with true_float64():
        turned = torch.polar(torch.ones_like(angle.float()), angle.float()).to(torch.complex64)
    assert turned.dtype == torch.complex128


def test_other_arguments_of_a_cast_still_count():
    value = torch.zeros(2, dtype=torch.float64)
    with true_float64():
        copied = value.to(FLOAT32, False, True)
        same = value.to(FLOAT32)
    assert copied.data_ptr() != value.data_ptr()
    assert same.data_ptr() == value.data_ptr()


def test_an_exception_leaves_nothing_behind():
    value = torch.zeros(2, dtype=torch.float64)
    with pytest.raises(KeyboardInterrupt), true_float64():
        raise KeyboardInterrupt
    assert value.float().dtype == torch.float32


def test_the_context_nests():
    value = torch.zeros(2, dtype=torch.float64)
    with true_float64():
        with true_float64():
            assert value.float().dtype == torch.float64
        assert value.float().dtype == torch.float64
    assert value.float().dtype == torch.float32


def test_the_context_belongs_to_its_thread_and_another_can_enter_its_own():
    value = torch.zeros(2, dtype=torch.float64)
    seen: list[torch.dtype] = []

    def work() -> None:
        seen.append(value.float().dtype)
        with true_float64():
            seen.append(value.float().dtype)

    with true_float64():
        worker = threading.Thread(target=work)
        worker.start()
        worker.join()
    assert seen == [torch.float32, torch.float64]


def test_autocast_is_off_inside_and_on_again_afterwards():
    left, right = torch.rand(3, 3), torch.rand(3, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (left @ right).dtype == torch.bfloat16
        with true_float64():
            assert (left @ right).dtype == torch.float32
        assert (left @ right).dtype == torch.bfloat16


# --- models ------------------------------------------------------------------------------------


def logits_along(module: nn.Module, steps: Tensor, positions: int = 9) -> Tensor:
    """The strongest logit at each step along a random unit direction of the embeddings, [step].

    All steps are rows of one batch. Rounding is of the size of the strongest logits; beside one
    that happens to be near zero it would look larger than it is.
    """
    with torch.no_grad():
        embedded = module.get_input_embeddings()(tokens(batch=1, positions=positions))
        unmoved = module(inputs_embeds=embedded, use_cache=False).logits[0, -1]
    strongest = int(unmoved.abs().argmax())
    generator = torch.Generator().manual_seed(3)
    direction = torch.randn(embedded.shape, generator=generator, dtype=embedded.dtype)
    moved = embedded + steps[:, None, None] * direction / direction.norm()
    return module(inputs_embeds=moved, use_cache=False).logits[:, -1, strongest]


def noise(module: nn.Module, positions: int = 9) -> float:
    """Largest residual of a quadratic through 21 points within 1e-7, relative to the logit.

    The function's own cubic term is 1e-21 there: what a quadratic leaves over is rounding.
    """
    steps = torch.linspace(-1, 1, 21, dtype=torch.float64)
    with torch.no_grad():
        values = logits_along(module, 1e-7 * steps, positions).double()
    rise = (values - values[10])[:, None]
    powers = torch.stack([steps**power for power in range(3)], dim=1)
    fitted = powers @ torch.linalg.lstsq(powers, rise).solution
    return float((rise - fitted).abs().max() / values[10].abs())


def disagreement(module: nn.Module) -> float:
    """Relative distance of autograd's slope from the nearest of a sweep of finite differences.

    Central differences at `h` and `h / 2` are combined so that their errors of order `h^2`
    cancel: then steps are good that are large enough for rounding not to matter.
    """
    origin = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    slope = torch.autograd.grad(logits_along(module, origin).sum(), origin)[0]
    sizes = 2.0 ** -torch.arange(5, 18, dtype=torch.float64)
    with torch.no_grad():
        above, below = logits_along(module, torch.cat([sizes, -sizes])).chunk(2)
    central = (above - below) / (2 * sizes)
    refined = (4 * central[1:] - central[:-1]) / 3
    return float((refined - slope).abs().min() / slope.abs())


@pytest.mark.parametrize("name", BUILDERS)
def test_noise_of_a_float64_model_is_that_of_float64(name):
    module = build(name, dtype=torch.float64)
    with context_for(module):
        assert noise(module) < 1e-13
        assert disagreement(module) < 1e-8


@pytest.mark.parametrize("name", INTERFACE)
def test_noise_with_headwaters_attention_is_that_of_float64(name):
    module = build(name, dtype=torch.float64)
    with context_for(module), switched_on(module) as switched:
        assert switched
        assert noise(module) < 1e-13
        assert disagreement(module) < 1e-8


@pytest.mark.parametrize("name", ["Llama", "GPT-NeoX", "Cohere", "Mamba"])
def test_the_same_model_without_the_context_is_noisy(name):
    module = build(name, dtype=torch.float64)
    module.set_attn_implementation("eager")
    assert noise(module) > 1e-10


ROTARIES = {
    "linear": {"rope_type": "linear", "factor": 2.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8,
    },
    "yarn": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 8},
    "longrope": {
        "rope_type": "longrope",
        "factor": 2.0,
        "short_factor": [1.0, 1.1, 1.2],
        "long_factor": [1.5, 2.0, 3.0],
        "original_max_position_embeddings": 8,
    },
}


@pytest.mark.parametrize("positions", [6, 20], ids=["short", "beyond the trained length"])
@pytest.mark.parametrize("kind", ROTARIES)
def test_every_kind_of_rotary_embedding_is_computed_in_float64(kind, positions):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=61,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=16,
        initializer_range=0.3,
        rope_parameters={"rope_theta": 100.0, **ROTARIES[kind]},
    )
    module = transformers.LlamaForCausalLM(config).eval().double()
    with context_for(module), switched_on(module):
        assert noise(module, positions) < 1e-13


def test_rotary_angles_are_positions_times_the_stored_frequencies_in_float64():
    module = build("Llama", dtype=torch.float64)
    rotary, positions = module.model.rotary_emb, torch.tensor([[0, 3, 4096]])
    with context_for(module):
        cos, sin = rotary(torch.zeros(1, dtype=torch.float64), positions)
    angles = torch.outer(positions[0].double(), rotary.inv_freq.double()).repeat(1, 2)
    assert_close(cos[0], angles.cos(), rtol=0, atol=1e-15)
    assert_close(sin[0], angles.sin(), rtol=0, atol=1e-15)


@pytest.mark.parametrize("name", BUILDERS)
def test_float32_models_compute_the_same_bits_in_the_context(name):
    module, ids = shared(name), tokens(positions=9)
    with torch.no_grad():
        outside = module(ids, use_cache=False).logits
        with true_float64():
            inside = module(ids, use_cache=False).logits
    assert torch.equal(inside, outside)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", BUILDERS)
def test_left_padding_leaves_values_and_gradients_finite(name, dtype):
    module, ids = build(name, dtype=dtype), tokens(positions=9)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    embedded = module.get_input_embeddings()(ids).detach().requires_grad_()
    with context_for(module), switched_on(module):
        logits = module(inputs_embeds=embedded, attention_mask=mask, use_cache=False).logits
        gradient = torch.autograd.grad(logits.square().sum(), embedded)[0]
    assert logits.dtype == dtype
    assert logits.isfinite().all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", BUILDERS)
def test_float64_logits_are_the_float32_ones_to_float32_rounding(name):
    module, ids = shared(name), tokens(positions=9)
    double = copy.deepcopy(module).double()
    with torch.no_grad():
        low = module(ids, use_cache=False).logits
        with context_for(double):
            high = double(ids, use_cache=False).logits
    assert high.dtype == torch.float64
    assert_close(low.double(), high, rtol=0, atol=2e-5 * high.abs().max().item())


# --- which context a model needs ----------------------------------------------------------------


@pytest.mark.parametrize("name", ["Mixtral", "gpt-oss"])
def test_experts_are_eager_in_the_context_of_a_float64_model_and_restored_after_an_exception(name):
    module = build(name, dtype=torch.float64)
    module.config._experts_implementation = "batched_mm"
    with context_for(module):
        assert module.config._experts_implementation == "eager"
    with pytest.raises(KeyboardInterrupt), context_for(module):
        raise KeyboardInterrupt
    assert module.config._experts_implementation == "batched_mm"


def test_a_model_without_experts_keeps_its_config_untouched():
    module = build("Llama", dtype=torch.float64)
    before = copy.deepcopy(vars(module.config))
    with eager_experts(module):
        assert vars(module.config) == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_model_that_is_not_float64_gets_no_context(dtype):
    module = build("Mixtral", dtype=dtype)
    before = copy.deepcopy(vars(module.config))
    with context_for(module):
        assert vars(module.config) == before
        assert torch.zeros(1, dtype=torch.float64).float().dtype == torch.float32


def test_a_plain_float64_module_gets_the_context_too():
    with context_for(nn.Linear(2, 2).double()):
        assert torch.zeros(1, dtype=torch.float64).float().dtype == torch.float64


def test_a_module_is_float64_if_all_its_floating_parameters_are():
    assert is_float64(nn.Linear(2, 2).double())
    assert not is_float64(nn.Sequential(nn.Linear(2, 2).double(), nn.Linear(2, 2)))
    assert not is_float64(nn.ReLU())

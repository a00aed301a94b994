"""Induction in two layers, set by hand in a Hugging Face GPT-2.

Layer 0's head 0 attends to the token before and writes it down; layer 1's head 0 asks who stands
after an earlier copy of the present token, and copies that. All other weights are 0, the norms are
the identity, and scores are not scaled.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from headwater.components import heads, keys
from headwater.estimators import AtPStar
from headwater.models import Model, wrap
from headwater.prompts import Pair, Task
from headwater.zoo.truths.formulas import Table, closed_forms, table
from headwater.zoo.truths.truth import Fact, ModelTruth, gated

VOCAB, LENGTH, HEADS, WIDTH = 8, 7, 2, 16
GAIN = 5.0
"""g: the logit of a token that is attended to alone."""
CERTAIN = 1000.0
"""Score of the token before: e^-1000 is 0, so layer 0 attends to nothing else."""
AFTER_FIRST = 2
"""Where the answer stands: after the first A."""
_TOKEN, _BEFORE, _OUT, _PLACE = (slice(8 * k, 8 * k + 8) for k in range(4))
"""What the 32 dimensions of the residual stream hold, 8 each."""
COMPONENTS = heads(layers=0, positions="each") + keys(layers=1, positions="each")


@functools.cache
def induction_model(match: float) -> Model:
    """Return the model, wrapped, in float64.

    Args:
        match: b, the score of a key that follows an earlier copy of the present token.
    """
    config = GPT2Config(
        vocab_size=VOCAB,
        n_positions=8,
        n_embd=4 * 8,
        n_layer=2,
        n_head=HEADS,
        n_inner=4,
        scale_attn_weights=False,
        tie_word_embeddings=False,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
    )
    module = GPT2LMHeadModel(config).double().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        _set_by_hand(module, match)
    return wrap(module, _tokenizer())


def _set_by_hand(module: Any, match: float) -> None:
    eight = torch.eye(8, dtype=torch.float64)
    transformer = module.transformer
    transformer.wte.weight[:, _TOKEN] = eight
    transformer.wpe.weight[:, _PLACE] = eight
    module.lm_head.weight[:, _OUT] = eight
    first, second = (block.attn for block in transformer.h)
    # c_attn holds [query | key | value], each [head, 16]; head 0 uses its first 8 dimensions
    query, key, value = (slice(32 * k, 32 * k + 8) for k in range(3))
    first.c_attn.weight[_PLACE, query] = CERTAIN * eight
    first.c_attn.weight[_PLACE, key] = eight.roll(1, 1)  # position t answers queries from t + 1
    first.c_attn.weight[_TOKEN, value] = eight
    first.c_proj.weight[:8, _BEFORE] = eight
    second.c_attn.weight[_TOKEN, query] = match * eight
    second.c_attn.weight[_BEFORE, key] = eight
    second.c_attn.weight[_TOKEN, value] = eight
    second.c_proj.weight[:8, _OUT] = GAIN * eight
    for block in transformer.h:
        block.ln_1, block.ln_2 = nn.Identity(), nn.Identity()
    transformer.ln_f = nn.Identity()


def _tokenizer() -> PreTrainedTokenizerFast:
    words = {word: number for number, word in enumerate([*"ABCDEFG", "?"])}
    inner = Tokenizer(models.WordLevel(words, unk_token="?"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="?", pad_token="?")


def induction_task() -> Task:
    """Return the one pair: A B .. A asks for B; in the corrupted prompt nothing precedes B."""
    return Task(
        [Pair("C A B D E F A", "C G B D E F A", answer="B", wrong="D")], name="induction by hand"
    )


def _names() -> tuple[str, ...]:
    places = [(position, head) for position in range(LENGTH) for head in range(HEADS)]
    return (
        *(f"a0.h{head}@{position}" for position, head in places),
        *(f"a1.h{head}<k>@{position}" for position, head in places),
    )


def _attended(score: float) -> tuple[float, float]:
    """a, r: the weight of the one key with this score, and of any other of the 7."""
    return (
        math.exp(score) / (math.exp(score) + LENGTH - 1),
        1 / (math.exp(score) + LENGTH - 1),
    )


def _difference(score: float) -> float:
    """h(s) = g (a - r): the logit difference."""
    a, r = _attended(score)
    return GAIN * (a - r)


def _steepness(score: float) -> float:
    """h'(s) = g a (1 - a + r)."""
    a, r = _attended(score)
    return GAIN * a * (1 - a + r)


def _placed(of_head: float, of_key: float) -> Table:
    """Everything goes through layer 0's head 0 at B, into layer 1's key there."""
    there = {f"a0.h0@{AFTER_FIRST}": of_head, f"a1.h0<k>@{AFTER_FIRST}": of_key}
    return [[there.get(name, 0.0) for name in _names()]]


def _last_pattern(match: float) -> Tensor:
    """The pattern of layer 1's head 0 from the last token, from the module's own weights."""
    residual, block = _into_layer_1(match, "C A B D E F A")
    projected = block.attn.c_attn(residual)
    query, key = projected[..., 0:16], projected[..., 32:48]
    return (query[0, -1] @ key[0].T).softmax(-1)


def _into_layer_1(match: float, prompt: str) -> tuple[Tensor, Any]:
    module: Any = induction_model(match).module
    kept: list[Tensor] = []
    block = module.transformer.h[1]
    hook = block.register_forward_pre_hook(
        lambda _, args, kwargs: kept.append(args[0] if args else kwargs["hidden_states"]),
        with_kwargs=True,
    )
    with hook, torch.no_grad():
        module(_ids(prompt))
    return kept[0].clone(), block


def _ids(prompt: str) -> Tensor:
    return torch.tensor([["ABCDEFG".index(word) for word in prompt.split()]])


def _edges(match: float) -> Tensor:
    """Path patching: layer 0's write at B from the corrupted prompt, into q, k or v alone."""
    clean, block = _into_layer_1(match, "C A B D E F A")
    corrupted, _ = _into_layer_1(match, "C G B D E F A")
    patched = clean.clone()
    patched[:, AFTER_FIRST, _BEFORE] = corrupted[:, AFTER_FIRST, _BEFORE]
    module: Any = induction_model(match).module
    changed = block.attn.c_attn(patched).detach()

    def difference(columns: slice | None) -> Tensor:
        def replace(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor:
            output = output.clone()
            if columns is not None:
                output[..., columns] = changed[..., columns]
            return output

        with block.attn.c_attn.register_forward_hook(replace), torch.no_grad():
            logits = module(_ids("C A B D E F A")).logits[0, -1]
        return logits["ABCDEFG".index("B")] - logits["ABCDEFG".index("D")]

    sides = [slice(32 * k, 32 * k + 16) for k in range(3)]
    return torch.stack([difference(None) - difference(side) for side in sides])


def _induction(name: str, match: float, shows: str) -> ModelTruth:
    a, r = _attended(match)
    exact, gradient = _difference(match), match * GAIN * a * (1 - a + r)
    # the key holds m_k times what the head wrote, which holds m_h times A: the score is b m_h m_k
    return ModelTruth(
        name=name,
        shows=shows,
        formulas=(
            f"prompt C A B D E F A, n = 7; score b = {match:g} at B, else 0; f = logit B - logit D",
            "a = e^b / (e^b + n - 1), r = 1 / (e^b + n - 1): f = g (a - r); corrupted 0",
            "all of it goes through layer 0's head at B into layer 1's key at B: exact = g (a - r)",
            "gradient of either = b g a (1 - a + r); every other head and key 0",
            "AtP*: the key fix = exact; with GradDrop the head is 0 (layer 1 cut, nothing is left)",
        ),
        names=_names(),
        build=lambda: gated(induction_model(match), induction_task(), COMPONENTS),
        expected=closed_forms(
            exact=_placed(exact, exact),
            gradient=_placed(gradient, gradient),
            # h'' = h' (1 - 2 a)
            curvature=_placed(*[match * gradient * (1 - 2 * a)] * 2),
            shapley=_placed(exact / 2, exact / 2),
            # in the corrupted run the key is whatever the head gives it, and the score starts at 0
            restored=_placed(exact, exact),
            restored_gradient=_placed(match * GAIN / LENGTH, match * GAIN / LENGTH),
            own=lambda t: _placed(*[match * _steepness(match * t)] * 2),
            joint=lambda t: _placed(*[match * t * _steepness(match * t**2)] * 2),
            family=lambda t: _placed(*[match * _steepness(match * t)] * 2),
        )
        # the key fix computes the softmax; with either layer cut nothing is left of the head
        | {
            AtPStar(grad_drop=False): table(_placed(gradient, exact)),
            AtPStar(): table(_placed(0.0, exact)),
        },
        facts=(
            Fact(
                "pattern from the last A",
                table([[a if t == AFTER_FIRST else r for t in range(LENGTH)]])[0],
                lambda: _last_pattern(match),
            ),
            Fact(
                "edges a0.h0@2 -> a1.h0<q>, <k>, <v>",
                table([[0.0, exact, 0.0]])[0],
                lambda: _edges(match),
            ),
        ),
        model=lambda: induction_model(match),
        task=induction_task,
        components=COMPONENTS,
    )


INDUCTION = _induction(
    "induction",
    8.0,
    "A real GPT-2 with an induction circuit set by hand: attention is saturated, and the gradient "
    "sees 2 % of what goes through it.",
)

INDUCTION_UNSATURATED = _induction(
    "induction-unsaturated",
    2.0,
    "The same circuit with a weak match: not saturated, and the gradient is 1.2 times too large.",
)

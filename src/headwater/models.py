"""A Hugging Face causal language model that headwater can run with taps.

`load` fetches one and freezes its parameters; `wrap` takes yours and changes nothing about it.
Both let the adapter prove itself on random tokens: a few forward passes over a few tokens.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import threading
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from headwater import limits, states
from headwater.architectures.adapter import Adapter, resolve
from headwater.architectures.overview import site_rows
from headwater.attention import switched_on
from headwater.errors import (
    HeadwaterNotice,
    UnknownModelError,
    UnknownOptionError,
    UnsupportedModelError,
)
from headwater.fingerprints import config_hash, tokenizer_hash, weights_hash
from headwater.interrupts import Held
from headwater.loading import fetch, refuse_config, refuse_no_name, to_device, to_dtype
from headwater.precision import eager_experts, true_float64
from headwater.proof import Proof
from headwater.proof import prove as prove_adapter
from headwater.sites import Site
from headwater.taps import (
    Tap,
    needs_attention,
    plainly,
    reading,
    refuse_skipped,
    starting_at,
    tapped,
)
from headwater.trace.bodies import BodyFunction, run_bodies
from headwater.trace.frames import user_frame
from headwater.trace.inputs import prepared
from headwater.trace.opcodes import enters_with
from headwater.trace.places import embeddings
from headwater.trace.submodules import Submodule, at_path, attribute, reraise_in
from headwater.trace.tracing import Trace
from headwater.unwrapping import refuse_no_module, unwrapped

# one lock a module, not a wrapper: two wrappers of one module stub the same layers
_locks: weakref.WeakKeyDictionary[nn.Module, threading.RLock] = weakref.WeakKeyDictionary()
_locks_guard = threading.Lock()

_FIELDS = {"module", "tokenizer", "name", "adapter", "refusal", "notes", "lock", "noticed"}


class Model:
    """A module, its tokenizer, and an adapter that says which part is what.

    Args:
        module: The network; it is never changed for good.
        tokenizer: Its tokenizer, needed only for prompts given as text.
        name: What it is called in results.
        adapter: Where its parts are; None for a network that can only be looked at.
        refusal: Why there is no adapter.
        notes: What a user should know, for example that `torch.compile` is bypassed.
    """

    proof: Proof | None = None
    """The self-proof's numbers; None if it was skipped."""

    def __init__(
        self,
        module: nn.Module,
        tokenizer: Any = None,
        *,
        name: str = "",
        adapter: Adapter | None = None,
        refusal: UnsupportedModelError | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        self.module = module
        self.tokenizer = tokenizer
        self.name = name or type(module).__name__
        self.adapter = adapter
        self.refusal = refusal
        self.notes = tuple(notes)
        with _locks_guard:
            self.lock = _locks.setdefault(module, threading.RLock())
        self._hashes: tuple[tuple[tuple[int, int], ...] | None, dict[str, str]] | None = None
        self._embedded: list[tuple[list[str], nn.Module]] | None = None
        self._names: dict[nn.Module, list[str]] | None = None
        self.noticed: set[str] = set()
        """What this model's user was told once."""
        try:
            self._takes = frozenset(inspect.signature(module.forward).parameters)
        except ValueError:  # a scripted module does not say
            self._takes = frozenset[str]()
        self._longest = limits.position_limit(module)

    def __repr__(self) -> str:
        shape = "no adapter" if self.adapter is None else _size_in_words(self.adapter)
        return f"Model({self.name!r}, {type(self.module).__name__}, {shape}, {self.dtype})"

    @property
    def device(self) -> torch.device:
        """Where the model takes its tokens."""
        return next(self.module.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The number type of the model's weights."""
        floats = (p.dtype for p in self.module.parameters() if p.is_floating_point())
        return next(floats, torch.get_default_dtype())

    def _embeddings(self) -> list[nn.Module]:
        """Where gradients can begin; asked of the model once, which takes its own code long."""
        known = self._embedded
        if known is None or any(_standing_at(self.module, path) is not one for path, one in known):
            found = embeddings(self.module)
            named = self.module.named_modules()
            self._embedded = known = [(path.split("."), one) for path, one in named if one in found]
        return [one for _, one in known]

    def anatomy(self) -> Adapter:
        """The adapter, or the reason why there is none.

        Returns:
            Where this model's parts are.

        Raises:
            UnsupportedModelError: If the model cannot be attributed; says why.
        """
        if self.adapter is not None:
            return self.adapter
        if self.refusal is not None:
            raise type(self.refusal)(*self.refusal.args)
        raise UnsupportedModelError(f"{self.name} has no adapter.")

    def forward(
        self,
        ids: Int[Tensor, "batch pos"],
        *,
        mask: Bool[Tensor, "batch pos"] | None = None,
        position_ids: Int[Tensor, "batch pos"] | None = None,
        taps: Mapping[Site, Tap] | None = None,
        start: tuple[int, Float[Tensor, "batch pos d_model"]] | None = None,
        read: int | Sequence[int] | None = None,
    ) -> Float[Tensor, "batch read vocab"]:
        """Run the model once, without a cache, in the caller's gradient mode.

        Args:
            ids: Token ids; short prompts padded on the left.
            mask: True where a token is real; None if all are.
            position_ids: Position of each token; by default counted along `mask`.
            taps: What to call at which site; each gets the value there and may replace it.
            start: A layer number and the residual that enters it: earlier layers are skipped.
            read: How many of the last positions to unembed, or a list of them; None for all.

        Returns:
            The logits at the positions read.

        Raises:
            UnsupportedModelError: If the model has no adapter, or does not offer a tapped site.
            PromptError: If it has no embedding for a token (seen on the CPU) or a position.
        """
        adapter = self.anatomy()
        limits.refuse_unknown_ids(self.module, ids)
        limits.refuse_long_prompts(self.module, self._longest, ids, mask, position_ids)
        taps = taps or {}
        double = self.dtype == torch.float64
        with self.lock, Held() as interrupts, ExitStack() as stack:
            stack.enter_context(plainly(self.module))
            if double:
                stack.enter_context(eager_experts(self.module))
                stack.enter_context(true_float64())
            if adapter.interface and (double or needs_attention(adapter, taps)):
                stack.enter_context(switched_on(self.module))
            if start is not None:
                refuse_skipped(taps, start[0])
                stack.enter_context(starting_at(adapter, *start))
            stack.enter_context(tapped(adapter, taps, ids.shape))
            stack.enter_context(reading(adapter, read))
            with interrupts.delivered():
                output = self.module(**self._inputs(ids, mask, position_ids))
        logits = output.logits
        tap = taps.get(Site(None, "logits"))
        replaced = tap(logits) if tap is not None else None
        return logits if replaced is None else replaced

    def trace(self, *inputs: Any, **options: Any) -> Trace:
        """Run the model around your code: `with model.trace("Mary and John") as run: ...`.

        In the block, `model.path.to[1].module.output` is what that module returned, the very
        object: edit it in place or assign. `with loss.backward():` reads and edits gradients.

        Args:
            *inputs: A prompt, a list of prompts, token ids, a dict, tensors: what the module takes.
            **options: Keyword inputs of the module, and of the trace: `requires_grad` (None:
                gradients from the embedding's output on if the weights ask for none; True: from
                floating inputs too; False: neither), `order` (`"strict"` refuses to serve values
                late), `keep` (what `run.keep` takes), `worker` (`"thread"` runs the model in
                a thread of its own).

        Returns:
            A context manager; nothing happens before it is entered.

        Raises:
            UnknownOptionError: If an option has a value it cannot have.
            TraceError: On entering with `worker="thread"`, inside a `torch.func` transform.
            PromptError: On entering, if the inputs cannot be used.
        """
        return Trace(self, inputs, options, generating=False)

    def generate(self, *inputs: Any, **options: Any) -> Any:
        """Generate as the module does; in a `with`, trace the generation step by step.

        Args:
            *inputs: A prompt, a list of prompts, or token ids.
            **options: What the module's `generate` takes, and the options of `trace`; `trace=True`
                makes it a trace without looking at the calling line.

        Returns:
            The ids, prompt included; in a `with` a trace, whose `run.steps()` are the steps and
            whose `run.result` is the ids.

        Raises:
            UnsupportedModelError: If the module cannot generate.
            PromptError: If the inputs cannot be used.
        """
        generate: Any = getattr(self.module, "generate", None)
        if not callable(generate):
            raise UnsupportedModelError(
                f"{type(self.module).__name__} has no generate(): it is no language model of "
                "Hugging Face.\nTrace single runs: with model.trace(inputs) as run: ..."
            )
        traced = options.pop("trace", None)
        if traced or (traced is None and enters_with(user_frame())):
            return Trace(self, inputs, options, generating=True)
        args, kwargs = prepared(self, inputs, options, for_generate=True)
        return generate(*args, **kwargs)

    def run(self, inputs: Any, *bodies: BodyFunction, **options: Any) -> Any:
        """Run the model once for several bodies, functions of a run that share the forward.

        Args:
            inputs: As for `trace`; a tuple is several positional inputs.
            *bodies: Each is called with its run, reads and edits values, and returns something.
                Those that wait for the same value get it in the order given here.
            **options: As for `trace`.

        Returns:
            What the bodies returned: a list, or the value of the only one.

        Raises:
            TraceError: If there is no body.
            PromptError: If the inputs cannot be used.
        """
        return run_bodies(self, inputs, bodies, options)

    @property
    def output(self) -> Any:
        """The model's output in the trace that is open; assign to replace it."""
        return Submodule(self, self.module, "").output

    @output.setter
    def output(self, value: Any) -> None:
        Submodule(self, self.module, "").output = value

    @property
    def input(self) -> Any:
        """The model's first argument in the trace that is open; assign to replace it."""
        return Submodule(self, self.module, "").input

    @input.setter
    def input(self, value: Any) -> None:
        Submodule(self, self.module, "").input = value

    @property
    def inputs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The model's arguments in the trace that is open; assign a pair to replace them."""
        return Submodule(self, self.module, "").inputs

    @inputs.setter
    def inputs(self, value: tuple[tuple[Any, ...], dict[str, Any]]) -> None:
        Submodule(self, self.module, "").inputs = value

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module itself; no trace sees this call."""
        return self.module(*args, **kwargs)

    def __getitem__(self, key: int | str) -> Any:
        """A module by path, or by number where the model is a list of modules."""
        root = Submodule(self, self.module, "")
        return at_path(root, key) if isinstance(key, str) else root[key]

    def __len__(self) -> int:
        return len(self.module._modules)

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[Submodule]:
        return iter(Submodule(self, self.module, ""))

    def _notice(self, about: str, message: str, stacklevel: int) -> None:
        """Say something once for this model.

        Args:
            about: What it is about.
            message: What to say.
            stacklevel: How many calls above the caller the user's line is, as for `warnings.warn`.
        """
        if about not in self.noticed:
            self.noticed.add(about)
            warnings.warn(message, HeadwaterNotice, stacklevel=stacklevel + 1)

    def _in_several_places(self) -> dict[nn.Module, list[str]]:
        """The modules that stand in several places of this model, and at which paths, in order."""
        if self._names is None:
            names: dict[nn.Module, list[str]] = {}
            for path, one in self.module.named_modules(remove_duplicate=False):
                names.setdefault(one, []).append(path)
            self._names = {one: paths for one, paths in names.items() if len(paths) > 1}
        return self._names

    def __getattr__(self, name: str) -> Any:
        module = self.__dict__.get("module")
        if module is None or name.startswith("__"):
            raise AttributeError(name)
        reraise_in(self, name)
        return attribute(Submodule(self, module, ""), name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _FIELDS or name.startswith("_") or hasattr(type(self), name):
            object.__setattr__(self, name, value)
            return
        Submodule(self, self.module, "").__setattr__(name, value)

    def frozen(self) -> AbstractContextManager[None]:
        """Parameters ask for no gradient inside the block; their flags come back exactly.

        Returns:
            A context manager; entering it raises `ModelStateError` while dropout is active.
        """
        return states.frozen(self.module)

    def sites(self) -> list[Site]:
        """Every site this model offers, in the order a forward pass computes them."""
        return self.anatomy().sites()

    def describe(self) -> dict[str, Any]:
        """What this model is and offers, in plain values for a manifest or the command line.

        Returns:
            Name, class, family, sizes, dtype, device, notes, proof, and one row a site name.
        """
        adapter = self.anatomy()
        sizes = ("n_layers", "n_heads", "n_kv_heads", "d_model", "d_head", "d_mlp", "vocab")
        return {
            "name": self.name,
            "class": type(self.module).__name__,
            "family": adapter.family.name,
            **{size: getattr(adapter, size) for size in sizes},
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": str(self.device),
            "notes": list(self.notes),
            "proof": None if self.proof is None else self.proof.to_dict(),
            "sites": site_rows(adapter),
        }

    def fingerprint(self) -> dict[str, str]:
        """Hashes that say whether two results came from the same model.

        Large weights are sampled: another checkpoint is noticed, a changed single weight may not.
        Computed again only after a weight was written to (edits through `.data` go unnoticed).

        Returns:
            `config_hash` and `weights_hash`, and `tokenizer_hash` if there is a tokenizer.
        """
        state = _written_to(self.module)
        if self._hashes is None or self._hashes[0] != state or state is None:
            self._hashes = (state, self._hash())
        return dict(self._hashes[1])

    def _hash(self) -> dict[str, str]:
        config = getattr(self.module, "config", None)
        hashes = {
            "config_hash": "" if config is None else config_hash(config),
            "weights_hash": weights_hash(self.module),
        }
        if self.tokenizer is not None:
            hashes["tokenizer_hash"] = tokenizer_hash(self.tokenizer)
        return hashes

    def prove(self) -> Proof | None:
        """Let the adapter prove itself on random tokens; its numbers stay in `proof`.

        Returns:
            The proof; None for a model without adapter.

        Raises:
            FailedProofError: If the adapter does not fit.
        """
        if self.adapter is None:
            return None
        self.proof = prove_adapter(self)
        if not self.proof.pads:
            self.adapter = dataclasses.replace(self.adapter, pads=False)
        return self.proof

    def to(
        self, dtype: str | torch.dtype | None = None, device: str | torch.device | None = None
    ) -> Model:
        """A converted copy; this model stays as it is.

        Args:
            dtype: The number type of the copy; `torch.float64` runs in true float64.
            device: Where the copy goes.

        Returns:
            A model with its own weights.

        Raises:
            UnsupportedModelError: If the model is quantized and a dtype is asked for.
            UnknownOptionError: If there is no such dtype, or no such device here.
        """
        if dtype is not None and getattr(self.module, "is_quantized", False):
            raise UnsupportedModelError(
                f"{self.name} is quantized: its weights cannot be converted to {dtype}.\n"
                "Load the unquantized checkpoint with hw.load(name, dtype=...)."
            )
        options = {"device": to_device(device), "dtype": to_dtype(dtype)}
        with self.lock:
            module = copy.deepcopy(self.module)
        module = module.to(**options)
        twin = Model(module, self.tokenizer, name=self.name, refusal=self.refusal, notes=self.notes)
        if self.adapter is not None:
            adapter = resolve(module, self.adapter.family)
            twin.adapter = dataclasses.replace(adapter, pads=self.adapter.pads)
            twin.proof = self.proof
        return twin

    def _inputs(self, ids: Tensor, mask: Tensor | None, position_ids: Tensor | None) -> dict:
        inputs: dict[str, Any] = {"input_ids": ids.to(self.device), "use_cache": False}
        if mask is not None:
            inputs["attention_mask"] = mask.to(self.device, torch.long)
            if position_ids is None:
                position_ids = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        if position_ids is not None and "position_ids" in self._takes:
            inputs["position_ids"] = position_ids.to(self.device)
        return inputs


def refuse_no_model(model: Any) -> None:
    """Refuse what is no `Model`, such as a name or a bare module.

    Raises:
        UnknownModelError: Saying how to make one.
    """
    if isinstance(model, Model):
        return
    shown = f"{model!r:.40}" if isinstance(model, str) else type(model).__name__
    way = f"hw.load({model!r})" if isinstance(model, str) else "hw.wrap(module, tokenizer)"
    raise UnknownModelError(f"model: expected a headwater model, got {shown}.\nWrite {way}.")


def _written_to(module: nn.Module) -> tuple[tuple[int, int], ...] | None:
    """Address and write counter of every weight; None for inference tensors, which count none."""
    try:
        return tuple((weight.data_ptr(), weight._version) for weight in module.parameters())
    except RuntimeError:
        return None


def _standing_at(module: nn.Module, path: Sequence[str]) -> nn.Module | None:
    """What stands at a path now; modules may have been replaced."""
    found: nn.Module | None = module
    for name in path:
        found = None if found is None else found._modules.get(name)
    return found


def _size_in_words(adapter: Adapter) -> str:
    heads = "" if adapter.n_heads is None else f", {adapter.n_heads} heads"
    return f"{adapter.n_layers} layers{heads}, d_model {adapter.d_model}"


def load(
    name: str | Any,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    device_map: Any = None,
    frozen: bool = True,
    trust_remote_code: bool = False,
    prove: bool = True,
) -> Model:
    """Load a causal language model: embedded, from a folder, or from the Hugging Face hub.

    Args:
        name: `"tiny"`, `"tiny-gpt2"`, `"tiny-mamba"`, a folder, or a hub id.
        device: Where it goes; by default the CPU.
        dtype: Its number type, for example `"bfloat16"`; by default the stored one.
        device_map: Handed to `from_pretrained`, for models larger than one device.
        frozen: Whether parameters stop asking for gradients.
        trust_remote_code: Whether code shipped with the model may run.
        prove: Whether the adapter proves itself on random tokens.

    Returns:
        The model in evaluation mode.

    Raises:
        UnknownModelError: If there is no such model.
        UnsupportedModelError: If headwater cannot run it with gates, or it is no name.
        UnknownOptionError: If the dtype or device does not exist here, or both device and
            device_map are given.
    """
    name = refuse_no_name(name)
    if device is not None and device_map is not None:
        raise UnknownOptionError(
            f"both device={str(device)!r} and device_map={device_map!r} were given.\n"
            "Give one: device moves the whole model, device_map spreads it."
        )
    place = to_device(device)
    module, tokenizer = fetch(
        name, dtype=to_dtype(dtype), device_map=device_map, trust_remote_code=trust_remote_code
    )
    if place is not None:
        module = module.to(place)
    if frozen:
        module.requires_grad_(False)
    model = Model(module, tokenizer, name=name, adapter=resolve(module))
    if prove:
        model.prove()
    return model


def wrap(module: nn.Module | Any, tokenizer: Any = None) -> Model:
    """Use a module of yours; its weights, flags and mode stay as they are.

    Args:
        module: A Hugging Face causal language model for attribution; any other network can only
            be looked at.
        tokenizer: Its tokenizer.

    Returns:
        The model. If it cannot be attributed (no language model, unknown family, failed proof),
        attribution is refused later with the reason, which `refusal` holds.

    Raises:
        UnsupportedModelError: If it is no module at all, for example a name.
    """
    refuse_no_module(module)
    notes: tuple[str, ...] = ()
    try:
        module, notes = unwrapped(module)
        adapter = _resolved(module)
        model = Model(module, tokenizer, adapter=adapter, notes=notes)
        model.prove()
    except UnsupportedModelError as error:
        # a new one: the caught one holds the frames, and with them the tensors, of the proof
        refusal = type(error)(*error.args)
        return Model(module, tokenizer, refusal=refusal, notes=notes)
    return model


def _resolved(module: nn.Module) -> Adapter:
    described = type(module).__name__
    config = getattr(module, "config", None)
    if not hasattr(config, "model_type"):
        raise UnsupportedModelError(
            f"{described} is no Hugging Face language model, so it has no sites to attribute to.\n"
            "Traces work on any module; for attribution give hw.GatedFunction(fn, names)."
        )
    refuse_config(config, described)
    return resolve(module)

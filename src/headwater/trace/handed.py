"""The tensors a run has handed out: what they are called, and whether they were edited since.

Values are held weakly. An edit in place shows in a tensor's version counter, which its views share.
"""

from __future__ import annotations

import dataclasses
import operator
import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from headwater.errors import TraceError
from headwater.trace.names import Named, name_of

Where = tuple[nn.Module, str, int]
"""A value of a run: the module, which of its values (`input`, `output`, or a site), the call."""

version_of = operator.attrgetter("_version")
"""How often a tensor was written into."""
_LATEST = 1024  # edits in place are looked for in this many of the last tensors handed out


class Outputs(tuple[Any, ...]):
    """A tuple a module returned, with the `save` that NNsight code calls."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"a module's output is a tuple here and has no {name!r}. If {name!r} is a module "
            "inside one that is called 'output', reach it by its path: "
            "run['encoder.layer.0.output.dense'].output",
            name=name,
            obj=self,
        )

    def __setitem__(self, key: Any, value: Any) -> None:
        raise TraceError(
            "a module's output is a tuple here, whose items cannot be assigned. Edit the item in "
            "place, module.output[0][:] = new, or assign the whole: "
            "module.output = (new, *module.output[1:])."
        )

    def save(self) -> Outputs:
        """Return the tuple: nothing needs saving."""
        return self


class Entry:
    """One tensor that was handed out."""

    __slots__ = ("named", "node", "number", "reference", "where")

    def __init__(
        self, tensor: Tensor, reference: weakref.ref[Tensor], named: Named, where: Where
    ) -> None:
        self.reference = reference
        self.named = named
        self.where = where
        self.node = tensor.grad_fn
        self.number = tensor.output_nr

    @property
    def name(self) -> str:
        """What the user would type to get it."""
        return name_of(self.named)

    def settle(self, tensor: Tensor) -> None:
        """Remember what the tensor is now: the model, or the user, may write into it later."""
        self.node = tensor.grad_fn
        self.number = tensor.output_nr


class Handed:
    """Everything handed out in a run, in order.

    Args:
        values: The values of the run, by where they flow.
    """

    # This is asked at every turn, for all values: so versions are compared as whole lists, and what
    # they belong to is looked at only if they differ.

    __slots__ = (
        "_containers",
        "_lost",
        "_of",
        "_references",
        "_values",
        "_versions",
        "_watched",
        "entries",
        "held",
    )

    def __init__(self, values: Mapping[Where, Any]) -> None:
        self._values = values
        self.held: list[Tensor] | None = None
        """What was handed out, while the user's code has the turn: it may drop what it edited."""
        self.entries: list[Entry] = []
        self._of: dict[int, Entry] = {}
        self._watched: list[Entry] = []
        """Those whose edits can be seen; tensors of inference mode count no versions."""
        self._references: list[weakref.ref[Tensor]] = []
        self._versions: list[int] = []
        """What the versions of `_watched` were when they were looked at."""
        self._lost: list[Any] = []
        """References of which the tensors are gone."""
        self._containers: dict[Where, tuple[str, list[weakref.ref[Tensor]]]] = {}
        """Values that hold their tensors in something that can be given others, and which."""

    def add(self, value: Any, named: Named, where: Where) -> None:
        """Note the tensors of a value.

        Args:
            value: A tensor, or a nest of tuples, lists, mappings and dataclasses.
            named: What the user would type to get it.
            where: Where it flows.
        """
        name = name_of(named)
        for suffix, tensor in tensors_in(value):
            self.add_tensor(tensor, name + suffix, where)
        if any(True for _ in _containers_in(value)):
            self._containers[where] = (name, _contents(value))

    def add_tensor(self, tensor: Tensor, named: Named, where: Where) -> None:
        """Note one tensor.

        Args:
            tensor: The tensor.
            named: What the user would type to get it.
            where: Where it flows.
        """
        there = self._of.get(id(tensor))
        if there is not None and there.reference() is tensor:
            there.where = where  # a block's input is the tensor its predecessor returned
            if there.node is not tensor.grad_fn:
                there.settle(tensor)  # written into by the model: it is another value now
                there.named = named
            return
        reference = weakref.ref(tensor, self._lost.append)
        entry = self._of[id(tensor)] = Entry(tensor, reference, named, where)
        self.entries.append(entry)
        if not tensor.is_inference():
            self._watched.append(entry)
            self._references.append(reference)
            self._versions.append(tensor._version)
            if self.held is not None:
                self.held.append(tensor)

    def rename(self, tensor: Tensor, named: Named) -> None:
        """The user has asked for a tensor by another name."""
        entry = self.find(tensor)
        if entry is not None:
            entry.named = named

    def find(self, tensor: Tensor) -> Entry | None:
        """The entry of exactly this tensor, if it was handed out."""
        entry = self._of.get(id(tensor))
        return entry if entry is not None and entry.reference() is tensor else None

    def alive(self) -> list[tuple[Entry, Tensor]]:
        """The entries whose tensors still exist."""
        pairs = [(entry, entry.reference()) for entry in self.entries]
        return [(entry, tensor) for entry, tensor in pairs if tensor is not None]

    def look(self) -> list[Entry]:
        """The user's code has the turn now.

        Returns:
            The entries that the model has written into since it was last the user's turn.
        """
        if self._lost or len(self._watched) > _LATEST:
            self._drop_lost()
        self.held = held = list(map(operator.call, self._references))  # pyright: ignore
        if self._containers:
            self._look_into_containers()
        return [] if list(map(version_of, held)) == self._versions else self._changed()

    def _drop_lost(self) -> None:
        self._lost.clear()
        kept = [n for n, reference in enumerate(self._references) if reference() is not None]
        kept = kept[-_LATEST:]
        self._watched = [self._watched[n] for n in kept]
        self._references = [self._references[n] for n in kept]
        self._versions = [self._versions[n] for n in kept]

    def _look_into_containers(self) -> None:
        for where, (name, _) in list(self._containers.items()):
            if where in self._values:
                self._containers[where] = (name, _contents(self._values[where]))
            else:
                del self._containers[where]

    def is_touched(self) -> bool:
        """Whether something may have been edited, or given another tensor, since `look`."""
        held = self.held
        if held is None:
            return False
        return bool(self._containers) or list(map(version_of, held)) != self._versions

    def edited(self) -> list[Entry]:
        """The entries edited in place since this was last asked, or since `look`."""
        found = self._changed()
        for entry in found:
            tensor = entry.reference()
            if tensor is not None:
                entry.settle(tensor)
        return found

    def rebound(self, held: Where | None) -> str | None:
        """The name of a container that was given another tensor since the last `look`.

        Args:
            held: Where the model waits: what is changed there is changed in time.

        Returns:
            Its name; None if there is none.
        """
        current: set[int] | None = None
        for where, (name, before) in self._containers.items():
            now = _contents(self._values.get(where))
            same = len(now) == len(before) and all(map(operator.is_, now, before))
            if same or where not in self._values:
                continue
            # one container may stand at several places: a dictionary that is handed on
            if current is None:
                current = set(() if held is None else _containers_in(self._values.get(held)))
            if current.isdisjoint(_containers_in(self._values[where])):
                return name
            self._containers[where] = (name, now)
        return None

    def _changed(self) -> list[Entry]:
        held, before = self.held, self._versions
        if held is None:
            return []
        now = list(map(version_of, held))
        if now == before:
            return []
        self._versions = now
        pairs = zip(self._watched, now, before, strict=True)
        return [entry for entry, new, old in pairs if new != old]

    def clear(self) -> None:
        """Forget everything."""
        self.held = None
        self.entries.clear()
        self._of.clear()
        self._watched.clear()
        self._references.clear()
        self._versions.clear()
        self._containers.clear()


def _containers_in(value: Any, depth: int = 0) -> Iterator[int]:
    """The ids of what a value is, or holds, whose items can be assigned."""
    if isinstance(value, Tensor) or value is None or depth > 8:
        return
    items: Iterable[Any] = ()
    if isinstance(value, Mapping):
        items = value.values()
    elif isinstance(value, (tuple, list)):
        items = value
    elif dataclasses.is_dataclass(value):
        items = [getattr(value, field.name, None) for field in dataclasses.fields(value)]
    else:
        return
    if not isinstance(value, tuple):
        yield id(value)
    for item in items:
        yield from _containers_in(item, depth + 1)


def _contents(value: Any) -> list[weakref.ref[Tensor]]:
    # there is one reference object for each tensor, and none like it when the tensor is gone
    return [weakref.ref(tensor) for _, tensor in tensors_in(value)]


def tensors_in(value: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """Find the tensors of a nested value.

    Args:
        value: Tensors in tuples, lists, mappings and dataclasses; other objects are not entered.
        path: Where `value` is.
        depth: How deep; nests of more than eight levels are not followed.

    Yields:
        What to type after the value's name, and the tensor.
    """
    if isinstance(value, Tensor):
        yield path, value
    elif depth > 8 or value is None:
        return
    elif isinstance(value, Mapping):
        for key, item in value.items():
            # fields of a ModelOutput are attributes as well
            step = f".{key}" if dataclasses.is_dataclass(value) else f"[{key!r}]"
            yield from tensors_in(item, path + step, depth + 1)
    elif isinstance(value, (tuple, list)):
        for number, item in enumerate(value):
            yield from tensors_in(item, f"{path}[{number}]", depth + 1)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from tensors_in(
                getattr(value, field.name, None), f"{path}.{field.name}", depth + 1
            )


def share_memory(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are, or may be, views of the same memory."""
    if one is other:
        return True
    try:
        return one.untyped_storage()._cdata == other.untyped_storage()._cdata
    except (RuntimeError, NotImplementedError):  # tensors without storage
        return False

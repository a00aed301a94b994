"""Dictionaries of a model, by site: read from a folder, checked against the model."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from headwater.architectures.adapter import Adapter
from headwater.architectures.norms import mlp_norm
from headwater.architectures.widths import width
from headwater.dictionaries.dictionary import Dictionary
from headwater.dictionaries.folding import norm_weight_folded
from headwater.dictionaries.hooks import (
    NORMALIZED,
    is_module_in_norm,
    read_site,
    site_of,
    written_site,
)
from headwater.dictionaries.read import read_dictionary
from headwater.dictionaries.source import MAIN, weights_in
from headwater.errors import DictionaryError, UnavailableSiteError, UnknownSiteError
from headwater.sites import Site

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
Place = str | Site | tuple[str | Site, str | Site]
"""A site, or of a transcoder the one that it reads and the one that it writes."""

_CHECKPOINTS = "checkpoints"
_SHOWN = 24


@dataclass(frozen=True, eq=False, repr=False)
class Dictionaries(Mapping[Site, Dictionary]):
    """One dictionary a site, in the order in which a forward pass computes the sites.

    A transcoder stands at the site that it writes; `reads` says which one it encodes.

    Args:
        found: By site or its path.
        read_sites: For each transcoder the site that it reads; by default what its file says.

    Raises:
        UnknownSiteError: If a path is no site.
        DictionaryError: If a transcoder's file names no place that it reads.
    """

    found: Mapping[Any, Dictionary]
    read_sites: Mapping[Any, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        found = {_site(key): one for key, one in self.found.items()}
        told = {_site(key): _site(read) for key, read in self.read_sites.items()}
        reads = {
            site: told.get(site) or (read_site(one) if one.transcoder else site)
            for site, one in found.items()
        }
        inorder = sorted(found, key=lambda site: site.order)
        object.__setattr__(self, "found", {site: found[site] for site in inorder})
        object.__setattr__(self, "read_sites", {site: reads[site] for site in inorder})

    def __getitem__(self, site: Site | str) -> Dictionary:
        key = _site(site)
        if key not in self.found:
            here = ", ".join(str(one) for one in self.found) or "none"
            raise DictionaryError(f"no dictionary at '{key}'.\nThere are dictionaries at: {here}.")
        return self.found[key]

    def get(self, key: Any, default: Any = None) -> Any:
        """Return the dictionary at a site, or something else if there is none."""
        return self.found.get(_site(key), default)

    def __iter__(self) -> Iterator[Site]:
        return iter(self.found)

    def __len__(self) -> int:
        return len(self.found)

    def __contains__(self, site: object) -> bool:
        return (Site.parse(site) if isinstance(site, str) and Site.is_path(site) else site) in (
            self.found
        )

    def __repr__(self) -> str:
        below = _common([one.origin.path for one in self.values() if one.origin.path])
        rows = [("site", "kind", "features", "width", "file")]
        rows += [
            (
                str(site) if self.reads(site) == site else f"{self.reads(site)} -> {site}",
                one.origin.kind or one.activation.name,
                f"{one.features:,}",
                str(one.d_out) if one.d_in == one.d_out else f"{one.d_in} -> {one.d_out}",
                one.origin.path.removeprefix(below) or "made here",
            )
            for site, one in list(self.items())[:_SHOWN]
        ]
        wide = [max(len(row[column]) for row in rows) for column in range(4)]
        lines = ["  ".join((*map(str.ljust, row[:4], wide), row[4])) for row in rows]
        more = len(self) - _SHOWN
        where = f" in {below}" if below else ""
        return "\n".join([f"Dictionaries at {len(self)} sites{where}", *lines]) + (
            f"\nand {more} more" if more > 0 else ""
        )

    @classmethod
    def read(
        cls,
        source: Paths,
        *,
        sites: Place | Mapping[str, Place] | None = None,
        scale: float | None = None,
        centered: bool | None = None,
    ) -> Dictionaries:
        """Read dictionaries and place them.

        Args:
            source: A file, the folder of one dictionary, a folder that holds such folders or files
                at any depth, or several of these. Checkpoints below a finished run are left alone.
            sites: Where dictionaries are whose files name no place: the site of the only one, or a
                site for the name of a folder or file, or for a path. Of a transcoder
                `("layers.3.mlp.in", "layers.3.mlp.out")`: what it reads, what it writes.
            scale: As in `read_dictionary`, for all of them.
            centered: Likewise.

        Returns:
            The dictionaries, on the CPU.

        Raises:
            DictionaryError: If there is none; if one cannot be read or has no known place; if two
                are of one site.
        """
        many = isinstance(source, Sequence) and not isinstance(source, str)
        paths = [Path(path) for path in (source if many else [source])]  # pyright: ignore
        files = [file for path in paths for file in _files(path)]
        if not files:
            raise DictionaryError(
                f"{', '.join(str(path) for path in paths) or 'an empty list'} holds no "
                f"dictionaries: no {', '.join(MAIN)} or other file of tensors at any depth."
            )
        files = list({file.resolve(): file for file in files}.values())
        told = _told(sites, files)
        found: dict[Site, Dictionary] = {}
        reads: dict[Site, Site] = {}
        for file in files:
            one = read_dictionary(file, scale=scale, centered=centered)
            if file in told:
                read, written = told[file]
                _refuse_other_ends(one, read, written)
            else:
                read, written = read_site(one), written_site(one)
            if written in found:
                raise DictionaryError(
                    f"two dictionaries are of '{written}': {found[written].origin.path} and "
                    f"{file}.\nName the ones you want: hw.load_dictionaries(model, [path, ...]); "
                    "on the command line -d PATH -d PATH."
                )
            found[written], reads[written] = one, read
        return cls(found, reads)

    def reads(self, site: Site | str) -> Site:
        """Return the site that the dictionary at a site encodes: the same unless a transcoder."""
        self[site]
        return self.read_sites[_site(site)]

    def to(
        self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> Dictionaries:
        """Return the same dictionaries in another number type or on another device."""
        moved = {site: one.to(dtype=dtype, device=device) for site, one in self.items()}
        return replace(self, found=moved)

    def to_list(self) -> list[dict[str, Any]]:
        """Return what they are as plain data, one mapping a site."""
        return [
            {
                "site": str(site),
                "reads": str(self.reads(site)),
                "format": one.origin.format,
                "kind": one.origin.kind or one.activation.name,
                "features": one.features,
                "d_in": one.d_in,
                "d_out": one.d_out,
                "dtype": str(one.encoder.dtype).removeprefix("torch."),
                "centered": one.centered,
                "scale": one.origin.scale,
                "sha256": one.origin.sha256,
                "path": one.origin.path,
                "notes": list(one.origin.notes),
            }
            for site, one in self.items()
        ]

    @classmethod
    def from_list(cls, data: Iterable[Mapping[str, Any]]) -> Dictionaries:
        """Read the dictionaries that `to_list` lists, from their files.

        Args:
            data: What `to_list` returned.

        Raises:
            DictionaryError: If one was made in memory, or its file has changed or is gone.
        """
        found: dict[str, Dictionary] = {}
        reads: dict[str, str] = {}
        for entry in data:
            if not entry["path"]:
                raise DictionaryError(
                    f"the dictionary at '{entry['site']}' was made in memory, so no file holds it."
                    "\nWrite it first: hw.write_dictionary(dictionary, folder), then read it."
                )
            one = read_dictionary(entry["path"], scale=entry["scale"], centered=entry["centered"])
            if one.origin.sha256 != entry["sha256"]:
                raise DictionaryError(
                    f"{entry['path']} is another file than the one used before: its SHA-256 begins "
                    f"with {one.origin.sha256[:12]}, not {entry['sha256'][:12]}.\n"
                    "Put the old one back."
                )
            found[entry["site"]] = one.to(dtype=getattr(torch, entry["dtype"]))
            reads[entry["site"]] = entry["reads"]
        return cls(found, reads)

    def fitted(self, adapter: Adapter) -> Dictionaries:
        """Return the dictionaries as they are used on a model, checked.

        Those of `ln2.hook_normalized`, which lies before a norm's weight, get that weight folded
        in: the site is what the norm hands on.

        Args:
            adapter: Of the model.

        Raises:
            DictionaryError: As `check`.
        """
        found = dict(self.found)
        for site, one in self.items():
            read = self.reads(site)
            if _is_unfitted(one) and read.layer is not None:
                with _naming(one, "encoder", one.encoder):
                    adapter.point(read)
                    folded = norm_weight_folded(one, *mlp_norm(adapter, read.layer))
                # its place is the site now
                found[site] = replace(folded, origin=replace(folded.origin, hook=str(read)))
        fitted = replace(self, found=found)
        fitted.check(adapter)
        return fitted

    def check(self, adapter: Adapter) -> None:
        """Refuse dictionaries that do not fit a model.

        Args:
            adapter: Of the model.

        Raises:
            DictionaryError: If the model lacks a site, or has another width there; if a dictionary
                is of a module whose output goes through a norm before it is written; names file,
                tensor and shape.
        """
        for site, one in self.items():
            _check(adapter, one, self.reads(site), "encoder", one.encoder, one.d_in)
            _check(adapter, one, site, "decoder", one.decoder, one.d_out)
            if _is_unfitted(one):
                raise DictionaryError(
                    f"{one.origin.path} is of {one.origin.hook!r}, which lies before the norm's "
                    f"weight; '{self.reads(site)}' lies after it.\n"
                    "hw.load_dictionaries(model, ...) folds the weight in; hw.write_dictionary "
                    "keeps what it returns."
                )
            hook = one.origin.hook_out if one.transcoder else one.origin.hook
            if adapter.family.post_norm and is_module_in_norm(hook):
                raise DictionaryError(
                    f"{one.origin.path} is of the output of the module {hook!r}, which goes "
                    f"through a norm in {adapter.family.name} before it is added to the residual; "
                    f"'{site}' is what that norm hands on.\n"
                    "Use a dictionary that was trained after the norm."
                )


def _is_unfitted(one: Dictionary) -> bool:
    return (one.origin.hook or "").endswith(NORMALIZED)


def _site(site: Any) -> Site:
    return site if isinstance(site, Site) else Site.parse(str(site))


def _common(paths: Sequence[str]) -> str:
    """Return the folder that several files are below, with its separator; else nothing."""
    if len(paths) < 2 or len({os.path.isabs(path) for path in paths}) == 2:
        return ""
    folder = os.path.commonpath([os.path.dirname(path) for path in paths])
    return os.path.join(folder, "") if folder else ""


def _files(path: Path) -> list[Path]:
    """Return the files below a path that are a dictionary each."""
    if not path.is_dir():
        return [path]
    here = weights_in(path)
    if any(file.name in MAIN for file in here):
        return here
    below = sorted(
        one
        for one in path.iterdir()
        if one.is_dir() and one.name != _CHECKPOINTS and not one.name.startswith(".")
    )
    return [*here, *(file for folder in below for file in _files(folder))]


def _told(
    sites: Place | Mapping[str, Place] | None, files: Sequence[Path]
) -> dict[Path, tuple[Site, Site]]:
    """Return the places that the caller names, by file."""
    if sites is None:
        return {}
    if not isinstance(sites, Mapping):
        if len(files) > 1:
            raise DictionaryError(
                f"sites={sites!r} is one place, but there are {len(files)} dictionaries.\n"
                f"Name each: sites={{{files[0].parent.name!r}: 'layers.3.mlp.out', ...}}."
            )
        return {files[0]: _pair(sites)}
    told: dict[Path, tuple[Site, Site]] = {}
    for name, place in sites.items():
        meant = [file for file in files if _is_called(file, name)]
        if len(meant) != 1:
            names = ", ".join(str(file) for file in files[:_SHOWN])
            raise DictionaryError(
                f"sites names {name!r}, which is {len(meant)} of the dictionaries, not one.\n"
                f"There are: {names}."
            )
        told[meant[0]] = _pair(place)
    return told


def _is_called(file: Path, name: str) -> bool:
    path = Path(name)
    return path in (file, file.parent) or name in (file.name, file.stem, file.parent.name)


def _pair(place: Place) -> tuple[Site, Site]:
    ends = place if isinstance(place, tuple) else (place, place)
    read, written = (_named(one) for one in ends)
    return read, written


def _refuse_other_ends(one: Dictionary, read: Site, written: Site) -> None:
    """Refuse one site for a transcoder, and two for a dictionary that is none."""
    if one.transcoder and read == written:
        raise DictionaryError(
            f"{one.origin.path} is a transcoder, and one site was named: '{read}'.\n"
            "Name what it reads and what it writes: ('layers.3.mlp.in', 'layers.3.mlp.out'), on "
            "the command line PATH=layers.3.mlp.in:layers.3.mlp.out."
        )
    if not one.transcoder and read != written:
        raise DictionaryError(
            f"{one.origin.path} is no transcoder: it encodes what it reconstructs, and two sites "
            f"were named, '{read}' and '{written}'.\nName one."
        )


def _named(place: str | Site) -> Site:
    found = place if isinstance(place, Site) else site_of(place)
    return Site.parse(str(place)) if found is None else found


class _naming:
    """Add file, tensor and shape to what an error says of a model."""

    def __init__(self, one: Dictionary, tensor: str, value: torch.Tensor) -> None:
        self.said = f"{one.origin.path or 'dictionary'}: {tensor} {list(value.shape)}: "

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, UnavailableSiteError | UnknownSiteError):
            raise DictionaryError(f"{self.said}{error}") from error


def _check(
    adapter: Adapter, one: Dictionary, site: Site, tensor: str, value: torch.Tensor, size: int
) -> None:
    with _naming(one, tensor, value):
        adapter.point(site)
    expected = width(adapter, site)
    if size != expected:
        has = "no vector at a position" if expected is None else f"{expected} numbers a position"
        raise DictionaryError(
            f"{one.origin.path or 'dictionary'}: {tensor} has shape {list(value.shape)}, so it is "
            f"of {size} numbers, but '{site}' of this {adapter.family.name} has {has} "
            f"({site.axes.removeprefix('batch pos ').replace(' ', ' * ')}).\n"
            "It was trained on another model or another site."
        )

"""What a person says about a package on the command line of `adapt pack`."""

from __future__ import annotations

from dataclasses import dataclass

from adapterhub.spec.quantization import Quantization


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a person says about a package because no file does; None and empty leave what the files or the card say.

    base: an id, with `#REV` where a revision is meant. quantization: what the base was loaded as in training.
    """

    name: str | None = None
    version: str | None = None
    base: str | None = None
    summary: str | None = None
    license: str | None = None
    keywords: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    quantization: Quantization | None = None

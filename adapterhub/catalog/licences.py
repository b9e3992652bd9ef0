"""Known licences, one row each: what of them matters when an adapter is trained on a model or data that are under them.

The rows are a reading of the licences' texts at `url`, in the few respects in which an adapter's licence can promise
more than its base's gives (catalog/licence_checks.py); they are no legal advice. The ids are the Hub's
(https://huggingface.co/docs/hub/repositories-licenses), in lower case; SPDX ids (https://spdx.org/licenses) differ from
them in case alone. Licences that the Hub files under `other` go by the card's `license_name`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType


class Commerce(Enum):
    """What a licence says of commercial use."""

    YES = "yes"
    NO = "no"
    CONDITIONS = "under conditions"


@dataclass(frozen=True, slots=True, kw_only=True)
class Licence:
    """One licence.

    id: the Hub's. url: its text. commerce: commercial use. derivatives: whether changed versions may be shared. family:
    licences whose terms are one another's, up to their version. share_alike: a derived work carries the licence, or one
    of `passes_to`. terms: restrictions of use, or an agreement, that whoever passes a derived work on has to pass on.
    notice: what a derived work has to show. name_begins: how the name of a derived model has to begin. aliases: other
    spellings, in lower case. on_hub: whether the Hub's list has the id; else it is a card's `license_name` beside
    `license: other`. heading: a regular expression that the beginning of its text matches, in any case.
    """

    id: str
    url: str
    commerce: Commerce = Commerce.YES
    derivatives: bool = True
    family: str = ""
    share_alike: bool = False
    passes_to: tuple[str, ...] = ()
    terms: bool = False
    notice: str | None = None
    name_begins: str | None = None
    aliases: tuple[str, ...] = ()
    on_hub: bool = True
    heading: str | None = None

    def takes(self, other: Licence) -> bool:
        """Say whether a derived work of this licence may say that it is under the other one."""
        same_family = bool(self.family) and self.family == other.family
        return other.id == self.id or other.id in self.passes_to or same_family


_SPDX, _CC, _LLAMA = "https://spdx.org/licenses/", "https://creativecommons.org/", "https://www.llama.com/"
_NO, _CONDITIONS = Commerce.NO, Commerce.CONDITIONS


def _free(id: str, spdx: str, *aliases: str, heading: str | None = None) -> Licence:
    """Return a licence that asks for no more than that its notice is kept."""
    return Licence(id=id, url=f"{_SPDX}{spdx}.html", aliases=aliases, heading=heading)


def _copyleft(
    id: str, spdx: str, *passes_to: str, aliases: tuple[str, ...] = (), heading: str | None = None
) -> Licence:
    url = f"{_SPDX}{spdx}.html"
    return Licence(id=id, url=url, share_alike=True, passes_to=passes_to, aliases=aliases, heading=heading)


_CC_ON_HUB = {
    *("by-2.0", "by-2.5", "by-3.0", "by-4.0", "by-sa-3.0", "by-sa-4.0", "by-nc-2.0", "by-nc-3.0", "by-nc-4.0"),
    *("by-nd-4.0", "by-nc-nd-3.0", "by-nc-nd-4.0", "by-nc-sa-2.0", "by-nc-sa-3.0", "by-nc-sa-4.0"),
}


def _cc(kind: str, version: str) -> Licence:
    """Return a Creative Commons licence of a kind (`by-nc-sa`) and version, by the meaning of the kind's parts.

    A work under version 2.0 or later may be adapted under a later version of the same licence (CC's own rule).
    """
    later = ("3.0", "4.0")
    parts = {"nc": "NonCommercial", "sa": "ShareAlike", "nd": "NoDerivatives", "by": "Attribution"}
    title = "-".join(parts[part] for part in kind.split("-"))
    return Licence(
        id=f"cc-{kind}-{version}",
        url=f"{_CC}licenses/{kind}/{version}/",
        commerce=_NO if "nc" in kind else Commerce.YES,
        derivatives="nd" not in kind,
        share_alike="sa" in kind,
        passes_to=tuple(f"cc-{kind}-{item}" for item in later if item > version) if "sa" in kind else (),
        on_hub=f"{kind}-{version}" in _CC_ON_HUB,
        heading=rf"(creative commons )?{title.lower()} {re.escape(version)}",
    )


def _llama(id: str, version: str, path: str, *, built_with: str | None, name: str | None, heading: str) -> Licence:
    return Licence(
        id=id,
        url=_LLAMA + path,
        commerce=_CONDITIONS,
        family="llama",
        terms=True,
        notice=built_with,
        name_begins=name,
        aliases=(f"llama-{version}", f"{id}-community"),
        heading=heading,
    )


def _rail(id: str, url: str, *aliases: str, heading: str | None = None) -> Licence:
    return Licence(
        id=id, url=url, commerce=_CONDITIONS, family="openrail", terms=True, aliases=aliases, heading=heading
    )


_PERMISSIVE = (
    _free("apache-2.0", "Apache-2.0", "apache2", "apache 2.0", heading=r"apache license,? version 2\.0"),
    _free("mit", "MIT", heading="(the )?mit license|permission is hereby granted, free of charge"),
    _free("bsd", "BSD-3-Clause"),
    _free("bsd-2-clause", "BSD-2-Clause", heading="bsd 2-clause"),
    _free("bsd-3-clause", "BSD-3-Clause", heading="bsd 3-clause"),
    _free("bsd-3-clause-clear", "BSD-3-Clause-Clear"),
    _free("isc", "ISC", heading="isc license"),
    _free("zlib", "Zlib"),
    _free("bsl-1.0", "BSL-1.0", heading="boost software license"),
    _free("artistic-2.0", "Artistic-2.0"),
    _free("ms-pl", "MS-PL"),
    _free("ncsa", "NCSA"),
    _free("postgresql", "PostgreSQL"),
    _free("unlicense", "Unlicense", heading="this is free and unencumbered software"),
    _free("wtfpl", "WTFPL"),
    _free("cc0-1.0", "CC0-1.0", "cc0", heading=r"(creative commons )?cc0 1.0|creative commons legal code\ cc0"),
    _free("pddl", "PDDL-1.0", "pddl-1.0"),
    _free("odc-by", "ODC-By-1.0", "odc-by-1.0", heading="(odc|open data commons) attribution"),
    _free("cdla-permissive-1.0", "CDLA-Permissive-1.0"),
    _free("cdla-permissive-2.0", "CDLA-Permissive-2.0"),
    _free("etalab-2.0", "etalab-2.0"),
    _free("afl-3.0", "AFL-3.0"),
    _free("ecl-2.0", "ECL-2.0"),
    # Their copyleft is by the file, and an adapter's weights are a file of their own.
    _free("mpl-2.0", "MPL-2.0", heading="mozilla public license,? version 2.0"),
    _free("epl-2.0", "EPL-2.0", heading="eclipse public license -? ?v ?2.0"),
)

_COPYLEFT = (
    _copyleft("gpl", "GPL-3.0-or-later", "gpl-2.0", "gpl-3.0"),
    _copyleft("gpl-2.0", "GPL-2.0-only", aliases=("gpl-2.0-only",), heading=r"gnu general public license version 2"),
    _copyleft(
        "gpl-3.0",
        "GPL-3.0-only",
        aliases=("gpl-3.0-only", "gpl-3.0-or-later"),
        heading=r"gnu general public license version 3",
    ),
    _copyleft(
        "agpl-3.0",
        "AGPL-3.0-only",
        aliases=("agpl-3.0-only", "agpl-3.0-or-later"),
        heading=r"gnu affero general public license version 3",
    ),
    _copyleft(
        "lgpl-3.0",
        "LGPL-3.0-only",
        "gpl-3.0",
        aliases=("lgpl-3.0-only", "lgpl-3.0-or-later"),
        heading=r"gnu lesser general public license version 3",
    ),
    _copyleft("lgpl", "LGPL-2.1-or-later", "lgpl-2.1", "lgpl-3.0", "gpl-2.0", "gpl-3.0"),
    _copyleft("lgpl-2.1", "LGPL-2.1-only", "lgpl-3.0", "gpl-2.0", "gpl-3.0"),
    _copyleft("osl-3.0", "OSL-3.0"),
    _copyleft("eupl-1.2", "EUPL-1.2", "gpl-2.0", "gpl-3.0", "agpl-3.0", "osl-3.0"),
    _copyleft("odbl", "ODbL-1.0", aliases=("odbl-1.0",), heading="open database licen[sc]e"),
    _copyleft("cdla-sharing-1.0", "CDLA-Sharing-1.0", heading="community data license agreement . sharing"),
    _copyleft("gfdl", "GFDL-1.3-only", heading="gnu free documentation license"),
)

_CREATIVE_COMMONS = tuple(
    _cc(kind, version)
    for kind in ("by", "by-sa", "by-nc", "by-nc-sa", "by-nd", "by-nc-nd")
    for version in ("2.0", "2.5", "3.0", "4.0")
)

_RAIL = (
    _rail("openrail", "https://www.licenses.ai/ai-licenses", "openrail-m"),
    _rail(
        "openrail++",
        "https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0/blob/main/LICENSE.md",
        heading=r"creativeml open rail\+\+-m license",
    ),
    _rail(
        "creativeml-openrail-m",
        "https://huggingface.co/spaces/CompVis/stable-diffusion-license",
        heading="creativeml open rail-m",
    ),
    _rail(
        "bigscience-openrail-m",
        "https://www.licenses.ai/blog/2022/8/26/bigscience-open-rail-m-license",
        heading="bigscience open rail-m license",
    ),
    _rail(
        "bigscience-bloom-rail-1.0",
        "https://huggingface.co/spaces/bigscience/license",
        "bigscience-rail-1.0",
        heading="bigscience rail license v1.0",
    ),
    _rail(
        "bigcode-openrail-m",
        "https://huggingface.co/spaces/bigcode/bigcode-model-license-agreement",
        heading="bigcode open rail-m v1 license",
    ),
)

_BUILT_WITH_LLAMA = "Built with Llama"
_META = (
    _llama(
        "llama2",
        "2",
        "llama2/license/",
        built_with=None,
        name=None,
        heading=r"llama 2 (community license|version release)",
    ),
    _llama(
        "llama3",
        "3",
        "llama3/license/",
        built_with="Built with Meta Llama 3",
        name="Llama 3",
        heading="meta llama 3 community license",
    ),
    *(
        _llama(
            f"llama{version}",
            version,
            f"llama{version.replace('.', '_')}/license/",
            built_with=_BUILT_WITH_LLAMA,
            name="Llama",
            heading=rf"llama {re.escape(version)} community license",
        )
        for version in ("3.1", "3.2", "3.3", "4")
    ),
)

# What the Hub files under `other`, with a name of its own, and the ids it has for single vendors.
_VENDORS = (
    Licence(
        id="gemma",
        url="https://ai.google.dev/gemma/terms",
        commerce=_CONDITIONS,
        terms=True,
        notice="Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms",
        aliases=("gemma-terms-of-use",),
        heading="gemma terms of use",
    ),
    Licence(
        id="qwen",
        on_hub=False,
        url="https://huggingface.co/Qwen/Qwen2.5-72B-Instruct/blob/main/LICENSE",
        commerce=_CONDITIONS,
        family="qwen",
        terms=True,
        notice="Built with Qwen",
        heading="qwen license agreement",
    ),
    Licence(
        id="tongyi-qianwen",
        on_hub=False,
        url="https://github.com/QwenLM/Qwen/blob/main/Tongyi%20Qianwen%20LICENSE%20AGREEMENT",
        commerce=_CONDITIONS,
        family="qwen",
        terms=True,
        aliases=("tongyi-qianwen-license-agreement",),
        heading="tongyi qianwen license agreement",
    ),
    Licence(
        id="qwen-research",
        on_hub=False,
        url="https://huggingface.co/Qwen/Qwen2.5-3B-Instruct/blob/main/LICENSE",
        commerce=_NO,
        terms=True,
        notice="Built with Qwen",
        heading="qwen research license agreement",
    ),
    Licence(
        id="mrl",
        on_hub=False,
        url="https://mistral.ai/licenses/MRL-0.1.md",
        commerce=_NO,
        terms=True,
        aliases=("mrl-0.1", "mistral-ai-research-license", "mistral-research-license"),
        heading="mistral ai research license",
    ),
    Licence(
        id="mnpl",
        on_hub=False,
        url="https://mistral.ai/licences/MNPL-0.1.md",
        commerce=_NO,
        terms=True,
        aliases=("mnpl-0.1",),
        heading="mistral ai non-production license",
    ),
    Licence(
        id="deepseek",
        on_hub=False,
        url="https://github.com/deepseek-ai/DeepSeek-V2/blob/main/LICENSE-MODEL",
        commerce=_CONDITIONS,
        terms=True,
        aliases=("deepseek-license", "deepseek-license-agreement"),
        heading="deepseek license agreement",
    ),
    Licence(
        id="falcon-llm-license",
        on_hub=False,
        url="https://falconllm.tii.ae/falcon-terms-and-conditions.html",
        commerce=_CONDITIONS,
        terms=True,
        aliases=("falcon", "falcon-llm-licence", "falcon-180b-license", "falcon-mamba-7b-license"),
        heading="(tii )?falcon (llm|180b|mamba 7b tii|2 11b tii) licen[sc]e",
    ),
    Licence(id="apple-amlr", url="https://huggingface.co/apple/DepthPro/blob/main/LICENSE", commerce=_NO, terms=True),
    Licence(
        id="fair-noncommercial-research-license",
        url="https://huggingface.co/facebook/fair-noncommercial-research-license",
        commerce=_NO,
        terms=True,
        heading="fair noncommercial research license",
    ),
)

ROWS: tuple[Licence, ...] = (*_PERMISSIVE, *_COPYLEFT, *_CREATIVE_COMMONS, *_RAIL, *_META, *_VENDORS)
LICENCES: Mapping[str, Licence] = MappingProxyType({row.id: row for row in ROWS})
_BY_NAME = {name: row for row in ROWS for name in (row.id, *row.aliases)}
# Ids that name no licence.
UNTOLD = ("", "other", "unknown", "none", "unlicensed", "no license", "see license")


def licence_named(text: str | None) -> Licence | None:
    """Return the row of a licence by the Hub's id, the SPDX id or a known spelling; None where it has none."""
    return None if text is None else _BY_NAME.get(text.strip().casefold())


def licence_of_text(text: str) -> Licence | None:
    """Return the row of the licence that a LICENSE file holds, by its heading; None where no heading is known."""
    start = re.sub(r"[#*=_>\s]+", " ", text[:600]).strip().casefold()
    # The first heading counts: a text may speak of other licences further down.
    found = [
        (match.start(), -len(match[0]), row.id)
        for row in ROWS
        if row.heading and (match := re.search(row.heading, start))
    ]
    return LICENCES[min(found)[2]] if found else None

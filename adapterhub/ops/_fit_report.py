"""The checks of `adapt validate` that tell fit, made of what a registry says of a package before it is fetched."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from adapterhub.bases import BaseRecord
from adapterhub.fingerprints import Verdict, compare
from adapterhub.ops._check_base import check_base
from adapterhub.ops._check_config import Contents
from adapterhub.ops._check_weights import check_weights
from adapterhub.ops._checklist import Checklist
from adapterhub.registry import Description
from adapterhub.spec._decode import freeze
from adapterhub.spec.base_model import BaseModelRef
from adapterhub.spec.lora import LoraSpec
from adapterhub.spec.manifest import CONFIG_FILE, MANIFEST_FILE
from adapterhub.spec.report import Report

WRONG_BASE = "ADP201"


def fit_report(description: Description, base: BaseRecord | BaseModelRef) -> Report:
    """Check a package's manifest, config and header against a base; by its name and fingerprints where that is all.

    Raises:
        InvalidFileError: the config's LoRA settings break their rules.
    """
    log = Checklist()
    contents = _contents(description)
    weights = check_weights(contents, log)
    if isinstance(base, BaseRecord):
        check_base(contents, weights, base, log)
    elif compare(recorded := description.manifest.base_model, base) is Verdict.DIFFERENT:
        message = f"trained on {recorded.id}, and the base {base.id} of the lock is another"
        log.fault(WRONG_BASE, f"{MANIFEST_FILE}: base_model", message)
    return log.report(str(description.ref))


def _contents(description: Description) -> Contents:
    """Return what was read of a package in a registry as what validation reads of a folder; no file lies anywhere."""
    config = freeze(description.config)
    assert isinstance(config, Mapping)
    lora = None
    if config.get("peft_type") == "LORA":
        lora = LoraSpec.from_hyperparameters(config, where=f"{description.ref}: {CONFIG_FILE}")
    nowhere = Path(os.devnull)
    return Contents(folder=nowhere, manifest=description.manifest, config=config, lora=lora, header=description.header)

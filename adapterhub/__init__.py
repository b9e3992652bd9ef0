"""adapterhub: a declarative package manager and format for model adapters.

    import adapterhub

    adapterhub.build("recipe.yaml")
    adapterhub.install("org/legal-lora>=1.2")
    model, tokenizer = adapterhub.load("medical,spanish=0.5")

The verbs of the command line, and the values they take and give. Names are loaded when they are first used: importing
the package imports nothing else (PEP 562).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from adapterhub.api import (
        add_base,
        build,
        evaluate,
        export_packages,
        gc,
        import_packages,
        info,
        install,
        list_adapters,
        load,
        lock,
        merge,
        outdated,
        publish,
        run,
        search,
        show,
        sync,
        uninstall,
        update,
        validate,
        verify,
        yank,
    )
    from adapterhub.errors import AdapterHubError
    from adapterhub.ops.predict import predict
    from adapterhub.package import open_package
    from adapterhub.settings import Settings
    from adapterhub.spec.generation import Generation
    from adapterhub.spec.manifest import Manifest
    from adapterhub.spec.quantization import Quantization
    from adapterhub.spec.recipe import Recipe
    from adapterhub.spec.report import Report

__version__ = "0.1.0"

_API = "adapterhub.api"
_PUBLIC = {
    "add_base": _API,
    "build": _API,
    "evaluate": _API,
    "export_packages": _API,
    "gc": _API,
    "import_packages": _API,
    "info": _API,
    "install": _API,
    "list_adapters": _API,
    "load": _API,
    "lock": _API,
    "merge": _API,
    "outdated": _API,
    "publish": _API,
    "run": _API,
    "search": _API,
    "show": _API,
    "sync": _API,
    "uninstall": _API,
    "update": _API,
    "validate": _API,
    "verify": _API,
    "yank": _API,
    "AdapterHubError": "adapterhub.errors",
    "Generation": "adapterhub.spec.generation",
    "Manifest": "adapterhub.spec.manifest",
    "Quantization": "adapterhub.spec.quantization",
    "Recipe": "adapterhub.spec.recipe",
    "Report": "adapterhub.spec.report",
    "Settings": "adapterhub.settings",
    "open_package": "adapterhub.package",
    "predict": "adapterhub.ops.predict",
}

__all__ = [
    "AdapterHubError",
    "Generation",
    "Manifest",
    "Quantization",
    "Recipe",
    "Report",
    "Settings",
    "__version__",
    "add_base",
    "build",
    "evaluate",
    "export_packages",
    "gc",
    "import_packages",
    "info",
    "install",
    "list_adapters",
    "load",
    "lock",
    "merge",
    "open_package",
    "outdated",
    "predict",
    "publish",
    "run",
    "search",
    "show",
    "sync",
    "uninstall",
    "update",
    "validate",
    "verify",
    "yank",
]


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

"""What `adapt show` and `adapt info` both say of a package, in the same words and order."""

from __future__ import annotations

from adapterhub.spec.manifest import Manifest
from adapterhub.spec.stack import DEFAULT_COMBINATION


def manifest_rows(manifest: Manifest, *, derived: bool) -> list[tuple[str, str]]:
    """Return labels and values of what a manifest says, from the summary on; empty values stay in."""
    base, settings = manifest.base_model, manifest.hyperparameters
    size = sum(file.size for file in manifest.files)
    targets = settings.get("target_modules")
    return [
        ("kind", "stack" if manifest.kind == "stack" else ""),
        ("summary", manifest.summary),
        ("license", manifest.license or ""),
        ("keywords", ", ".join((*manifest.keywords, *manifest.domains, *manifest.languages))),
        ("base model", base.id + (f" at {base.revision}" if base.revision else "")),
        ("base weights", base.fingerprints.weights.short if base.fingerprints.weights else ""),
        ("method", manifest.method or ""),
        ("task", manifest.task or ""),
        ("r", str(settings.get("r", ""))),
        ("lora_alpha", str(settings.get("lora_alpha", ""))),
        ("target_modules", ", ".join(map(str, targets)) if isinstance(targets, tuple) else str(targets or "")),
        ("requires", ", ".join(f"{item.requirement} × {item.weight:g}" for item in manifest.requires)),
        ("combination", combination_told(manifest) if manifest.kind == "stack" else ""),
        ("metrics", ", ".join(f"{name} {value:.4g}" for name, value in sorted(manifest.metrics.items()))),
        ("size", f"{size:,} bytes in {len(manifest.files)} files" if manifest.files else ""),
        ("manifest", "" if derived else str(manifest.digest)),
    ]


def combination_told(manifest: Manifest) -> str:
    """Return how a stack is combined, with what it says beside the rule's name."""
    said = ", ".join(f"{key} {value}" for key, value in manifest.parameters.to_data().items())
    name = manifest.combination or DEFAULT_COMBINATION
    return f"{name} ({said})" if said else name


def version_row(manifest: Manifest, *, derived: bool) -> tuple[str, str]:
    """Return the version, and whether a manifest was brought or made up."""
    return ("version", str(manifest.version) + (" (derived: the package brings no manifest)" if derived else ""))

"""From a trained adapter in a folder to a package: manifest, provenance and card beside it."""

from __future__ import annotations

import platform
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType

from adapterhub import __version__
from adapterhub.files import write_atomic
from adapterhub.ops._build_plan import BuildPlan
from adapterhub.ops._card import model_card
from adapterhub.ops._loss_plot import loss_plot
from adapterhub.package import hash_payload, hyperparameters_of, payload_names, read_config, write_manifest
from adapterhub.spec._decode import Frozen, freeze
from adapterhub.spec.base_model import BaseModelRef
from adapterhub.spec.digest import digest_file
from adapterhub.spec.manifest import CARD_FILE, LOSS_PLOT_FILE, TRAINING_LOG_FILE, Manifest, Origin
from adapterhub.spec.provenance import PROVENANCE_FILE, Provenance, Resource

TOOLS = ("peft", "torch", "transformers")
_TIME = "%Y-%m-%dT%H:%M:%SZ"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What came of a training. loss: the mean of the last epoch's steps. metrics: of held-out rows, by name.

    trainable: how many parameters were. resumed_at: the step it went on from, None from the start.
    """

    started: datetime
    finished: datetime
    steps: int
    loss: float
    tokens: int
    seconds: float
    metrics: Mapping[str, float]
    trainable: int
    resumed_at: int | None = None

    @property
    def tokens_per_second(self) -> float:
        """Real tokens a second while training."""
        return self.tokens / self.seconds if self.seconds else 0.0


def write_package(folder: Path, plan: BuildPlan, trained: Trained) -> Manifest:
    """Complete a folder that holds an adapter's config and weights; return its manifest.

    Raises:
        LocalIOError: the disk said no.
    """
    recipe, packed_as = plan.recipe, plan.recipe.quantization
    tools = TOOLS if packed_as is None else (*TOOLS, "bitsandbytes")
    manifest = Manifest(
        name=recipe.name,
        version=recipe.version,
        summary=recipe.summary,
        license=recipe.license,
        keywords=recipe.keywords,
        domains=recipe.domains,
        languages=recipe.languages,
        base_model=plan.base.ref,
        method=recipe.method,
        task=recipe.task,
        hyperparameters=hyperparameters_of(read_config(folder)),
        labels=plan.labels,
        quantization=None if packed_as is None else packed_as.computing_in(plan.dtype),
        files=hash_payload(folder, payload_names(folder)),
        built_from=Origin(
            recipe=recipe.digest,
            data=plan.data,
            seed=recipe.training.seed,
            tools=MappingProxyType({"adapterhub": __version__, **{name: version(name) for name in tools}}),
        ),
        metrics=MappingProxyType(
            {**trained.metrics, "train_loss": round(trained.loss, 6), "train_steps": float(trained.steps)}
        ),
        extra=recipe.extra,
    )
    # What we write has to be what we read: the format's own rules are held against it before it counts.
    manifest = Manifest.from_data(manifest.to_data())
    write_manifest(folder, manifest)
    write_atomic(folder / PROVENANCE_FILE, _provenance(folder, manifest, plan, trained).canonical_bytes())
    plot = loss_plot(folder / TRAINING_LOG_FILE, manifest.metrics)
    if plot is not None:
        write_atomic(folder / LOSS_PLOT_FILE, plot.encode())
    training = _mapping(recipe.to_data()["training"])
    write_atomic(folder / CARD_FILE, model_card(manifest, training, plot=plot is not None).encode())
    return manifest


def _provenance(folder: Path, manifest: Manifest, plan: BuildPlan, trained: Trained) -> Provenance:
    log = folder / TRAINING_LOG_FILE
    left = (
        (Resource(name=log.name, digest=digest_file(log)[0], media_type="application/jsonl"),) if log.is_file() else ()
    )
    machine = plan.inputs.machine
    return Provenance(
        name=f"{manifest.name} {manifest.version}",
        manifest=manifest.digest,
        builder_version=__version__,
        started=trained.started.strftime(_TIME),
        finished=trained.finished.strftime(_TIME),
        invocation=uuid.uuid4().urn,
        parameters=_mapping({"recipe": plan.recipe.to_data(), "device": plan.asked_device}),
        environment=_mapping(
            {
                "platform": platform.platform(),
                "python": platform.python_version(),
                "device": plan.device,
                "device_class": None if machine is None else machine.device,
                "dtype": plan.dtype,
                "threads": plan.threads,
                "packages": dict(plan.inputs.packages),
            }
        ),
        measures=MappingProxyType(
            {
                "training_seconds": round(trained.seconds, 3),
                "training_tokens": trained.tokens,
                "tokens_per_second": round(trained.tokens_per_second, 1),
            }
        ),
        dependencies=(
            Resource(name="recipe", digest=plan.recipe.digest, annotations=_digest_of("canonical JSON")),
            *(
                Resource(name=source.name, digest=source.digest, annotations=MappingProxyType({"rows": source.rows}))
                for source in plan.data
            ),
            *_base_resources(plan.base.ref),
        ),
        byproducts=left,
    )


def _base_resources(base: BaseModelRef) -> Iterator[Resource]:
    """Yield what was read of a base: its weights first, by fingerprint and by file, then what goes with them."""
    prints, name = base.fingerprints, f"base model {base.id}"
    # https://github.com/package-url/purl-spec/blob/main/types/huggingface-definition.json
    uri = f"pkg:huggingface/{base.id}@{base.revision}" if base.pinned and "/" in base.id else None
    for word in ("weights", "config", "tokenizer", "chat_template"):
        if (digest := getattr(prints, word)) is not None:
            what = name if word == "weights" else f"{name}: {word}"
            yield Resource(name=what, digest=digest, uri=uri, annotations=_digest_of(f"fingerprint {word}"))
    for file in sorted(prints.files):
        yield Resource(name=f"{name}: {file}", digest=prints.files[file], uri=uri)
    if base.derived_from is not None and base.derived_from.digest is not None:
        yield Resource(name=f"source of {name}", digest=base.derived_from.digest)


def _digest_of(what: str) -> Mapping[str, Frozen]:
    return MappingProxyType({"digest_of": what})


def _mapping(data: object) -> Mapping[str, Frozen]:
    frozen = freeze(data)
    assert isinstance(frozen, Mapping)
    return frozen

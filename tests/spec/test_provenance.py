"""adapter_provenance.json: the field names are those of in-toto and SLSA, and what is read is what was written."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import pytest

from adapterhub import schemas
from adapterhub.errors import InvalidFileError
from adapterhub.spec.digest import Digest
from adapterhub.spec.provenance import Provenance, Resource

# https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md
STATEMENT = {"_type", "subject", "predicateType", "predicate"}
# https://github.com/in-toto/attestation/blob/main/spec/v1/resource_descriptor.md
RESOURCE = {"name", "uri", "digest", "content", "downloadLocation", "mediaType", "annotations"}
# https://slsa.dev/spec/v1.0/provenance#schema
PREDICATE = {"buildDefinition", "runDetails"}
DEFINITION = {"buildType", "externalParameters", "internalParameters", "resolvedDependencies"}
DEFINITION_REQUIRED = {"buildType", "externalParameters"}
RUN = {"builder", "metadata", "byproducts"}
BUILDER = {"id", "builderDependencies", "version"}
METADATA = {"invocationId", "startedOn", "finishedOn"}


@pytest.fixture
def provenance() -> Provenance:
    return Provenance(
        name="legal 1.0.0",
        manifest=Digest("a" * 64),
        builder_version="0.3.0",
        started="2026-01-31T12:00:00Z",
        finished="2026-01-31T12:00:01Z",
        invocation="urn:uuid:6f1a5d0e-8a43-4f6e-9b0d-1c2b3a495867",
        parameters=MappingProxyType({"recipe": MappingProxyType({"name": "legal"}), "device": "auto"}),
        environment=MappingProxyType({"threads": 2}),
        measures=MappingProxyType({"seconds": 1.5}),
        dependencies=(
            Resource(
                name="base model acme/tiny",
                digest=Digest("b" * 64),
                uri="pkg:huggingface/acme/tiny@0123456789abcdef0123456789abcdef01234567",
                annotations=MappingProxyType({"digest_of": "fingerprint weights"}),
            ),
            Resource(name="train.jsonl", digest=Digest("c" * 64)),
        ),
        byproducts=(Resource(name="training_log.jsonl", digest=Digest("d" * 64), media_type="application/jsonl"),),
    )


def extensions(found: Any, known: set[str]) -> set[str]:
    return {name for name in found if name not in known and not name.startswith("adapterhub_")}


def test_every_field_is_of_the_standards_or_marked_as_ours(provenance: Provenance) -> None:
    data: Any = provenance.to_data()
    assert extensions(data, STATEMENT) == {"provenance_version"}
    assert set(data) >= STATEMENT
    assert (data["_type"], data["predicateType"]) == (
        "https://in-toto.io/Statement/v1",
        "https://slsa.dev/provenance/v1",
    )
    predicate = data["predicate"]
    assert set(predicate) == PREDICATE
    definition, run = predicate["buildDefinition"], predicate["runDetails"]
    assert extensions(definition, DEFINITION) == extensions(run, RUN) == set()
    assert set(definition) >= DEFINITION_REQUIRED
    assert "builder" in run
    assert extensions(run["builder"], BUILDER) == extensions(run["metadata"], METADATA) == set()
    assert "id" in run["builder"]
    resources = [*data["subject"], *definition["resolvedDependencies"], *run["byproducts"]]
    assert len(resources) == 4
    for resource in resources:
        assert set(resource) <= RESOURCE
        assert {"uri", "digest", "content"} & set(resource)
        assert all(len(digest) == 64 for digest in resource["digest"].values())
        assert set(resource["digest"]) == {"sha256"}
    for place in (definition["buildType"], run["builder"]["id"]):
        assert place.startswith("https://")
    assert data["subject"][0]["digest"]["sha256"] == provenance.manifest.hex


def test_what_is_written_is_read_again(provenance: Provenance) -> None:
    data = provenance.to_data()
    assert Provenance.from_data(data) == provenance
    assert schemas.check("provenance", data, where="x") == ()


def test_1_0_had_the_recipe_and_the_measures_elsewhere(provenance: Provenance) -> None:
    data: Any = provenance.to_data()
    data["provenance_version"] = "1.0"
    definition, run = data["predicate"]["buildDefinition"], data["predicate"]["runDetails"]
    definition["externalParameters"] = {"recipe_version": "1.1", "name": "legal"}
    run["byproductMeasures"] = run.pop("adapterhub_measures")
    del run["byproducts"], run["metadata"]["invocationId"]
    found = Provenance.from_data(data)
    assert found.parameters == {"recipe": {"recipe_version": "1.1", "name": "legal"}}
    assert found.measures == provenance.measures
    assert (found.byproducts, found.invocation) == ((), None)


@pytest.mark.parametrize("field", ["resolvedDependencies", "byproducts"])
def test_a_resource_without_a_digest_is_refused(provenance: Provenance, field: str) -> None:
    data: Any = provenance.to_data()
    part = "buildDefinition" if field == "resolvedDependencies" else "runDetails"
    data["predicate"][part][field] = [{"name": "x"}]
    with pytest.raises(InvalidFileError, match="digest"):
        Provenance.from_data(data)

"""What every registry must do, whatever it is made of: one suite, inherited by a test class for each implementation."""

from __future__ import annotations

import multiprocessing
import shutil
from pathlib import Path
from typing import Protocol

import pytest

from adapterhub.errors import IntegrityError, InvalidFileError, UnsatisfiedError
from adapterhub.package import Package, open_package
from adapterhub.progress import SILENT
from adapterhub.registry import Registry
from adapterhub.spec.refs import PackageName, PackageRef
from adapterhub.store import Store
from tests.factory import tiny_llama, tiny_lora

NAME = PackageName.parse("acme/Legal-LoRA")


class Bench(Protocol):
    """A registry under test, and a way to reach behind it."""

    def open(self) -> Registry:
        """Return a fresh handle, as another process would have."""
        ...

    def write(self, ref: PackageRef, path: str, data: bytes | None) -> None:
        """Put bytes where the registry keeps a package's file, past all checks; None removes it."""
        ...

    def read(self, ref: PackageRef, path: str) -> bytes:
        """Return the bytes that the registry keeps for a package's file."""
        ...

    def leftovers(self) -> list[str]:
        """Return what failed or finished work left behind that is no part of a package."""
        ...


def _publish(bench: Bench, folder: Path, name: PackageName) -> None:
    bench.open().publish(open_package(folder), name, progress=SILENT)


def _publish_or_refuse(bench: Bench, folder: Path, name: PackageName) -> None:
    try:
        _publish(bench, folder, name)
    except UnsatisfiedError:
        raise SystemExit(7) from None


class RegistryContract:
    """Inherit, and give a `bench` fixture."""

    @pytest.fixture(scope="class")
    def base(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return tiny_llama(tmp_path_factory.mktemp("base") / "tiny-llama")

    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        return Store(tmp_path / "store")

    @pytest.fixture
    def package(self, tmp_path: Path, base: Path) -> Package:
        return open_package(tiny_lora(tmp_path / "built", base, version="1.2.0"))

    def build(self, tmp_path: Path, base: Path, version: str, *, seed: int = 0) -> Path:
        return tiny_lora(tmp_path / f"built-{version}-{seed}", base, version=version, seed=seed)

    def test_an_empty_registry_holds_nothing(self, bench: Bench, package: Package) -> None:
        _publish(bench, package.path, PackageName.parse("other/thing"))
        with pytest.raises(UnsatisfiedError, match="acme/Legal-LoRA") as caught:
            bench.open().versions(NAME)
        assert caught.value.hint
        assert [str(name) for name in bench.open().packages()] == ["other/thing"]

    def test_what_was_published_is_listed_described_and_fetched(
        self, bench: Bench, package: Package, store: Store
    ) -> None:
        published = bench.open().publish(package, NAME, progress=SILENT)
        assert published.created
        assert str(published.ref) == "acme/Legal-LoRA@1.2.0"
        assert published.digest == package.manifest.digest
        registry = bench.open()
        assert registry.packages() == (NAME,)
        assert [str(item.version) for item in registry.versions(NAME)] == ["1.2.0"]
        description = registry.describe(published.ref)
        assert description.manifest == package.manifest
        assert description.stored.identity == package.manifest.digest
        assert description.config["peft_type"] == "LORA"
        assert description.header is not None
        assert any("lora_A" in name for name in description.header.tensors)
        assert registry.fetch(description, store, progress=SILENT) == description.stored
        assert store.find(published.ref, published.digest) == description.stored
        for entry in package.manifest.files:
            assert store.blob_path(entry.digest).read_bytes() == (package.path / entry.path).read_bytes()

    def test_describing_moves_no_weights(self, bench: Bench, package: Package, store: Store) -> None:
        published = bench.open().publish(package, NAME, progress=SILENT)
        bench.open().describe(published.ref)
        assert not store.root.exists()

    def test_versions_are_listed_by_version_not_by_spelling(self, bench: Bench, tmp_path: Path, base: Path) -> None:
        for version in ("1.10.0", "1.9.0", "2.0.0rc1", "1.10.0a1"):
            _publish(bench, self.build(tmp_path, base, version), NAME)
        listed = [str(item.version) for item in bench.open().versions(NAME)]
        assert listed == ["1.9.0", "1.10.0a1", "1.10.0", "2.0.0rc1"]

    def test_the_same_bytes_again_are_no_op(self, bench: Bench, package: Package) -> None:
        first = bench.open().publish(package, NAME, progress=SILENT)
        second = bench.open().publish(package, NAME, progress=SILENT)
        assert (first.created, second.created) == (True, False)
        assert first.digest == second.digest

    def test_other_bytes_under_a_version_are_refused(
        self, bench: Bench, package: Package, tmp_path: Path, base: Path
    ) -> None:
        _publish(bench, package.path, NAME)
        other = self.build(tmp_path, base, "1.2.0", seed=1)
        with pytest.raises(UnsatisfiedError, match="never changes") as caught:
            _publish(bench, other, NAME)
        assert "1.2.1" in (caught.value.hint or "")
        assert bench.open().describe(PackageRef.parse("acme/Legal-LoRA@1.2.0")).manifest == package.manifest

    def test_a_missing_version_lists_those_there_are(self, bench: Bench, package: Package) -> None:
        _publish(bench, package.path, NAME)
        with pytest.raises(UnsatisfiedError) as caught:
            bench.open().describe(PackageRef.parse("acme/Legal-LoRA@9.9.9"))
        assert "1.2.0" in (caught.value.hint or "")

    def test_a_name_that_differs_in_case_alone_is_refused(self, bench: Bench, package: Package) -> None:
        _publish(bench, package.path, NAME)
        for other in ("acme/legal-lora", "Acme/Legal-LoRA"):
            with pytest.raises(UnsatisfiedError, match="case"):
                _publish(bench, package.path, PackageName.parse(other))
            with pytest.raises(UnsatisfiedError) as caught:
                bench.open().versions(PackageName.parse(other))
            assert "acme/Legal-LoRA" in (caught.value.hint or "")

    @pytest.mark.parametrize("damage", ["flip", "cut", "empty", "longer", "absent"])
    def test_damaged_weights_never_count_as_fetched(
        self, bench: Bench, package: Package, store: Store, damage: str
    ) -> None:
        ref = bench.open().publish(package, NAME, progress=SILENT).ref
        whole = bench.read(ref, "adapter_model.safetensors")
        data = {
            "flip": whole[:-1] + bytes([whole[-1] ^ 1]),
            "cut": whole[:-1],
            "empty": b"",
            "longer": whole + b"\0",
            "absent": None,
        }[damage]
        bench.write(ref, "adapter_model.safetensors", data)
        registry = bench.open()
        with pytest.raises(IntegrityError) as caught:
            registry.fetch(registry.describe(ref), store, progress=SILENT)
        assert caught.value.hint
        assert store.packages() == ()

    def test_a_damaged_config_is_noticed_before_it_is_read(self, bench: Bench, package: Package) -> None:
        ref = bench.open().publish(package, NAME, progress=SILENT).ref
        whole = bench.read(ref, "adapter_config.json")
        bench.write(ref, "adapter_config.json", whole.replace(b'"r": 4', b'"r": 8'))
        with pytest.raises(IntegrityError):
            bench.open().describe(ref)

    @pytest.mark.parametrize("data", [b"", b"{", b"[1, 2", None])
    def test_a_damaged_manifest_is_an_integrity_error(self, bench: Bench, package: Package, data: bytes | None) -> None:
        ref = bench.open().publish(package, NAME, progress=SILENT).ref
        bench.write(ref, "adapter_manifest.json", data)
        with pytest.raises(IntegrityError) as caught:
            bench.open().describe(ref)
        assert caught.value.hint

    def test_a_manifest_of_another_version_is_refused(
        self, bench: Bench, package: Package, tmp_path: Path, base: Path
    ) -> None:
        ref = bench.open().publish(package, NAME, progress=SILENT).ref
        other = self.build(tmp_path, base, "3.0.0")
        bench.write(ref, "adapter_manifest.json", (other / "adapter_manifest.json").read_bytes())
        with pytest.raises(IntegrityError, match=r"3\.0\.0"):
            bench.open().describe(ref)

    @pytest.mark.parametrize("magic", [b"\x80\x04\x95", b"PK\x03\x04"])
    def test_a_pickle_is_refused_whatever_its_name(self, bench: Bench, package: Package, magic: bytes) -> None:
        ref = bench.open().publish(package, NAME, progress=SILENT).ref
        whole = bench.read(ref, "adapter_model.safetensors")
        bench.write(ref, "adapter_model.safetensors", magic + b"\xff" * (len(whole) - len(magic)))
        with pytest.raises(InvalidFileError, match="pickle"):
            bench.open().describe(ref)

    def test_files_changed_since_the_manifest_are_not_published(self, bench: Bench, package: Package) -> None:
        weights = package.path / "adapter_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"?")
        with pytest.raises(IntegrityError):
            _publish(bench, package.path, NAME)
        _refuses(bench)
        assert bench.leftovers() == []

    def test_unlisted_files_are_not_published_but_the_card_is(self, bench: Bench, package: Package) -> None:
        (package.path / "README.md").write_text("# Legal\n")
        (package.path / "training_log.jsonl").write_text("{}\n")
        ref = bench.open().publish(package, NAME, progress=SILENT).ref
        assert bench.read(ref, "README.md").endswith(b"# Legal\n")  # a registry may set keys of the header
        with pytest.raises(FileNotFoundError):
            bench.read(ref, "training_log.jsonl")

    def test_a_symbolic_link_out_of_the_package_is_not_published(
        self, bench: Bench, package: Package, tmp_path: Path
    ) -> None:
        weights = package.path / "adapter_model.safetensors"
        shutil.move(weights, tmp_path / "elsewhere.safetensors")
        weights.symlink_to(tmp_path / "elsewhere.safetensors")
        with pytest.raises(InvalidFileError, match="link"):
            _publish(bench, package.path, NAME)
        _refuses(bench)

    def test_two_processes_publish_other_bytes_and_one_wins(self, bench: Bench, tmp_path: Path, base: Path) -> None:
        folders = [self.build(tmp_path, base, "1.0.0", seed=seed) for seed in range(4)]
        codes = _in_processes(bench, folders)
        assert sorted(codes) == [0, 7, 7, 7]
        winner = open_package(folders[codes.index(0)]).manifest
        assert bench.open().describe(PackageRef.parse("acme/Legal-LoRA@1.0.0")).manifest == winner
        assert bench.leftovers() == []

    def test_processes_that_publish_the_same_bytes_all_succeed(self, bench: Bench, package: Package) -> None:
        assert _in_processes(bench, [package.path] * 4) == [0, 0, 0, 0]
        assert bench.leftovers() == []


def _refuses(bench: Bench) -> None:
    """A failed publication leaves no package behind, whether or not the registry itself was made."""
    with pytest.raises(UnsatisfiedError):
        bench.open().versions(NAME)


def _in_processes(bench: Bench, folders: list[Path]) -> list[int | None]:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_publish_or_refuse, args=(bench, folder, NAME)) for folder in folders]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)
    return [worker.exitcode for worker in workers]

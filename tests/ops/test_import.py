"""Taking in a bundle: verified, whole or not at all, and nothing written where a hostile archive wants it."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from adapterhub.cli.main import main
from adapterhub.documents import read_lockfile, write_lockfile
from adapterhub.environment import find_environment
from adapterhub.errors import IntegrityError, InvalidFileError, UnsatisfiedError
from adapterhub.ops import _bundle
from adapterhub.ops.export import export, plan_export
from adapterhub.ops.import_ import ImportPlan, import_bundle, plan_import
from adapterhub.package import open_package
from adapterhub.settings import Settings
from adapterhub.spec.digest import FileEntry, digest_file
from adapterhub.spec.lockfile import LockedPackage, Lockfile
from adapterhub.spec.refs import PackageName
from adapterhub.store import Store
from tests.factory import tiny_llama, tiny_lora
from tests.ops.stacked import Yard, clinic

LEGAL = "registry/acme/legal/1.0.0"
WEIGHTS = f"{LEGAL}/adapter_model.safetensors"


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the same bundle as `out` and as `out.tar`."""
    root = tmp_path_factory.mktemp("bundles")
    settings = Settings(home=root / "home", offline=True)
    yard = Yard(root=root, settings=settings, base=tiny_llama(root / "tiny-llama"))
    yard.yaml()
    clinic(yard)
    for name in ("out", "out.tar"):
        export(plan_export(root / name, environment=yard.environment))
    return root


class Machine:
    """A machine without anything: its own home, a folder to stand in."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.settings = Settings(home=root / "new-home", offline=True)
        self.store = Store(self.settings.store)

    def plan(self, source: Path, into: Path | None = None) -> ImportPlan:
        return plan_import(source, environment=find_environment(self.root, self.settings), into=into)

    def take(self, source: Path, into: Path | None = None) -> ImportPlan:
        plan = self.plan(source, into)
        import_bundle(plan)
        return plan

    @property
    def refs(self) -> list[str]:
        return [str(package.ref) for package in self.store.packages()]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


ALL = ["acme/clinic-es@1.0.0", "acme/legal@1.0.0", "acme/spanish@1.0.0"]


@pytest.mark.parametrize("name", ["out", "out.tar"])
def test_every_package_is_in_the_store(bundles: Path, machine: Machine, name: str) -> None:
    plan = machine.take(bundles / name)
    assert machine.refs == ALL
    assert plan.folder is None and plan.files == ()
    for item in plan.packages:
        assert machine.store.find(item.stored.ref, item.stored.identity) == item.stored
    again = machine.plan(bundles / name)
    assert not again.changes and all(item.known for item in again.packages)
    assert list(machine.root.iterdir()) == [machine.settings.home]


def test_into_a_folder_of_its_own(bundles: Path, machine: Machine) -> None:
    target = machine.root / "project"
    plan = machine.take(bundles / "out.tar", target)
    assert [path.name for path, _ in plan.files] == ["adapters.yaml", "adapters.lock"]
    assert plan.matches
    for name in ("adapters.yaml", "adapters.lock"):
        assert (target / name).read_bytes() == (bundles / "out" / name).read_bytes()
    assert machine.take(bundles / "out.tar", target).files == ()
    (target / "adapters.lock").unlink()  # the lock alone comes back beside the same adapters.yaml
    assert [path.name for path, _ in machine.take(bundles / "out", target).files] == ["adapters.lock"]


@pytest.mark.parametrize("name", ["adapters.yaml", "adapters.lock"])
def test_a_user_s_files_stay(bundles: Path, machine: Machine, name: str) -> None:
    target = machine.root / "project"
    target.mkdir()
    mine = 'project_version: "1.0"\n' if name == "adapters.yaml" else '{"lock_version": "1.1", "entries": []}'
    (target / name).write_text(mine)
    plan = machine.take(bundles / "out.tar", target)
    assert machine.refs == ALL
    assert [item.name for item in target.iterdir()] == [name]
    assert (target / name).read_text() == mine
    assert not plan.matches and "stay" in plan.warnings[0]


def test_then_sync_needs_no_network(
    bundles: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ADAPTERHUB_HOME", str(machine.settings.home))
    monkeypatch.chdir(machine.root)
    assert main(["import", str(bundles / "out.tar"), "--into", "project"]) == 0
    assert "adapt sync --offline --frozen" in capsys.readouterr().err
    monkeypatch.chdir(machine.root / "project")
    lock = (Path("adapters.lock")).read_bytes()
    assert main(["sync", "--offline", "--frozen"]) == 0, capsys.readouterr().err
    for folder in (".adapters/legal", ".adapters/.members/acme/spanish"):
        assert (Path(folder) / "adapter_model.safetensors").is_file()
    assert Path("adapters.lock").read_bytes() == lock


def test_a_plain_adapter_travels_as_a_plain_folder(tmp_path: Path, settings: Settings, machine: Machine) -> None:
    folder = tiny_lora(tmp_path / "plain", tiny_llama(tmp_path / "base"), manifest=False)
    manifest = open_package(folder).manifest
    bundle = tmp_path / "bundle"
    shutil.copytree(folder, bundle / "registry/acme/plain")
    entry = LockedPackage(
        alias="plain",
        name=PackageName.parse("acme/plain"),
        version=manifest.version,
        registry="hub",
        revision="a" * 40,
        files=manifest.files,
        required_by=("adapters.yaml",),
    )
    (bundle / "adapters.yaml").write_text('project_version: "1.0"\nadapters: {plain: acme/plain}\n')
    write_lockfile(bundle, Lockfile(entries=(entry,)))
    machine.take(bundle, tmp_path / "project")
    assert machine.refs == [f"acme/plain@{manifest.version}"]
    # And out of that store again.
    environment = find_environment(tmp_path / "project", machine.settings)
    out = export(plan_export(tmp_path / "again.tar", environment=environment))
    other = Machine(tmp_path / "other")
    other.take(out)
    assert other.refs == machine.refs
    # A version that is not that of its files is refused.
    write_lockfile(bundle, Lockfile(entries=(replace(entry, files=entry.files[:1]),)))
    with pytest.raises(IntegrityError, match="not that of its files"):
        Machine(tmp_path / "third").plan(bundle)


def entries_of(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar.getmembers()}  # type: ignore[union-attr]


def write_tar(path: Path, files: dict[str, bytes], *more: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        for member, data in more:
            tar.addfile(member, io.BytesIO(data))
    return path


def member(
    name: str, kind: bytes = tarfile.REGTYPE, *, data: bytes = b"", link: str = ""
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, len(data), link
    return info, data


HOSTILE = {
    "climbing": member("../evil", data=b"x"),
    "climbing inside": member("registry/../../evil", data=b"x"),
    "absolute": member("/tmp/evil", data=b"x"),
    "a drive": member("C:/evil", data=b"x"),
    "a backslash": member("a\\..\\evil", data=b"x"),
    "a link": member("registry/link", tarfile.SYMTYPE, link="/etc/passwd"),
    "a link to itself": member(f"{LEGAL}/extra", tarfile.SYMTYPE, link="adapter_config.json"),
    "a hard link": member("registry/hard", tarfile.LNKTYPE, link="adapters.lock"),
    "a device": member("registry/dev", tarfile.CHRTYPE),
    "a block device": member("registry/dev", tarfile.BLKTYPE),
    "a pipe": member("registry/pipe", tarfile.FIFOTYPE),
    "a second one": member("adapters.lock", data=b"{}"),
    "a second one by ./": member("./adapters.lock", data=b"{}"),
    "another case": member("Adapters.LOCK", data=b"{}"),
    "another form": member("registry/e\u0301", data=b""),
    "a name that no platform takes": member("registry/con", data=b"x"),
    "a control character": member("registry/a\x1b[31m", data=b"x"),
    "a climbing folder": member("../evil/", tarfile.DIRTYPE),
}


@pytest.mark.parametrize("kind", sorted(HOSTILE))
def test_a_hostile_member_refuses_the_whole_archive(bundles: Path, machine: Machine, kind: str) -> None:
    more = [HOSTILE[kind]]
    if kind == "another form":
        more.append(member("registry/\u00e9", data=b""))
    path = write_tar(machine.root / "evil.tar", entries_of(bundles / "out.tar"), *more)
    before = sorted(machine.root.rglob("*"))
    with pytest.raises(IntegrityError):
        machine.take(path)
    assert sorted(machine.root.rglob("*")) == before
    assert not (machine.root.parent / "evil").exists() and not Path("/tmp/evil").exists()


def test_what_other_tools_write_of_the_same_folder_is_taken(bundles: Path, machine: Machine) -> None:
    path = machine.root / "theirs.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        tar.add(bundles / "out", arcname=".")  # `tar -C out -cf theirs.tar .`: folders too, and ./ before each name
        tar.addfile(*member_of("./notes.txt", b"read me"))
    machine.take(path)
    assert machine.refs == ALL


def member_of(name: str, data: bytes) -> tuple[tarfile.TarInfo, io.BytesIO]:
    info, _ = member(name, data=data)
    return info, io.BytesIO(data)


Change = Callable[[dict[str, bytes]], object]


def lock_change(change: Callable[[dict[str, object]], object]) -> Change:
    def run(files: dict[str, bytes]) -> None:
        data = json.loads(files["adapters.lock"])
        change(next(entry for entry in data["entries"] if entry["name"] == "acme/legal"))
        files["adapters.lock"] = json.dumps(data).encode()

    return run


def flip(files: dict[str, bytes]) -> None:
    files[WEIGHTS] = files[WEIGHTS][:-1] + bytes([files[WEIGHTS][-1] ^ 1])


WRONG: dict[str, Change] = {
    "flipped weights": flip,
    "short weights": lambda files: files.update({WEIGHTS: files[WEIGHTS][:-1]}),
    "long weights": lambda files: files.update({WEIGHTS: files[WEIGHTS] + b"x"}),
    "no weights": lambda files: files.pop(WEIGHTS),
    "another manifest": lambda files: files.update({f"{LEGAL}/adapter_manifest.json": b"{}"}),
    "no manifest": lambda files: files.pop(f"{LEGAL}/adapter_manifest.json"),
    "another version": lock_change(lambda entry: entry.update(version="1.0.1")),
    "other files": lock_change(lambda entry: entry["files"].pop()),  # type: ignore[attr-defined]
    "other requirements": lock_change(lambda entry: entry.update(requires=["acme/spanish"])),
    "another digest": lock_change(lambda entry: entry.update(manifest="sha256:" + "0" * 64)),
}


@pytest.mark.parametrize("kind", sorted(WRONG))
def test_wrong_bytes_and_nothing_counts(
    bundles: Path, machine: Machine, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = entries_of(bundles / "out.tar")
    WRONG[kind](files)
    path = write_tar(machine.root / "wrong.tar", files)
    monkeypatch.setenv("ADAPTERHUB_HOME", str(machine.settings.home))
    monkeypatch.chdir(machine.root)
    code = main(["import", str(path), "--into", "project"])
    assert code == 3, capsys.readouterr().err
    assert machine.refs == []
    assert not (machine.root / "project").exists()
    assert not list(machine.settings.store.glob("leases/*"))


def test_weights_that_are_none(bundles: Path, machine: Machine) -> None:
    """The lock and the manifest of a hostile bundle agree with each other; what they list is a pickle all the same."""
    out = machine.root / "out"
    shutil.copytree(bundles / "out", out)
    lock = read_lockfile(out)
    entry = next(entry for entry in lock.entries if str(entry.name) == "acme/legal")
    manifest_path = out / LEGAL / "adapter_manifest.json"
    (out / WEIGHTS).write_bytes(b"\x80\x04\x95 a pickle, says its second byte" + b"." * 100)
    files = tuple(sorted(fresh(out / LEGAL, file) for file in entry.files))
    manifest = open_package(bundles / "out" / LEGAL).manifest.with_files(files)
    manifest_path.write_bytes(manifest.canonical_bytes())
    entries = tuple(replace(e, files=files, manifest=manifest.digest) if e is entry else e for e in lock.entries)
    write_lockfile(out, replace(lock, entries=entries))
    with pytest.raises(IntegrityError, match="no weights in safetensors") as caught:
        machine.take(out)
    assert str(out) in str(caught.value.where)
    assert machine.refs == []


def fresh(folder: Path, entry: FileEntry) -> FileEntry:
    digest, size = digest_file(folder / entry.path)
    return FileEntry(path=entry.path, size=size, digest=digest)


def test_a_folder_s_links_are_not_followed(bundles: Path, machine: Machine) -> None:
    out = machine.root / "out"
    shutil.copytree(bundles / "out", out)
    (out / WEIGHTS).unlink()
    (out / WEIGHTS).symlink_to(bundles / "out" / WEIGHTS)
    with pytest.raises(InvalidFileError, match="symbolic link"):
        machine.take(out)
    (out / WEIGHTS).unlink()
    os.mkfifo(out / WEIGHTS)
    with pytest.raises(InvalidFileError, match="regular file"):
        machine.take(out)
    assert machine.refs == []


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("cut", lambda data: data[: len(data) // 2]),
        ("cut in a header", lambda data: data[:700]),
        ("empty", lambda data: b""),
        ("noise", lambda data: os.urandom(4096)),
        ("zeros", lambda data: bytes(10240)),
        ("compressed", gzip.compress),
        ("a size below zero", lambda data: data[:124] + b"\xff" * 12 + data[136:]),
    ],
)
def test_a_malformed_archive(bundles: Path, machine: Machine, kind: str, content: Callable[[bytes], bytes]) -> None:
    path = machine.root / "bad.tar"
    path.write_bytes(content((bundles / "out.tar").read_bytes()))
    with pytest.raises(UnsatisfiedError if kind == "zeros" else IntegrityError):
        machine.take(path)
    assert machine.refs == []


def test_a_header_that_claims_gigabytes_is_not_read(bundles: Path, machine: Machine) -> None:
    path = machine.root / "bomb.tar"
    info = tarfile.TarInfo("adapters.lock")
    info.type, info.size = tarfile.XHDTYPE, 3 << 30
    with path.open("wb") as out:
        out.write(info.tobuf(tarfile.GNU_FORMAT))
        out.truncate(4 << 30)  # sparse: it weighs nothing
    with pytest.raises(IntegrityError, match="too long"):
        machine.take(path)
    info = tarfile.TarInfo("adapters.lock")
    info.size = 3 << 30
    with path.open("wb") as out:
        out.write(info.tobuf(tarfile.GNU_FORMAT))
        out.truncate(4 << 30)
    with pytest.raises(IntegrityError, match="may hold"):
        machine.take(path)


def test_headers_without_end(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """tarfile goes a call deeper for each long name, and reads a sparse map as long as the file goes on."""
    long_name = tarfile.TarInfo("././@LongLink")
    long_name.type, long_name.size = tarfile.GNUTYPE_LONGNAME, 4
    path = machine.root / "deep.tar"
    chain = (long_name.tobuf(tarfile.GNU_FORMAT) + b"name" + bytes(508)) * 5000
    one = tarfile.TarInfo("one").tobuf(tarfile.GNU_FORMAT)
    for data in (chain, one + chain):
        path.write_bytes(data)
        with pytest.raises(IntegrityError, match="recursion"):
            machine.take(path)
    records = "".join(
        f"{len(text) + 4} {text}\n" for text in ("GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.name=x")
    )
    pax = tarfile.TarInfo("x")
    pax.type, pax.size = tarfile.XHDTYPE, len(records)
    info = tarfile.TarInfo("x")
    info.size = 8 << 30
    monkeypatch.setattr(_bundle, "_MAX_HEADERS", 100_000)
    with path.open("wb") as out:
        out.write(pax.tobuf(tarfile.GNU_FORMAT) + records.encode().ljust(512, b"\0"))
        out.write(info.tobuf(tarfile.GNU_FORMAT) + b"9999999999\n" + b"1\n" * (1 << 20))
    with pytest.raises(IntegrityError, match="headers are too long"):
        machine.take(path)


def test_more_members_than_any_bundle_has(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_bundle, "MAX_MEMBERS", 10)
    path = write_tar(machine.root / "many.tar", {f"registry/{number}": b"" for number in range(11)})
    with pytest.raises(IntegrityError, match="more than 10"):
        machine.take(path)


def test_a_sparse_member_is_refused(bundles: Path, machine: Machine) -> None:
    files = entries_of(bundles / "out.tar")
    info, data = member("registry/sparse", data=b"x")
    info.pax_headers = {
        "GNU.sparse.major": "0",
        "GNU.sparse.minor": "1",
        "GNU.sparse.map": "0,1",
        "GNU.sparse.size": "1",
    }
    path = write_tar(machine.root / "sparse.tar", files, (info, data))
    with pytest.raises(IntegrityError, match="no plain file"):
        machine.take(path)


def test_what_is_no_bundle(machine: Machine) -> None:
    (machine.root / "folder").mkdir()
    for name in ("none.tar", "folder"):
        with pytest.raises(UnsatisfiedError):
            machine.take(machine.root / name)
    write_lockfile(machine.root / "folder", Lockfile())
    with pytest.raises(UnsatisfiedError, match="holds no packages"):
        machine.take(machine.root / "folder")


def test_the_command(
    bundles: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ADAPTERHUB_HOME", str(machine.settings.home))
    monkeypatch.chdir(machine.root)
    assert main(["import", str(bundles / "out.tar"), "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert out.count("store ") == 3 and "nothing was done" in err
    assert machine.refs == []
    assert main(["import", str(bundles / "out"), "--json"]) == 0
    assert [row["known"] for row in json.loads(capsys.readouterr().out)["packages"]] == [False] * 3
    # In a project that is there already: its own adapters.yaml stays.
    (machine.root / "adapters.yaml").write_text('project_version: "1.0"\n')
    assert main(["import", str(bundles / "out")]) == 0
    err = capsys.readouterr().err
    assert "0 of 3 packages were new" in err and "of its own" in err
    assert not (machine.root / "adapters.lock").exists()

"""Several processes on one store, killed with SIGKILL at random moments: `python -m tests.stress ROOT [--kills N]`.

One warm process prepares a registry, three projects and packages to publish, imports what `adapt` needs, then forks:
every actor is a child that calls `adapterhub.cli.main.main([...])` as the console script does. In every round two to
four of them run at once, one is killed while it works, and then

- every other one has to end well,
- `adapt verify` in the victim's folder is clean, or what it misses is there after one `adapt sync`,
- the victim's own command line, run again, has to end well,
- `adapt sync --frozen` brings back everything that the projects' lockfiles name, byte for byte,
- what was published is what it was, and no blob that counts as verified is anything else than its name says.

The seed that is printed repeats the choices; the moments are the machine's.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random, SystemRandom
from typing import Any
from urllib.request import ProxyHandler, Request, build_opener

PROJECTS = ("alpha", "beta", "gamma")
PACKAGES, VERSIONS = 4, ("1.0.0", "1.1.0")
VERBS = ("install", "sync", "publish", "gc", "publish-hub")
PATIENCE = 90.0
_COMMANDS = ("install", "sync", "publish", "gc", "verify")


class Broken(Exception):
    """A promise was not kept; the message says which, with what the command printed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One command line and the folder it runs in."""

    verb: str
    folder: Path
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"adapt {' '.join(self.words)} (in {self.folder.name})"


@dataclass(slots=True, kw_only=True)
class Actor:
    """A forked child at work."""

    call: Call
    pid: int
    log: Path
    begin: float
    code: int | None = None

    def poll(self) -> bool:
        """Say whether it has ended; `code` is its exit code then, or the negative number of its signal."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code is not None

    def wait(self) -> int:
        """Wait until it ends.

        Raises:
            Broken: it hangs.
        """
        end = time.monotonic() + PATIENCE
        while not self.poll():
            if time.monotonic() > end:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                raise Broken(f"{self.call} hangs\n{self.log.read_text('utf-8', 'replace')}")
            time.sleep(0.002)
        assert self.code is not None
        return self.code


@dataclass(slots=True, kw_only=True)
class Stress:
    """The shop: everything lies below `root`. hub: the endpoint and token of a Hub, if one takes part."""

    root: Path
    random: Random
    verbs: tuple[str, ...]
    hub: tuple[str, str] | None = None
    killed: Counter[str] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)
    took: dict[str, list[float]] = field(default_factory=dict)
    published: dict[str, dict[str, str]] = field(default_factory=dict)
    on_hub: dict[str, dict[str, str]] = field(default_factory=dict)
    repaired: int = 0
    actors: int = 0

    @property
    def home(self) -> Path:
        return self.root / "home"

    @property
    def registry(self) -> Path:
        return self.root / "registry"

    def prepare(self, *, to_publish: int) -> None:
        """Make the base model, the registry, the projects and the packages that will be published."""
        from tests.factory import tiny_llama, tiny_lora

        base = tiny_llama(self.root / "base")
        for number in range(PACKAGES):
            for seed, version in enumerate(VERSIONS):
                folder = self.root / "made" / f"p{number}-{version}"
                tiny_lora(folder, base, r=512, version=version, seed=10 * number + seed, name=f"p{number}")
                self._publish_quietly(folder, f"acme/p{number}")
        for number in range(to_publish):
            tiny_lora(self.root / "made" / f"n{number}", base, r=64, seed=1000 + number, name=f"n{number}")
        for name in PROJECTS:
            (self.root / name).mkdir()
            (self.root / name / "adapters.yaml").write_text(
                'project_version: "1.0"\nregistries: {"acme/*": ../registry, "shop/*": hub}\n'
            )

    def _publish_quietly(self, folder: Path, name: str) -> None:
        from adapterhub.package import open_package
        from adapterhub.progress import SILENT
        from adapterhub.registry.directory import DirectoryRegistry
        from adapterhub.spec.refs import PackageName

        registry = DirectoryRegistry(self.registry, location=str(self.registry))
        registry.publish(open_package(folder), PackageName.parse(name), progress=SILENT)

    def call(self) -> Call:
        """Return what somebody does next."""
        verb = self.random.choice(self.verbs)
        folder = self.root / self.random.choice(PROJECTS)
        made = sorted(path.name for path in (self.root / "made").glob("n*"))
        match verb:
            case "install":
                package = f"acme/p{self.random.randrange(PACKAGES)}@{self.random.choice(VERSIONS)}"
                if self.on_hub and self.random.random() < 0.5:
                    package = self.random.choice(sorted(self.on_hub))
                words: tuple[str, ...] = ("install", package)
            case "publish" | "publish-hub":
                name = self.random.choice(made)
                words = ("publish", f"../made/{name}", "--to", f"{'acme' if verb == 'publish' else 'shop'}/{name}")
            case "gc":
                words = ("gc", "--grace", "0")
            case _:
                words = (verb,)
        return Call(verb=verb, folder=folder, words=words)

    def start(self, call: Call) -> Actor:
        """Fork a child that runs a command line."""
        self.actors += 1
        log = self.root / "logs" / f"{self.actors:05}-{call.verb}.txt"
        begin = time.monotonic()
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            code = 70
            try:
                code = _adapt(call, log)
            finally:
                os._exit(code)
        return Actor(call=call, pid=pid, log=log, begin=begin)

    def run(self, call: Call, *, accept: tuple[int, ...] = (0,)) -> Actor:
        """Run a command line to its end.

        Raises:
            Broken: it ends with another exit code.
        """
        actor = self.start(call)
        code = actor.wait()
        self.took.setdefault(call.verb, []).append(time.monotonic() - actor.begin)
        if code not in accept:
            raise Broken(f"{call} ended with {code}\n{actor.log.read_text('utf-8', 'replace')}")
        return actor

    def round(self) -> Call | None:
        """Let several work at once and kill one of them; return its command, or None if it was faster."""
        actors = [self.start(self.call()) for _ in range(self.random.randrange(2, 5))]
        victim = self.random.choice(actors)
        usual = statistics.median(self.took.get(victim.call.verb, [0.15]))
        time.sleep(self.random.uniform(0, 1.1 * usual * len(actors) ** 0.5))
        if not victim.poll():
            os.kill(victim.pid, signal.SIGKILL)
        for actor in actors:
            code = actor.wait()
            if code != 0 and not (actor is victim and code == -signal.SIGKILL):
                others = ", ".join(str(other.call) for other in actors if other is not actor)
                text = actor.log.read_text("utf-8", "replace")
                raise Broken(f"{actor.call} ended with {code} beside {others}\n{text}")
        (self.killed if victim.code == -signal.SIGKILL else self.ended)[victim.call.verb] += 1
        return victim.call if victim.code == -signal.SIGKILL else None

    def check(self, victim: Call) -> None:
        """Hold every promise about the folder of a command that was killed."""
        self.verify(victim.folder)
        self.run(victim)
        self.check_project(victim.folder)
        self.check_registry()
        if victim.verb == "publish-hub":
            self.check_hub(victim.words[-1])

    def verify(self, folder: Path) -> None:
        """`adapt verify` is clean, or is clean once `adapt sync` has fetched what it names."""
        if not _exists("verify") or not (folder / "adapters.lock").is_file():
            return
        verify = Call(verb="verify", folder=folder, words=("verify",))
        found = self.run(verify, accept=(0, 1, 3))
        if found.code == 0:
            return
        said = found.log.read_text("utf-8", "replace")
        locked = [entry["name"] for entry in json.loads((folder / "adapters.lock").read_text())["entries"]]
        if not any(name in said for name in locked) and ".adapters" not in said:
            raise Broken(f"verify found something and did not say what to fetch:\n{said}")
        self.repaired += 1
        self.run(Call(verb="sync", folder=folder, words=("sync", "--frozen")))
        self.run(verify)

    def check_project(self, folder: Path) -> None:
        """Everything that the lockfile names can be installed, and is then what was published."""
        if not (folder / "adapters.lock").is_file():
            return
        self.run(Call(verb="sync", folder=folder, words=("sync", "--frozen")))
        for entry in json.loads((folder / "adapters.lock").read_text())["entries"]:
            org, name = entry["name"].split("/")
            source = self.root / "made" / name if org == "shop" else self.registry / entry["name"] / entry["version"]
            for item in entry["files"]:
                here = folder / ".adapters" / entry["alias"] / item["path"]
                if _sha256(here) != item["sha256"] or _sha256(source / item["path"]) != item["sha256"]:
                    raise Broken(f"{here} is not what was published")

    def check_registry(self) -> None:
        """A version that was seen once is there, with the same bytes; one that is half there is never seen."""
        for version in sorted(self.registry.glob("*/*/[0-9]*")):
            if not version.is_dir():
                continue
            now = {path.name: _sha256(path) for path in version.iterdir()}
            if self.published.setdefault(str(version), now) != now or len(now) < 3:
                raise Broken(f"{version} is not what it was")
        if gone := [name for name in self.published if not Path(name).is_dir()]:
            raise Broken(f"{gone[0]} is gone")

    def check_hub(self, name: str) -> None:
        """What was published to the Hub is there under its tag, with the bytes that were packed, and stays so."""
        entries = self._ask_hub(f"{name}/tree/v1.0.0?recursive=true")
        now = {entry["path"]: entry["lfs"]["oid"] if "lfs" in entry else entry["oid"] for entry in entries}
        if self.on_hub.setdefault(name, now) != now:
            raise Broken(f"{name} on the Hub is not what it was")
        packed = _sha256(self.root / "made" / name.partition("/")[2] / "adapter_model.safetensors")
        if now.get("adapter_model.safetensors") != packed:
            raise Broken(f"{name} on the Hub is not what was packed")
        tags = [tag["name"] for tag in self._ask_hub(f"{name}/refs")["tags"]]
        if tags != ["v1.0.0"]:
            raise Broken(f"{name} has the tags {tags}")

    def _ask_hub(self, path: str) -> Any:
        assert self.hub is not None
        endpoint, token = self.hub
        request = Request(f"{endpoint}/api/models/{path}", headers={"Authorization": f"Bearer {token}"})
        with build_opener(ProxyHandler({})).open(request, timeout=PATIENCE) as answer:
            return json.load(answer)

    def check_store(self) -> None:
        """No file that counts as verified holds anything else than its name says."""
        from adapterhub.store.content import VERIFIED_TIME

        for blob in (self.home / "store" / "v1" / "blobs").glob("sha256/*/*"):
            with suppress(FileNotFoundError):
                if blob.stat().st_mtime_ns == VERIFIED_TIME and _sha256(blob) != blob.name:
                    raise Broken(f"{blob} counts as verified and is damaged")

    def check_all(self) -> None:
        """Hold every promise about everything."""
        for name in PROJECTS:
            self.verify(self.root / name)
            self.check_project(self.root / name)
        self.check_registry()
        self.check_store()
        for name in list(self.on_hub):
            self.check_hub(name)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _exists(command: str) -> bool:
    return importlib.util.find_spec(f"adapterhub.cli.{command}") is not None


def _adapt(call: Call, log: Path) -> int:
    """Be `adapt`: in a folder, with all output in a file."""
    from adapterhub.cli.main import main

    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(call.folder)
    code = main(call.words)
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def in_child(work: Callable[[], None]) -> None:
    """Do something in a forked child, so that its threads and imports stay there.

    Raises:
        Broken: it failed.
    """
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(code)
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0:
        raise Broken("the preparation failed")


def start_hub() -> tuple[int, tuple[str, str]]:
    """Run a Hub on loopback in a process of its own; return its process id, and its endpoint and a token."""
    read, write = os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        from tests.hub.server import running_hub

        os.close(read)
        with running_hub() as hub:
            os.write(write, f"{hub.endpoint} {hub.add_user('keeper', organizations=('shop',)).token}\n".encode())
            os.close(write)
            while os.getppid() == parent:
                time.sleep(0.2)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as stream:
        endpoint, token = stream.readline().split()
    return pid, (endpoint, token)


def stress(root: Path, *, kills: int, seed: int, verbs: tuple[str, ...], tell: Callable[[str], None]) -> Stress:
    """Kill until `kills` commands were killed at work, and check after each.

    Raises:
        Broken: a promise was not kept.
    """
    hub_pid, hub = start_hub() if "publish-hub" in verbs else (None, None)
    root.mkdir(parents=True, exist_ok=True)
    (root / "logs").mkdir()
    _set_environment(root, hub)
    shop = Stress(root=root, random=Random(seed), verbs=verbs, hub=hub)
    try:
        in_child(lambda: shop.prepare(to_publish=max(8, kills // 4)))
        _warm_up()
        for name in PROJECTS:
            shop.run(Call(verb="install", folder=root / name, words=("install", "acme/p0")))
        shop.check_all()
        while (done := shop.killed.total()) < kills:
            victim = shop.round()
            if victim is not None:
                shop.check(victim)
                if (done + 1) % 20 == 0:
                    tell(f"{done + 1} killed: {dict(shop.killed)}")
        shop.check_all()
    finally:
        if hub_pid is not None:
            os.kill(hub_pid, signal.SIGKILL)
            os.waitpid(hub_pid, 0)
    return shop


def _set_environment(root: Path, hub: tuple[str, str] | None) -> None:
    for name in [name for name in os.environ if name.startswith(("HF_", "ADAPTERHUB_")) or "proxy" in name.lower()]:
        del os.environ[name]
    os.environ |= {
        "ADAPTERHUB_HOME": str(root / "home"),
        "HF_HOME": str(root / "hf-home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "NO_PROXY": "127.0.0.1,localhost",
        # A forked child must find no thread that it lacks.
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }
    os.environ |= {"HF_HUB_OFFLINE": "1"} if hub is None else {"HF_ENDPOINT": hub[0], "HF_TOKEN": hub[1]}


def _warm_up() -> None:
    """Import what the commands import, so that a child spends its time at work."""
    for name in _COMMANDS:
        if _exists(name):
            importlib.import_module(f"adapterhub.cli.{name}")
    for name in ("numpy", "adapterhub.ops.install", "adapterhub.ops.sync", "adapterhub.ops.publish", "ruamel.yaml"):
        importlib.import_module(name)
    for name in ("gc", "verify"):
        with suppress(ModuleNotFoundError):
            importlib.import_module(f"adapterhub.ops.{name}")
    if "HF_ENDPOINT" in os.environ:
        importlib.import_module("adapterhub.registry.hub")
        importlib.import_module("huggingface_hub.hf_api")


def main() -> int:
    """Run, tell what was done, and end with 1 when a promise was not kept."""
    parser = argparse.ArgumentParser(prog="python -m tests.stress", description=__doc__)
    parser.add_argument("root", type=Path, help="a folder that is not there yet; it is kept")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=SystemRandom().randrange(2**32))
    parser.add_argument("--verbs", default="install,sync,publish,gc", help=f"of {', '.join(VERBS)}")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    begin = time.monotonic()
    try:
        shop = stress(
            options.root.absolute(),
            kills=options.kills,
            seed=options.seed,
            verbs=tuple(options.verbs.split(",")),
            tell=lambda text: print(text, flush=True),
        )
    except Broken as error:
        print(f"BROKEN: {error}", flush=True)
        return 1
    data = {
        "seed": options.seed,
        "seconds": round(time.monotonic() - begin, 1),
        "killed": dict(shop.killed),
        "faster_than_the_kill": dict(shop.ended),
        "commands": shop.actors,
        "verify_named_something": shop.repaired,
        "median_seconds": {verb: round(statistics.median(times), 3) for verb, times in shop.took.items()},
    }
    print(json.dumps(data), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What the combinations do to two real adapters: the pictures and tables of docs/stacking.md and docs/merging.md.

    make wheels
    python -m tests.benchmarks.stack_losses

The shipped recipes for medical coding and Spanish small talk are built, unless a folder of an earlier run has them, and
the held-out rows of both are joined. Then come the losses of base, members and stacks on the rows of each, and those of
the checkpoints that `adapt merge` writes of the same stacks. Broken off, it goes on where it stood.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapterhub.ops._eval_measure import Model, measure, models_of
from adapterhub.ops._eval_result import STACK
from adapterhub.ops.eval import plan_eval
from adapterhub.ops.load import plan_load
from adapterhub.progress import SilentProgress
from adapterhub.spec.stack import Parameters
from tests.benchmarks.bench import BASE, RECIPES, WHEEL, adapt_command
from tests.benchmarks.harness import note
from tests.benchmarks.stack_pages import Losses, write_pages

ROOT = Path(__file__).parents[2]
MEMBERS = ("medical", "spanish")
UPSTREAM = "HuggingFaceTB/SmolLM2-135M-Instruct"
ROWS, RECIPE, SLICE = "rows.jsonl", RECIPES / "medical" / "recipe.yaml", "domain"


STACKING, MERGING = "stacking", "merging"


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One stack. key: its file's name. label: as the pages have it. pages: which of them have a line of it."""

    key: str
    label: str
    weights: tuple[float, float] = (1, 1)
    combination: str | None = None
    density: float | None = None
    scale: float | None = None
    rank: int | None = None
    pages: tuple[str, ...] = (STACKING,)

    @property
    def stack(self) -> str:
        """As `--stack` takes it, in the folder that holds both adapters."""
        pairs = zip(MEMBERS, self.weights, strict=True)
        return ",".join(f"./{name}={weight:g}" for name, weight in pairs if weight)

    @property
    def parameters(self) -> Parameters:
        """What the combination takes."""
        return Parameters(density=self.density, scale=self.scale, rank=self.rank)

    @property
    def options(self) -> tuple[str, ...]:
        """The same as `adapt merge` takes it."""
        given = {
            "--combination": self.combination,
            "--density": self.density,
            "--lambda": self.scale,
            "--rank": self.rank,
        }
        return tuple(word for name, value in given.items() if value is not None for word in (name, str(value)))


WAYS = (
    Way(key="medical", label="`medical` alone", weights=(1, 0), pages=(MERGING,)),
    Way(key="medical-0.1", label="`medical=0.1`", weights=(0.1, 0), pages=(MERGING,)),
    Way(key="spanish", label="`spanish` alone", weights=(0, 1), pages=(MERGING,)),
    Way(key="sum", label="`sum`", pages=(STACKING, MERGING)),
    Way(key="sum-0.5", label="`sum`, weights 1 and 0.5", weights=(1, 0.5)),
    Way(key="linear", label="`linear`: 0.5 and 0.5", combination="linear"),
    Way(key="svd", label="`svd`, rank 16", combination="svd"),
    Way(key="ties", label="`ties`, density 0.2", combination="ties", pages=(STACKING, MERGING)),
    Way(key="ties-2", label="`ties`, density 0.5, λ 2", combination="ties", density=0.5, scale=2.0),
    Way(key="dare_linear", label="`dare_linear`, density 0.5", combination="dare_linear", pages=(STACKING, MERGING)),
    Way(key="dare_ties", label="`dare_ties`, density 0.5", combination="dare_ties"),
    Way(key="magnitude_prune", label="`magnitude_prune`, density 0.2", combination="magnitude_prune"),
    Way(key="knots", label="`knots`, density 0.2", combination="knots"),
    Way(key="knots-2", label="`knots`, density 0.5, λ 2", combination="knots", density=0.5, scale=2.0),
)


def main() -> None:
    """Measure what is not measured yet, and write both pages' sections and pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / ".results" / "stacks", help="where everything happens")
    parser.add_argument("--wheels", type=Path, default=ROOT / ".cache" / "wheels", help="where the base's wheel is")
    parser.add_argument("--rows", type=int, default=64, help="held-out rows of each adapter, evenly spread")
    options = parser.parse_args()
    study = Study(options.folder.resolve())
    study.prepare(options.wheels.resolve() / WHEEL, options.rows)
    base = study.active(None)
    active = {way.key: study.active(way) for way in WAYS}
    merged = {way.key: study.merged(way) for way in WAYS if MERGING in way.pages}
    losses = {
        way.key: Losses(
            label=way.label,
            active=active[way.key]["losses"],
            left_out=active[way.key]["left_out"],
            merged=merged[way.key]["losses"] if way.key in merged else {},
            kept=merged[way.key]["kept"] if way.key in merged else None,
        )
        for way in WAYS
    }
    write_pages(
        ROOT / "docs",
        base=base["losses"],
        alone={name: losses[name] for name in MEMBERS},
        stacks=[losses[way.key] for way in WAYS if STACKING in way.pages],
        merged=[losses[way.key] for way in WAYS if MERGING in way.pages],
    )


class Study:
    """A folder with the base, both adapters, the rows, and what was measured so far."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        os.environ |= {"ADAPTERHUB_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1"}

    @property
    def measured(self) -> Path:
        """Where measurements are kept, a file each."""
        return self.folder / "measured"

    def prepare(self, wheel: Path, rows: int) -> None:
        """Make the base known, build both adapters, and join their held-out rows, each unless it is there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not any(row["id"] == BASE for row in self.adapt("base", "list")):
            self.adapt("base", "add", BASE, "--from", str(wheel), "--derived-from", UPSTREAM)
        for name in MEMBERS:
            if not (self.folder / name / "adapter_manifest.json").is_file():
                self.adapt("build", str(RECIPES / name / "recipe.yaml"), "--out", name)
        lines = []
        for name in MEMBERS:
            found = (RECIPES / name / "heldout.jsonl").read_text("utf-8").splitlines()
            count = min(rows, len(found))
            chosen = (json.loads(found[index * len(found) // count]) for index in range(count))
            lines += [json.dumps({**row, SLICE: name}, ensure_ascii=False) + "\n" for row in chosen]
        path = self.folder / ROWS
        if not path.is_file() or path.read_text("utf-8") != "".join(lines):
            path.write_text("".join(lines), "utf-8")
            shutil.rmtree(self.measured, ignore_errors=True)
        self.measured.mkdir(exist_ok=True)

    def adapt(self, *arguments: str) -> Any:
        """Run a command with --json in the folder, and return what it says."""
        note(f"$ adapt {shlex.join(arguments)}")
        command = [*adapt_command(), *arguments, "--json"]
        return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=self.folder).stdout)

    def active(self, way: Way | None) -> Mapping[str, Any]:
        """Measure a stack, or the bare base, as `adapt eval` does.

        Returns `losses` by domain, and `left_out`: what the rank of the stack's change leaves out of it.
        """
        kept = self.measured / f"active-{way.key if way else BASE}.json"
        if kept.is_file():
            return dict(json.loads(kept.read_text("utf-8")))
        note(f"{way.label if way else 'bare base'}, active")
        place: dict[str, Any] = {"cwd": self.folder, "device": "cpu", "dtype": "float32"}
        plan = plan_eval(self.folder / ROWS, stack="", base=BASE, recipe=RECIPE, slice_by=SLICE, **place)
        models, cut = models_of(plan.load), _Cut()
        if way is not None:
            load = plan_load(way.stack, combination=way.combination, parameters=way.parameters, **place)
            layers = tuple((layer.package, layer.weight) for layer in load.stack.layers)
            models = (Model(kind=STACK, label=way.label, layers=layers, rule=load.rule),)
        found, *_ = measure(plan.load, plan.rows, models, batch_size=plan.batch_size, where=ROWS, progress=cut)
        losses = {name: found.losses[0].at(rows).mean for name, rows in found.groups if name is not None}
        kept.write_text(json.dumps({"losses": losses, "left_out": cut.share}), "utf-8")
        return dict(json.loads(kept.read_text("utf-8")))

    def merged(self, way: Way) -> Mapping[str, Any]:
        """Merge a stack into a checkpoint of its own, and measure that as any base is; the checkpoint is not kept."""
        kept = self.measured / f"merged-{way.key}.json"
        if kept.is_file():
            return dict(json.loads(kept.read_text("utf-8")))
        name = f"merged-{way.key}"
        shutil.rmtree(self.folder / name, ignore_errors=True)
        if any(row["id"] == name for row in self.adapt("base", "list")):
            self.adapt("base", "remove", name)
        made = self.adapt("merge", "--stack", way.stack, *way.options, "--out", name)
        self.adapt("base", "add", name, "--from", str(self.folder / name))
        read = ("--recipe", str(RECIPE), "--slice", SLICE, "--dtype", "float32", "--device", "cpu")
        found = self.adapt("eval", ROWS, "--stack", "", "--base", name, *read)
        self.adapt("base", "remove", name)
        shutil.rmtree(self.folder / name)
        data = {
            "losses": {group["slice"]: group["models"][0]["loss"] for group in found["groups"] if group["slice"]},
            "kept": made["report"]["kept"],
        }
        kept.write_text(json.dumps(data), "utf-8")
        return data


class _Cut(SilentProgress):
    """Listens to what a rule says of its rank. share: of the change, what is left out."""

    share = 0.0

    def note(self, text: str) -> None:
        note(f"  {text}")
        if told := re.search(r"leaves out ([0-9.]+)%", text):
            self.share = float(told[1]) / 100


if __name__ == "__main__":
    main()

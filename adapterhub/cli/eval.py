"""`adapt eval`: measure base, adapters and stack on held-out rows, or gate a new version."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from adapterhub.cli import completing, console, options
from adapterhub.cli.automatic_base import plan_with_base, with_base, yes_option
from adapterhub.cli.progress import open_progress
from adapterhub.errors import ExitCode
from adapterhub.ops import eval as evaluation
from adapterhub.ops._eval_result import LOSS, REGRESSED, TOO_FEW, Change, GateResult, Group, Score, Verdict
from adapterhub.ops._measures import measure_title, shown_measure
from adapterhub.settings import read_settings

_ALL = "all"
_TEXT = "CAUSAL_LM"
_SHOWN = 10


@click.command(
    "eval",
    epilog="Examples:  adapt eval held-out.jsonl --stack medical,spanish --slice language    "
    "adapt eval held-out.jsonl --gate ./dist/medical-1.1.0",
)
@click.argument("rows", type=options.FILE)
@options.stack_option
@options.base_option
@options.combination_options()
@click.option("--recipe", type=options.FILE, help="Read the rows as this recipe reads its own.")
@click.option("--slice", "slice_by", metavar="COLUMN", help="Measure each value of this column on its own as well.")
@click.option("--limit", type=int, metavar="N", help="Measure on N rows, evenly spread over all.")
@click.option(
    "--batch-size", type=int, metavar="N", help="Rows computed at once. Default: as the recipe says, else 16."
)
@click.option(
    "--gate",
    metavar="ALIAS|PACKAGE",
    shell_complete=completing.adapters,
    help="Compare a candidate with the locked version: the newest that adapters.yaml allows of ALIAS, "
    "org/name@VERSION, or the package in a folder (./path).",
)
@click.option("--against", metavar="ALIAS", help="What the package in a folder is to replace. Default: by its name.")
@click.option(
    "--max-regression",
    type=float,
    default=evaluation.MAX_REGRESSION,
    show_default=True,
    metavar="SHARE",
    help="How much worse a candidate may be, as a share of the locked version's loss, or of its measure.",
)
@click.option("--device-map", "--device", "device", metavar="DEVICE", help="auto (default), cpu, cuda, cuda:0 or mps.")
@click.option("--dtype", metavar="DTYPE", help="auto (default, by the hardware), float32, bfloat16 or float16.")
@options.quantization_options
@yes_option
@options.dry_run_option
@options.json_option
def command(
    rows: Path,
    stack: str | None,
    base: str | None,
    combination: str | None,
    density: float | None,
    rank: int | None,
    combination_seed: int | None,
    scale: float | None,
    normalize: bool | None,
    recipe: Path | None,
    slice_by: str | None,
    limit: int | None,
    batch_size: int | None,
    gate: str | None,
    against: str | None,
    max_regression: float,
    device: str | None,
    dtype: str | None,
    load_in_4bit: bool,
    load_in_8bit: bool,
    bnb_4bit_quant_type: str | None,
    bnb_4bit_use_double_quant: bool,
    yes: bool,
    dry_run: bool,
    as_json: bool,
) -> ExitCode | None:
    """Measure base, adapters and stack on held-out rows.

    ROWS is a file of rows (JSONL, JSON, CSV, TSV, Parquet, text), or a recipe (.yaml), whose held-out rows are taken.
    The table has the loss and perplexity of a labelled token with the bare base, each adapter alone and the stack; what
    each gains over the base; and what the stack costs each of its members: with 95 % intervals of the paired
    differences. Adapters for other tasks than text are measured by accuracy, F1, exact match, ROUGE-L and the like.

    With --gate, a candidate is compared with the locked version. It fails, with exit code 1, where over all rows or in
    a slice it is worse by more than --max-regression and the interval of the difference does not hold zero.
    """
    parameters = options.combination_parameters(density, rank, combination_seed, scale, normalize)
    quantization = options.quantization_of(load_in_4bit, load_in_8bit, bnb_4bit_quant_type, bnb_4bit_use_double_quant)
    settings = read_settings()

    def planned() -> evaluation.EvalPlan:
        return evaluation.plan_eval(
            rows,
            stack=stack,
            base=base,
            combination=combination,
            parameters=parameters,
            recipe=recipe,
            slice_by=slice_by,
            limit=limit,
            batch_size=batch_size,
            gate=gate,
            against=against,
            max_regression=max_regression,
            device=device,
            dtype=dtype,
            quantization=quantization,
            settings=settings,
        )

    if dry_run:
        console.print_plan(plan_with_base(planned, verb="eval", settings=settings), as_json=as_json)
        return None
    plan = with_base(planned, settings=settings, yes=yes)
    if plan.load.chosen is not None:
        console.say(f"using {plan.load.chosen}")
    for warning in plan.warnings:
        console.warn(warning)
    with open_progress() as progress:
        found = evaluation.evaluate(plan, progress=progress)
    for warning in found.warnings:
        console.warn(warning)
    if as_json:
        console.print_json(found.to_data())
    elif found.gate is None:
        show = _print_groups if plan.load.task == _TEXT else _print_measures
        show(found.groups, sliced=plan.slice_by is not None)
    else:
        _print_gate(found.gate, sliced=plan.slice_by is not None)
    return found.exit_code


def _print_groups(groups: Sequence[Group], *, sliced: bool) -> None:
    stacked = any(score.stack_against is not None for score in groups[0].scores)
    headers = (
        *(("slice",) if sliced else ()),
        "rows",
        "model",
        "loss",
        "perplexity",
        "against the base",
        *(("the stack against it",) if stacked else ()),
    )
    rows = []
    for group in groups:
        for score in group.scores:
            rows.append(
                (
                    *((group.slice or _ALL,) if sliced else ()),
                    f"{group.rows:,}",
                    score.label if score.kind != "base" else f"{score.label} (base)",
                    _shown(LOSS, score.loss),
                    _perplexity(score),
                    _change(score.against_base),
                    *((_change(score.stack_against),) if stacked else ()),
                )
            )
    console.print_table(headers, rows)


def _print_measures(groups: Sequence[Group], *, sliced: bool) -> None:
    """Print a task's measures: the first with its interval and what it changes, then the others, then the loss."""
    scores = [score for group in groups for score in group.scores]
    names = tuple(dict.fromkeys(name for score in scores for name in score.measures))
    # Of rows with scores the loss is what is looked at first.
    first = groups[0].measure
    others = tuple(name for name in names if name != first)
    stacked = any(score.stack_against is not None for score in scores)
    compared = any(score.against_base is not None for score in scores)
    headers = (
        *(("slice",) if sliced else ()),
        "rows",
        "model",
        measure_title(first),
        *map(measure_title, others),
        *(() if first == LOSS else ("loss",)),
        *(("against the base",) if compared else ()),
        *(("the stack against it",) if stacked else ()),
    )
    rows = []
    for group in groups:
        for score in group.scores:
            value = score.loss if first == LOSS else score.measures.get(first)
            rows.append(
                (
                    *((group.slice or _ALL,) if sliced else ()),
                    f"{group.rows:,}",
                    score.label if score.kind != "base" else f"{score.label} (base)",
                    _with_interval(first, value, score.low, score.high),
                    *(_shown(name, score.measures.get(name)) for name in others),
                    *(() if first == LOSS else (_shown(LOSS, score.loss),)),
                    *((_change(score.against_base),) if compared else ()),
                    *((_change(score.stack_against),) if stacked else ()),
                )
            )
    console.print_table(headers, rows)


def _shown(name: str, value: float | None) -> str:
    return "" if value is None else shown_measure(name, value)


def _with_interval(name: str, value: float | None, low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return _shown(name, value)
    return f"{_shown(name, value)} ({_shown(name, low)} to {_shown(name, high)})"


def _print_gate(gate: GateResult, *, sliced: bool) -> None:
    if gate.missing is not None:
        console.say(f"{gate.missing}: nothing to compare")
        return
    title = measure_title(gate.measure)
    console.print_facts([("locked", gate.locked), ("candidate", gate.candidate or "")])
    console.print_lines([""])
    headers = (*(("slice",) if sliced else ()), "rows", f"{title}, locked", "candidate", "change", "verdict")
    console.print_table(headers, [_verdict(item, sliced=sliced) for item in gate.verdicts])
    if gate.rows:
        console.print_lines([""])
        is_loss = gate.measure == LOSS
        units = ("tokens",) if is_loss else ()
        last = "added" if is_loss else "lost"
        headers = ("row", *(("slice",) if sliced else ()), *units, f"{title}, locked", "candidate", last)
        console.print_table(
            headers,
            [
                (
                    row.place,
                    *((row.slice or _ALL,) if sliced else ()),
                    *((f"{row.tokens:,}",) if is_loss else ()),
                    shown_measure(row.measure, row.locked),
                    shown_measure(row.measure, row.candidate),
                    f"{row.added:+.2f}" if is_loss else shown_measure(row.measure, row.added),
                )
                for row in gate.rows[:_SHOWN]
            ],
        )
        if len(gate.rows) > _SHOWN:
            console.say(f"… and {len(gate.rows) - _SHOWN} more rows (--json has all)")
    few = [item.slice or _ALL for item in gate.verdicts if item.verdict == TOO_FEW]
    if few:
        console.warn(f"too few different questions to judge: {', '.join(few)}")
    failed = [item.slice or _ALL for item in gate.verdicts if item.verdict == REGRESSED]
    way = "higher" if gate.measure == LOSS else "lower"
    told = f"failed: the {title} is more than {gate.max_regression:.2%} {way}, beyond chance"
    console.say(f"{told}: {', '.join(failed)}" if failed else "no regression found")


def _verdict(item: Verdict, *, sliced: bool) -> tuple[str, ...]:
    return (
        *((item.slice or _ALL,) if sliced else ()),
        f"{item.rows:,}",
        shown_measure(item.measure, item.locked),
        shown_measure(item.measure, item.candidate),
        _change(item.change),
        item.verdict,
    )


def _perplexity(score: Score) -> str:
    return "" if score.perplexity is None else f"{score.perplexity:.4g}"


def _change(change: Change | None) -> str:
    return "" if change is None else f"{change.relative:+.2%} ({change.low:+.2%} to {change.high:+.2%})"

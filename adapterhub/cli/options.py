"""Options that several commands share, each spelled and explained once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from adapterhub.cli import completing
from adapterhub.errors import UsageError

if TYPE_CHECKING:
    from adapterhub.spec.quantization import Quantization
    from adapterhub.spec.stack import Parameters

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)


def json_option(function: Decorated) -> Decorated:
    """Add `--json` as the parameter `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Write the result as JSON to stdout.")(function)


def dry_run_option(function: Decorated) -> Decorated:
    """Add `--dry-run` as the parameter `dry_run`."""
    return click.option("--dry-run", is_flag=True, help="Show what would be done, and do nothing.")(function)


def set_option(help: str) -> Callable[[Decorated], Decorated]:
    """Add `--set` as the parameter `overrides` (a tuple of `field.below=value`)."""
    return click.option("--set", "overrides", metavar="FIELD=VALUE", multiple=True, help=help)


def training_device_option(function: Decorated) -> Decorated:
    """Add `--device` as the parameter `device` (text or None): where to train."""
    return click.option(
        "--device", metavar="DEVICE", help="auto, cpu, cuda, cuda:1 or mps. Default: the best that is here."
    )(function)


def metric_option(function: Decorated) -> Decorated:
    """Add `--metric` as the parameter `metric` (text or None): what trainings are judged by."""
    return click.option(
        "--metric",
        metavar="NAME",
        help="What the best is judged by. Default: the task's own measure, else eval_loss.",
    )(function)


def registry_option(function: Decorated) -> Decorated:
    """Add `--registry` as the parameter `registry` (text or None)."""
    return click.option(
        "--registry",
        metavar="LOCATION",
        help="The registry to use: a folder, or `hub`. Default: the project's registries, else ADAPTERHUB_REGISTRY, "
        "else the Hugging Face Hub.",
    )(function)


def base_option(function: Decorated) -> Decorated:
    """Add `--base` as the parameter `base` (text or None)."""
    return click.option(
        "--base",
        metavar="NAME",
        shell_complete=completing.bases,
        help="The base model, by its name in `adapt base list`. Default: the package's own.",
    )(function)


def stack_option(function: Decorated) -> Decorated:
    """Add `--stack` as the parameter `stack` (text or None)."""
    return click.option(
        "--stack",
        metavar="NAME[=WEIGHT],…",
        shell_complete=completing.stack,
        help='Adapters to use together, each with a weight (1.0 by default), or a stack of the project; "" is none.',
    )(function)


def combination_options(*, seed: str = "--seed") -> Callable[[Decorated], Decorated]:
    """Add how a stack's adapters become one: `combination`, and what `combination_parameters` takes.

    They are `density`, `rank`, `combination_seed`, `scale` and `normalize`; `seed` is how the seed's option is spelled,
    for a command that has another one.
    """

    def decorate(function: Decorated) -> Decorated:
        for option in (
            click.option(
                "--normalize/--no-normalize",
                default=None,
                help="Divide the weights by the sum of their magnitudes. Default: as the stack says, else not.",
            ),
            click.option("--lambda", "scale", type=float, metavar="X", help="λ of ties, dare_ties, knots. Default: 1."),
            click.option(
                seed,
                "combination_seed",
                type=int,
                metavar="N",
                help="What dare_linear and dare_ties drop is drawn from it. Default: 0.",
            ),
            click.option(
                "--rank",
                type=int,
                metavar="K",
                help="The most a module's result may have. Default: of exact ones and knots the members' ranks added "
                "up, else the largest.",
            ),
            click.option(
                "--density",
                type=float,
                metavar="SHARE",
                help="How much of each change ties, dare_linear, dare_ties, magnitude_prune and knots keep, up to 1.",
            ),
            click.option(
                "--combination",
                metavar="NAME",
                shell_complete=completing.combinations,
                help="How the adapters become one (docs/stacking.md): sum, cat, linear, svd, ties, dare_linear, "
                "dare_ties, magnitude_prune or knots. Default: as the stack says, else sum.",
            ),
        ):
            function = option(function)
        return function

    return decorate


def combination_parameters(
    density: float | None, rank: int | None, seed: int | None, scale: float | None, normalize: bool | None
) -> Parameters:
    """Return what the options of `combination_options` say."""
    from adapterhub.spec.stack import Parameters

    return Parameters(density=density, rank=rank, seed=seed, scale=scale, normalize=normalize)


def quantization_options(function: Decorated) -> Decorated:
    """Add what the base is packed as, in BitsAndBytesConfig's words; `quantization_of` takes the parameters."""
    from adapterhub.spec.quantization import QUANT_TYPES

    for option in (
        click.option(
            "--bnb-4bit-use-double-quant", is_flag=True, help="With --load-in-4bit: quantize the scales as well."
        ),
        click.option(
            "--bnb-4bit-quant-type",
            type=click.Choice(QUANT_TYPES),
            help="With --load-in-4bit: the type of the 4 bits. Default: nf4.",
        ),
        click.option("--load-in-8bit", is_flag=True, help="Pack the base's linear weights in 8 bits (LLM.int8)."),
        click.option("--load-in-4bit", is_flag=True, help="Pack the base's linear weights in 4 bits (bitsandbytes)."),
    ):
        function = option(function)
    return function


def quantization_of(
    load_in_4bit: bool, load_in_8bit: bool, quant_type: str | None, double_quant: bool
) -> Quantization | None:
    """Return what the options of `quantization_options` say; None without any.

    Raises:
        UsageError: they exclude each other.
    """
    from adapterhub.spec.quantization import QUANT_TYPES, Quantization

    if load_in_4bit and load_in_8bit:
        raise UsageError("--load-in-4bit and --load-in-8bit exclude each other")
    if not load_in_4bit and (quant_type is not None or double_quant):
        name = "--bnb-4bit-quant-type" if quant_type is not None else "--bnb-4bit-use-double-quant"
        raise UsageError("says how 4 bits are used", where=name, hint="give --load-in-4bit as well")
    if load_in_8bit:
        return Quantization(load_in_8bit=True)
    if not load_in_4bit:
        return None
    return Quantization(
        load_in_4bit=True, bnb_4bit_quant_type=quant_type or QUANT_TYPES[0], bnb_4bit_use_double_quant=double_quant
    )


def choosing_options(function: Decorated) -> Decorated:
    """Add which versions may be chosen: `base`, `allow_base_mismatch`, `prereleases`, `min_age`, `offline`."""
    for option in (
        click.option("--offline", is_flag=True, help="Open no connection; take what is on this disk."),
        click.option(
            "--min-age",
            metavar="AGE",
            help="Choose no version younger than AGE (7d, 12h); what is locked stays.",
        ),
        click.option("--prerelease", "prereleases", is_flag=True, help="Let pre-releases be chosen."),
        click.option(
            "--allow-base-mismatch", is_flag=True, help="Install it even if it was trained on another base model."
        ),
        base_option,
    ):
        function = option(function)
    return function

"""Tasks, combinations and checks: the rows are whole, and looking one up says what to do when it is not there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from adapterhub.catalog.checks import CHECKS
from adapterhub.catalog.combinations import COMBINATIONS, combination_named, rule_of
from adapterhub.catalog.tasks import TASKS, task_named
from adapterhub.errors import ExitCode, UsageError
from adapterhub.spec.report import Report, Severity
from adapterhub.spec.stack import Parameters


def test_tasks_are_looked_up_by_pefts_names():
    assert task_named("CAUSAL_LM").auto_class == "AutoModelForCausalLM"
    with pytest.raises(UsageError) as caught:
        task_named("causal_lm")
    assert caught.value.hint == "did you mean CAUSAL_LM?"
    assert all(task.buildable for task in TASKS.values()) and len(TASKS) == 6


@pytest.mark.engine
def test_tasks_are_pefts_and_transformers():
    import transformers
    from peft import TaskType

    assert set(TASKS) == {item.value for item in TaskType}
    for task in TASKS.values():
        assert hasattr(transformers, task.auto_class)


def test_combinations_are_whole_and_looked_up_by_name():
    for name, row in COMBINATIONS.items():
        assert combination_named(name) is row and row.name == name and row.available
        assert row.title and row.formula and re.match(r"https://(arxiv\.org/abs/\d{4}\.\d{5}|doi\.org/.+)$", row.paper)
        assert row.density is None or 0 < row.density <= 1
        assert not (row.exact and (row.needs_seed or row.density))
    with pytest.raises(UsageError) as caught:
        combination_named("dare-ties")
    assert caught.value.hint == "did you mean dare_ties?"


def test_the_page_on_stacks_tells_of_every_combination():
    text = (Path(__file__).parents[2] / "docs" / "stacking.md").read_text(encoding="utf-8")
    rows = {line.split("`")[1]: line for line in text.splitlines() if re.match(r"\| `\w+` \|.*https://", line)}
    assert list(rows) == list(COMBINATIONS)
    for name, row in COMBINATIONS.items():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", rows[name])[1:-1]]
        takes = [f"`density` {row.density:g}"] if row.density else []
        takes += ["`seed` 0"] if row.needs_seed else []
        takes += ["`lambda` 1"] if row.takes_lambda else []
        assert cells[2] == ", ".join(takes) and cells[3] == ("Σ rᵢ" if row.adds_ranks else "max rᵢ")
        assert row.paper in cells[4]


def test_a_rule_has_every_parameter_and_takes_no_other():
    assert str(rule_of("sum")) == "sum" and rule_of("sum").exact
    assert str(rule_of("ties")) == "ties (density 0.2, lambda 1)"
    given = Parameters(density=0.5, rank=16, seed=3, scale=2, normalize=True)
    rule = rule_of("dare_ties", given)
    assert str(rule) == "dare_ties (density 0.5, lambda 2, seed 3, rank 16, normalized)"
    parameters = {"density": 0.5, "lambda": 2, "seed": 3, "rank": 16, "normalize": True}
    assert rule.to_data() == {"combination": "dare_ties", "parameters": parameters}
    assert rule_of("dare_linear").seed == 0 and rule_of("linear").normalize
    assert not rule_of("sum", Parameters(rank=8)).exact
    with pytest.raises(UsageError) as caught:
        rule_of("sum", given)
    assert [fault.partition(":")[0] for fault in caught.value.details] == ["density", "seed", "lambda"]
    with pytest.raises(UsageError) as caught:
        rule_of("dare_ties", Parameters(density=0.0, rank=0, seed=-1, scale=float("nan")))
    assert len(caught.value.details) == 4


def test_checks_are_whole():
    for code, check in CHECKS.items():
        assert code == check.code and re.fullmatch(r"ADP[0-5][0-9]{2}", code)
        assert check.title and check.why.endswith(".") and check.hint
        assert (check.severity is Severity.ERROR) == (check.exit_code is not ExitCode.OK)


def test_a_check_that_could_not_be_made_is_no_pass_and_no_fault():
    check = CHECKS["ADP301"]
    report = Report(subject="x", findings=(check.not_checked("adapter_model.safetensors", "no base was given"),))
    assert report.ok and report.exit_code is ExitCode.OK
    assert report.passed == ()
    assert "not checked, no base was given" in report.findings[0].message
    fault = check.found("adapter_model.safetensors", "2 keys are left over")
    assert Report(subject="x", findings=(fault,)).exit_code is ExitCode.INCOMPATIBLE

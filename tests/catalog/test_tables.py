"""Tasks, combinations and checks: the rows are whole, and looking one up says what to do when it is not there."""

from __future__ import annotations

import re

import pytest

from adapterhub.catalog.checks import CHECKS
from adapterhub.catalog.combinations import COMBINATIONS, combination_named
from adapterhub.catalog.tasks import TASKS, task_named
from adapterhub.errors import ExitCode, UsageError
from adapterhub.spec.report import Report, Severity


def test_tasks_are_looked_up_by_pefts_names():
    assert task_named("CAUSAL_LM").auto_class == "AutoModelForCausalLM"
    with pytest.raises(UsageError) as caught:
        task_named("causal_lm")
    assert caught.value.hint == "did you mean CAUSAL_LM?"
    assert [task.name for task in TASKS.values() if task.buildable] == ["CAUSAL_LM"]


@pytest.mark.engine
def test_tasks_are_pefts_and_transformers():
    import transformers
    from peft import TaskType

    assert set(TASKS) == {item.value for item in TaskType}
    for task in TASKS.values():
        assert hasattr(transformers, task.auto_class)


def test_only_the_sum_is_available():
    assert combination_named("sum").available
    with pytest.raises(UsageError, match="ties cannot be computed yet"):
        combination_named("ties")
    with pytest.raises(UsageError) as caught:
        combination_named("dare-ties")
    assert caught.value.hint == "did you mean dare_ties?"
    assert [row.name for row in COMBINATIONS.values() if row.available] == ["sum"]


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

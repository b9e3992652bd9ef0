"""What goes wrong with adapters, one row a fault, and the code that finds it; each is committed by a test here."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapterhub.catalog.checks import CHECKS
from adapterhub.spec.report import Severity
from tests.ops import test_validate, test_validate_meta, test_validate_peft
from tests.ops.broken_packages import FAULTS

pytestmark = pytest.mark.engine

ERROR, WARNING = Severity.ERROR, Severity.WARNING

# What happens to adapters: the code, how much it matters, and who commits it: a row of FAULTS, or a test.
TABLE: dict[str, tuple[str, Severity, str]] = {
    "wrong base of the same shapes": ("ADP201", ERROR, "test_another_base_of_the_same_shapes_is_refused"),
    "base named by a local path": ("ADP205", WARNING, "base by path"),
    "base named by a mirror": ("ADP205", WARNING, "base by mirror"),
    "base named by a pre-quantized copy": ("ADP205", WARNING, "base by a quantized copy"),
    "another revision": ("ADP202", WARNING, "test_another_revision_is_a_warning"),
    "instruct for base": ("ADP203", WARNING, "test_a_relative_is_a_warning"),
    "more layers than the base": ("ADP301", ERROR, "test_more_layers_than_the_base"),
    "more keys than the base": ("ADP301", ERROR, "a key too many"),
    "expected keys are missing": ("ADP302", ERROR, "a module missing"),
    "fewer targets than weights": ("ADP303", ERROR, "fewer targets than weights"),
    "a target matches nothing": ("ADP304", WARNING, "a target with a typing error"),
    "shapes": ("ADP305", ERROR, "a shape"),
    "rank is not r": ("ADP306", ERROR, "another r"),
    "rank is not rank_pattern's": ("ADP306", ERROR, "another rank_pattern"),
    "edited lora_alpha": ("ADP005", ERROR, "edited lora_alpha"),
    "vocabulary resized": ("ADP208", ERROR, "a resized embedding"),
    "tokenizer shorter than the embeddings": ("ADP209", WARNING, "a tokenizer that is shorter"),
    "the task's head is absent": ("ADP308", ERROR, "no head"),
    "the head was not saved for want of a task": ("ADP108", WARNING, "no task"),
    "tied embeddings are adapted": ("ADP309", WARNING, "test_lora_on_tied_embeddings_is_a_warning"),
    "unknown peft_type": ("ADP103", ERROR, "an unknown method"),
    "unknown settings": ("ADP104", ERROR, "a setting of a newer peft"),
    "unknown settings of any method": ("ADP104", ERROR, "test_settings_of_a_newer_peft_for_any_method"),
    "another prefix": ("ADP307", ERROR, "a prefix of a vision model"),
    "fused experts": ("ADP403", ERROR, "test_experts_that_the_built_model_fuses"),
    "a name with a dot": ("ADP109", WARNING, "a name with a dot"),
    "a name that is a piece of lora_": ("ADP109", WARNING, "a name inside lora_"),
    "trained on 4 bits": ("ADP111", WARNING, "trained on 4 bits"),
    "another chat template": ("ADP207", WARNING, "test_another_tokenizer_and_template_are_warnings"),
    "another tokenizer": ("ADP206", WARNING, "test_another_tokenizer_and_template_are_warnings"),
    "a pickle alone": ("ADP002", ERROR, "only a bin"),
    "a pickle named safetensors": ("ADP002", ERROR, "a pickle named safetensors"),
    "NaN": ("ADP401", ERROR, "in tests/cli/test_validate.py"),
    "weights that change nothing": ("ADP402", WARNING, "test_every_method"),
    "nothing is met": ("ADP314", ERROR, "without peft's prefix"),
}


@pytest.mark.parametrize("fault", TABLE)
def test_each_fault_has_its_code_and_somebody_who_commits_it(fault):
    code, severity, who = TABLE[fault]
    assert CHECKS[code].severity is severity
    if who in FAULTS:
        assert code in FAULTS[who][1]
    elif who.startswith("test_"):
        assert any(hasattr(module, who) for module in (test_validate, test_validate_meta, test_validate_peft))
    else:
        assert code in (Path(__file__).parents[2] / who.removeprefix("in ")).read_text(encoding="utf-8")

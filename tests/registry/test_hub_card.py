"""The model card: what the Hub reads of its header, and that a person's own words stay."""

from __future__ import annotations

import dataclasses
from types import MappingProxyType
from typing import Any

import pytest

from adapterhub.errors import InvalidFileError
from adapterhub.package import open_package
from adapterhub.registry._hub_card import card_body, is_generated, published_card, with_header
from adapterhub.spec.base_model import BaseModelRef, Derivation
from adapterhub.spec.digest import Digest
from adapterhub.spec.manifest import DataSource, Manifest, Origin
from adapterhub.spec.refs import PackageName
from tests.factory import tiny_llama, tiny_lora
from tests.hub.cards import front_matter

NAME = PackageName.parse("acme/Legal-LoRA")
METRICS = MappingProxyType({"eval_loss": 1.25, "eval_loss_base": 2.0, "eval_rows": 10.0, "train_steps": 4.0})


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    root = tmp_path_factory.mktemp("card")
    return open_package(tiny_lora(root / "legal", tiny_llama(root / "base"), name="legal", version="1.2.0")).manifest


@pytest.fixture
def manifest(tiny: Manifest) -> Manifest:
    return dataclasses.replace(
        tiny,
        base_model=dataclasses.replace(tiny.base_model, id="HuggingFaceTB/SmolLM2-135M"),
        license="Apache-2.0",
        languages=("no", "es"),
        domains=("legal",),
        keywords=("contracts",),
        metrics=METRICS,
    )


def header(text: str) -> dict[str, Any]:
    """The header as the Hub's own client reads it, which checks the results against its schema."""
    from huggingface_hub import ModelCard

    return dict(ModelCard(text, ignore_metadata_errors=False).data.to_dict())


def card(manifest: Manifest, text: str | None = None, *, plot: bool = False) -> str:
    return published_card(text, manifest, NAME, where="README.md", plot=plot)


def test_the_header_says_what_the_hub_searches_by(manifest: Manifest) -> None:
    found = header(card(manifest))
    results = found.pop("model-index")
    assert found == {
        "base_model": "HuggingFaceTB/SmolLM2-135M",
        "base_model_relation": "adapter",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "license": "apache-2.0",
        "language": ["no", "es"],
        "tags": ["adapterhub", "lora", "legal", "contracts"],
    }
    assert [item["name"] for item in results] == ["legal"]
    (result,) = results[0]["results"]
    assert result["task"] == {"type": "text-generation"}
    assert [(item["type"], item["value"]) for item in result["metrics"]] == [("loss", 1.25), ("loss", 2.0)]


@pytest.mark.parametrize(
    ("task", "pipeline"),
    [
        ("CAUSAL_LM", "text-generation"),
        ("SEQ_CLS", "text-classification"),
        ("TOKEN_CLS", "token-classification"),
        ("SEQ_2_SEQ_LM", "text2text-generation"),
        ("QUESTION_ANS", "question-answering"),
        ("FEATURE_EXTRACTION", "feature-extraction"),
        (None, None),
    ],
)
def test_the_task_decides_the_widget_and_the_class_to_load_with(
    manifest: Manifest, task: str | None, pipeline: str | None
) -> None:
    text = card(dataclasses.replace(manifest, task=task))
    assert header(text).get("pipeline_tag") == pipeline
    assert ("model-index" in header(text)) is (pipeline is not None)
    classes = {
        "SEQ_CLS": "AutoModelForSequenceClassification",
        "CAUSAL_LM": "AutoModelForCausalLM",
        "FEATURE_EXTRACTION": "AutoModel",
        None: "AutoModel",
    }
    if task in classes:
        assert f"model = {classes[task]}.from_pretrained(base)" in text


def test_a_persons_words_and_keys_stay(manifest: Manifest) -> None:
    own = "---\n# kept\nwidget:\n- text: hi  # there\ntags: [mine, lora]\nlicense: mit\nlanguage: de\n---\n"
    text = card(manifest, own + "\n# Ours\n---\nx\n")
    assert text.endswith("---\n\n# Ours\n---\nx\n")
    assert "# kept" in text
    assert "# there" in text
    found = header(text)
    assert found["widget"] == [{"text": "hi"}]
    assert found["tags"] == ["mine", "lora", "adapterhub", "legal", "contracts"]
    assert (found["license"], found["language"]) == ("apache-2.0", ["no", "es"])


def test_what_the_manifest_does_not_say_is_left_to_the_card(manifest: Manifest) -> None:
    bare = dataclasses.replace(
        manifest, license=None, languages=(), task=None, metrics={}, base_model=BaseModelRef(id="my-base")
    )
    own = "---\nbase_model: org/base\nlicense: mit\nlanguage: [de]\npipeline_tag: text-generation\n---\nx\n"
    found = header(card(bare, own))
    assert (found["base_model"], found["license"], found["language"]) == ("org/base", "mit", ["de"])
    assert found["pipeline_tag"] == "text-generation"
    assert header(card(bare))["base_model"] == "my-base"


@pytest.mark.parametrize(
    ("license_", "own", "expected"),
    [
        ("Apache-2.0", None, {"license": "apache-2.0"}),
        ("Our-Own 1.0", None, {"license": "other", "license_name": "our-own 1.0"}),
        ("openmdw-1.0", "openmdw-1.0", {"license": "openmdw-1.0"}),
    ],
)
def test_a_license_that_the_hub_has_no_id_for_is_other(
    manifest: Manifest, license_: str, own: str | None, expected: dict[str, str]
) -> None:
    text = f"---\nlicense: {own}\n---\n" if own else None
    found = header(card(dataclasses.replace(manifest, license=license_), text))
    assert {key: value for key, value in found.items() if key.startswith("license")} == expected


def test_a_converted_base_is_found_by_what_it_was_made_of(manifest: Manifest) -> None:
    made = BaseModelRef(id="smollm2", derived_from=Derivation(id="org/smollm2-gguf", how="dequantized"))
    assert header(card(dataclasses.replace(manifest, base_model=made)))["base_model"] == "org/smollm2-gguf"


def test_results_of_other_models_stay_and_ours_are_replaced(manifest: Manifest) -> None:
    first = card(manifest, None)
    second = card(dataclasses.replace(manifest, metrics={"accuracy": 0.5}), first)
    (entry,) = header(second)["model-index"]
    assert [item["type"] for item in entry["results"][0]["metrics"]] == ["accuracy"]
    renamed = dataclasses.replace(manifest, name="other")
    both = front_matter(card(renamed, first)) or {}  # the client's own reader knows of one model alone
    assert [item["name"] for item in both["model-index"]] == ["legal", "other"]


def test_the_measured_file_is_named(manifest: Manifest) -> None:
    rows = tuple(DataSource(name=name, digest=Digest.of(b"x"), rows=1) for name in ("train.jsonl", "heldout.jsonl"))
    text = card(dataclasses.replace(manifest, built_from=Origin(data=rows)))
    assert header(text)["model-index"][0]["results"][0]["dataset"] == {"name": "heldout.jsonl", "type": "custom"}
    assert "| data | train.jsonl (1 rows), heldout.jsonl (1 rows) |" in text


def test_a_card_of_the_manifest_tells_how_to_use_it(manifest: Manifest) -> None:
    text = card(manifest, plot=True)
    assert is_generated(text)
    assert not is_generated(text + "\nMore.\n")
    for line in (
        "    adapt install acme/Legal-LoRA@1.2.0",
        '    adapt run --stack legal "…"',
        '    model = PeftModel.from_pretrained(model, "acme/Legal-LoRA", revision="v1.2.0")',
        "    tokenizer = AutoTokenizer.from_pretrained(base)",
        "| r | 4 |",
        "| eval_loss | 1.25 |",
        "![Loss over the steps of the training](loss.svg)",
    ):
        assert line in text.splitlines(), line
    labelled = dataclasses.replace(manifest, task="SEQ_CLS", labels=("a", "b", "c"))
    lines = card(labelled).splitlines()
    assert '    labels = ["a", "b", "c"]' in lines
    assert any("from_pretrained(base, num_labels=len(labels), id2label=dict(enumerate(labels)))" in x for x in lines)
    # Decoders tell by it where a text of a batch ends.
    assert "    model.config.pad_token_id = tokenizer.pad_token_id" in lines


def test_the_python_of_the_card_is_python(manifest: Manifest) -> None:
    lines = card(manifest).split("With PEFT alone:")[1].splitlines()
    code = [line[4:] for line in lines if line.startswith("    ")]
    assert len(code) == 6
    compile("\n".join(code), "card", "exec")


def test_a_built_card_gets_its_name_when_it_is_published(manifest: Manifest) -> None:
    built = with_header(card_body(manifest, training={"seed": 3}), manifest, where="README.md")
    assert "adapt install ORG/legal@1.2.0" in built
    text = card(manifest, built)
    assert "ORG" not in text
    assert "THIS_FOLDER" not in text
    assert "adapt install acme/Legal-LoRA@1.2.0" in text
    assert "| seed | 3 |" in text
    assert card(manifest, text) == text


def test_crlf_and_a_header_alone_are_read(manifest: Manifest) -> None:
    assert header(card(manifest, "---\r\nfoo: 1\r\n---\r\n# Body\r\n"))["foo"] == 1
    assert card(manifest, "---\r\nfoo: 1\r\n---\r\n# Body\r\n").endswith("# Body\r\n")
    assert header(card(manifest, "---\nfoo: 1\n---"))["foo"] == 1
    assert card(manifest, "# No header\n").endswith("---\n# No header\n")


@pytest.mark.parametrize("text", ["a: [1\n", "- 1\n", "a: 1\na: 2\n", "a: &x 1\nb: *y\n"])
def test_a_header_that_is_no_mapping_is_refused(manifest: Manifest, text: str) -> None:
    with pytest.raises(InvalidFileError, match="header"):
        card(manifest, f"---\n{text}---\n# Body\n")

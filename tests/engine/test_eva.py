"""EVA: the start that PEFT computes over the same batches, saved as a plain LoRA, found once and gone on from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from adapterhub.catalog.method_targets import with_default_modules
from adapterhub.catalog.methods import check_hyperparameters, method_named
from adapterhub.engine import adapters, eva
from adapterhub.engine.base import LoadedBase, choose_device, load_base
from adapterhub.engine.checkpoints import Checkpoints, shared_identity
from adapterhub.engine.data import pad
from adapterhub.engine.row_kinds import Row
from adapterhub.engine.steps import StepRows
from adapterhub.engine.tasks import task_engine
from adapterhub.engine.train import train
from adapterhub.errors import IncompatibleError
from adapterhub.spec.data import DataSpec
from adapterhub.spec.quantization import Quantization
from adapterhub.spec.training import TrainingSpec
from tests.engine.tasks.tiny_seq_2_seq import tiny_t5
from tests.engine.tiny import Recorder, examples, load, record
from tests.factory import read_tensors, tiny_gpt2, tiny_llama

pytestmark = pytest.mark.engine
SPEC = TrainingSpec(per_device_train_batch_size=4, max_steps=4, learning_rate=1e-2, seed=3, save_steps=2)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama") / "base")


def filled(base: LoadedBase, **given: Any) -> Any:
    row, values = method_named("lora"), {"r": 4, "lora_alpha": 6, "init_lora_weights": "eva", **given}
    return with_default_modules(
        row, check_hyperparameters(row, values, where="test"), base.model.config.model_type, where="test"
    )


def start_rows(base: LoadedBase, count: int = 20, *, task: str = "CAUSAL_LM", **more: Any) -> eva.StartRows:
    told = {"examples": examples(base, count), "spec": SPEC, "task": task_engine(task), "pad_id": 256, **more}
    return eva.StartRows(**told)


def attach(base: LoadedBase, rows: eva.StartRows | None, **given: Any) -> Any:
    return adapters.attach(base, filled(base, **given), task="CAUSAL_LM", seed=SPEC.seed, rows=rows)


def factors(model: Any) -> dict[str, Any]:
    return {name: value for name, value in model.state_dict().items() if ".lora_" in name}


def batches_in_order(rows: Sequence[Any]) -> list[dict[str, Any]]:
    order = StepRows([len(row.input_ids) for row in rows], SPEC)
    return [pad([rows[index] for index in order.of(step)], pad_id=256) for step in range(order.per_epoch)]


@pytest.mark.parametrize(
    ("make", "given"),
    [
        (tiny_llama, {}),
        (tiny_llama, {"eva_config": {"use_label_mask": False, "whiten": True, "adjust_scaling_factors": False}}),
        (tiny_llama, {"eva_config": {"rho": 1.0, "tau": 0.9}, "rank_pattern": {"v_proj": 2}}),
        (tiny_gpt2, {"use_rslora": True}),
    ],
)
def test_ranks_and_directions_are_pefts_over_the_same_batches(tmp_path: Path, make: Any, given: dict[str, Any]) -> None:
    from peft import get_peft_model, initialize_lora_eva_weights

    folder = make(tmp_path / "base")
    base, other = load(folder), load(folder)
    rows = start_rows(base)
    model = attach(base, rows, **given)
    config = adapters.peft_config(filled(other, **given), task="CAUSAL_LM", model_type=other.model.config.model_type)
    theirs = get_peft_model(other.model, config)
    initialize_lora_eva_weights(theirs, batches_in_order(rows.examples), show_progress_bar=False)
    ours, expected = factors(model), factors(theirs)
    assert ours.keys() == expected.keys() and any(".lora_A." in name for name in ours)
    for name, tensor in expected.items():
        assert ours[name].shape == tensor.shape, name
        assert (ours[name].abs() - tensor.abs()).abs().max() < 1e-5, name
    assert len({len(tensor) for name, tensor in ours.items() if ".lora_A." in name}) > 1
    for name in ("rank_pattern", "alpha_pattern"):
        assert getattr(model.active_peft_config, name) == getattr(theirs.active_peft_config, name)


def test_the_start_changes_nothing_and_a_wider_base_s_directions_are_not_rounded(llama: Path) -> None:
    import torch

    base = load(llama)
    batch = pad(examples(base, 3), pad_id=256)["input_ids"]
    with torch.no_grad():
        bare = base.model(input_ids=batch).logits
        model = attach(base, start_rows(base)).eval()
        assert torch.equal(model(input_ids=batch).logits, bare)
    half = attach(load(llama, torch.bfloat16), start_rows(base))
    for name, tensor in factors(half).items():
        assert tensor.dtype == torch.float32
        if ".lora_A." in name:
            # Directions: of length 1, at right angles, to more digits than bfloat16 has.
            assert torch.allclose(tensor @ tensor.T, torch.eye(len(tensor)), atol=1e-5)


class Run:
    """Trainings of one base, which save what they make."""

    def __init__(self, folder: Path, root: Path) -> None:
        self.folder, self.root = folder, root

    def __call__(self, name: str, *, ranks: Any = None, **given: Any) -> tuple[Any, Any]:
        """Train and save; return the model and the result."""
        base, out = load(self.folder), self.root / name
        rows = start_rows(base, ranks=ranks)
        model = attach(base, rows, **given)
        out.mkdir(exist_ok=True)
        result = train(
            model, base, rows.examples, SPEC, pad_id=256, log=out / "log.jsonl", progress=Recorder.new(),
            checkpoints=self.root / f"{name}-checkpoints", identity="one",
        )  # fmt: skip
        adapters.save(model, out, base_id="org/tiny", base_revision=None)
        return model.eval(), result

    def made(self, name: str) -> tuple[bytes, bytes]:
        """Return a training's files."""
        return tuple((self.root / name / f"adapter_{x}").read_bytes() for x in ("config.json", "model.safetensors"))  # type: ignore[return-value]


def test_what_is_saved_is_a_plain_lora_and_a_killed_training_goes_on_without_reading_the_rows_again(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from peft import PeftModel

    run = Run(llama, tmp_path)
    # So few directions in all that some module gets none: it is the base's own again.
    settings = {"rho": 4.0, "use_label_mask": False}
    given = {"r": 1, "eva_config": settings, "lora_dropout": 0.1, "target_modules": ["q_proj", "o_proj"]}
    model, _ = run("whole", **given)
    config = json.loads((tmp_path / "whole/adapter_config.json").read_text())
    assert (config["init_lora_weights"], config["eva_config"], config["r"]) == (True, None, 1)
    tensors = read_tensors(tmp_path / "whole/adapter_model.safetensors")
    ranks = {name.removesuffix(".lora_A.weight"): len(a) for name, a in tensors.items() if ".lora_A." in name}
    assert sum(ranks.values()) == 4 and len(ranks) == 3
    base = load(llama)
    batch = pad(examples(base, 3), pad_id=256)["input_ids"]
    with torch.no_grad():
        bare = base.model(input_ids=batch).logits
        opened = PeftModel.from_pretrained(base.model, str(tmp_path / "whole")).eval()
        theirs = opened(input_ids=batch).logits
        assert torch.equal(model(input_ids=batch).logits, theirs)
    assert (theirs - bare).abs().max() > 1e-3

    # Killed after its second step: only the first checkpoint is there.
    shutil.copytree(tmp_path / "whole-checkpoints", tmp_path / "again-checkpoints")
    shutil.rmtree(tmp_path / "again-checkpoints/step-00000004")
    kept = Checkpoints(folder=tmp_path / "again-checkpoints", identity=shared_identity("one", 1), keep=2)
    found = eva.ranks_of(kept.newest()[0])
    assert found == ranks
    monkeypatch.setattr(eva, "_directions", None)
    _, result = run("again", ranks=found, **given)
    assert result.resumed_at == 2
    assert run.made("again") == run.made("whole")
    assert eva.ranks_of(None) is None


def test_the_same_rows_and_seed_give_the_same_bytes(llama: Path, tmp_path: Path) -> None:
    run = Run(llama, tmp_path)
    for name in ("one", "two"):
        run(name)
    assert run.made("one") == run.made("two")


@pytest.mark.parametrize("bits", [4, 8])
def test_over_packed_weights_directions_are_those_of_what_the_modules_are_given(tmp_path: Path, bits: int) -> None:
    folder = tiny_llama(tmp_path / "base", hidden=64)
    words, other = Quantization(load_in_4bit=bits == 4, load_in_8bit=bits == 8), load(folder)
    base = load_base(record(folder), device=choose_device("cpu"), dtype=other.dtype, quantization=words)
    packed, plain = factors(attach(base, start_rows(base))), factors(attach(other, start_rows(base)))
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"
    # What comes into the first layer is the same whatever its weights are.
    assert abs(float((packed[name][0] * plain[name][0]).sum())) > 0.9999


def test_of_sources_and_targets_each_module_counts_the_positions_that_it_is_given(tmp_path: Path) -> None:
    import torch

    folder = tiny_t5(tmp_path / "base")
    base = load_base(record(folder), device=choose_device("cpu"), dtype=torch.float32, task="SEQ_2_SEQ_LM")
    task, words = task_engine("SEQ_2_SEQ_LM"), ("one", "two", "three", "six", "uno", "dos", "tres", "seis")
    texts = [(" ".join(words[i % 5 : i % 5 + 2 + i % 3]), " ".join(words[i % 4 : i % 4 + 3])) for i in range(12)]
    pairs = [Row(place=f"r:{i}", prompt=a, text=b) for i, (a, b) in enumerate(texts)]
    rows = task.encode(pairs, base.tokenizer, DataSpec(train="r.jsonl"), max_length=16).items
    modules = {  # what each is given: the source's positions, the target's
        "encoder.block.0.layer.0.SelfAttention.q": "source",
        "decoder.block.0.layer.0.SelfAttention.q": "target",
        "decoder.block.0.layer.1.EncDecAttention.k": "source",
    }
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in modules}
    hooks = [
        base.model.get_submodule(name).register_forward_hook(lambda _, given, __, n=name: seen[n].append(given[0][0]))
        for name in modules
    ]
    for row in rows:  # by themselves, so that there is no padding
        batch = task.collate([row], pad_id=0)
        with torch.no_grad():
            base.model(**{name: batch[name] for name in ("input_ids", "attention_mask", "labels")})
    for hook in hooks:
        hook.remove()
    given = {"r": 2, "eva_config": {"rho": 1.0}, "target_modules": list(modules)}
    # One batch, again and again.
    spec = TrainingSpec(per_device_train_batch_size=len(rows), max_steps=1, seed=1)
    start = eva.StartRows(examples=rows, spec=spec, task=task, pad_id=0)
    model = adapters.attach(base, filled(base, **given), task="SEQ_2_SEQ_LM", seed=1, rows=start)
    for name, which in modules.items():
        states = torch.cat(seen[name])
        assert len(states) == sum(len(row.input_ids if which == "source" else row.target) for row in rows)
        expected = torch.linalg.svd(states - states.mean(0)).Vh[:2]
        found = factors(model)[f"base_model.model.{name}.lora_A.default.weight"]
        assert torch.allclose(torch.linalg.svdvals(found @ expected.T), torch.ones(2), atol=1e-3), name


@pytest.mark.parametrize(
    ("given", "count", "word"),
    [
        ({}, 1, "have [0-9]+ tokens that count"),
        ({"r": 20}, 20, "has 32 inputs, and r times rho directions of them are to be found: 40"),
        ({"eva_config": {"tau": 1.0}}, 20, "have not settled after 20 batches"),
    ],
)
def test_what_cannot_begin_so_is_refused_and_leaves_the_base_as_it_was(
    llama: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], count: int, word: str
) -> None:
    monkeypatch.setattr(eva, "MOST_BATCHES", 20)
    base = load(llama)
    with pytest.raises(IncompatibleError, match=word) as caught:
        attach(base, start_rows(base, count), **given)
    assert caught.value.hint
    assert not any(module._forward_hooks for module in base.model.modules())


def test_a_module_that_is_given_one_vector_a_row_and_a_start_without_rows_are_refused(llama: Path) -> None:
    from transformers import BertConfig, BertModel

    base = load(llama)
    with pytest.raises(IncompatibleError, match="rows of a training"):
        attach(base, None)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    bert = BertModel(BertConfig(vocab_size=300, max_position_embeddings=256, **sizes))
    one = LoadedBase(model=bert, tokenizer=base.tokenizer, device=base.device, dtype=base.dtype)
    with pytest.raises(IncompatibleError, match=r"pooler\.dense is not fed with the tokens") as caught:
        adapters.attach(
            one, filled(one, target_modules="all-linear"), task="FEATURE_EXTRACTION", seed=1,
            rows=start_rows(base, pad_id=0),
        )  # fmt: skip
    assert "exclude_modules" in (caught.value.hint or "")

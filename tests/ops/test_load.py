"""Which packages and which base a stack stands for, what is refused before a weight is read, and what is loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from adapterhub.environment import ActiveLayer
from adapterhub.errors import IncompatibleError, IntegrityError, UnsatisfiedError, UsageError
from adapterhub.ops.load import LoadPlan, layer_label, load, plan_load
from adapterhub.settings import Settings
from adapterhub.spec.quantization import Quantization
from tests.factory import edit_json, tiny_llama, write_tiny_manifest, write_tokenizer
from tests.ops.world import Notes, World, flip_last_byte

MANIFEST = "adapter_manifest.json"


@pytest.fixture
def world(tmp_path: Path, settings: Settings) -> World:
    world = World(root=tmp_path, settings=settings, base=tiny_llama(tmp_path / "base"))
    world.yaml()
    world.add_base(world.base)
    return world


def plan(world: World, stack: str | None = None, **options) -> LoadPlan:
    return plan_load(stack, settings=world.settings, cwd=world.project, **options)


def words(plan: LoadPlan) -> list[tuple[str, float]]:
    return [(layer.word, layer.weight) for layer in plan.stack.layers]


def two_installed(world: World) -> None:
    world.publish("acme/medical-lora", seed=1)
    world.publish("acme/spanish-lora", seed=2)
    world.install("acme/medical-lora")
    world.install("acme/spanish-lora")


def test_installed_adapters_by_alias(world: World) -> None:
    two_installed(world)
    found = plan(world, "medical,spanish=0.5", device="cpu", dtype="bfloat16")
    assert words(found) == [("medical", 1.0), ("spanish", 0.5)]
    assert [layer.package.path for layer in found.stack.layers] == [world.adapter("medical"), world.adapter("spanish")]
    assert (found.base.ref.id, found.base.path) == ("tiny-llama", world.base)
    assert (found.device, found.dtype, found.warnings, found.chosen) == ("cpu", "bfloat16", (), None)
    assert [step.action for step in found.steps] == ["load", "fold", "fold"]
    assert dict(found.facts())["stack"] == "medical 1.0.0, spanish 1.0.0 × 0.5"


def test_without_a_stack_the_only_adapter(world: World) -> None:
    world.publish("acme/medical-lora")
    world.install("acme/medical-lora")
    found = plan(world)
    assert words(found) == [("medical", 1.0)]
    assert found.chosen == "the only adapter: medical 1.0.0"


def test_without_a_stack_the_stack_default(world: World) -> None:
    first, second = world.build("first", seed=1), world.build("second", seed=2)
    world.yaml(f"stacks:\n  default: '{first},{second}=-0.5'\n")
    found = plan(world)
    assert [weight for _, weight in words(found)] == [1.0, -0.5]
    assert found.chosen is not None and found.chosen.startswith("the stack 'default'")


def test_without_a_stack_and_several_adapters_the_bare_base_of_the_project(world: World) -> None:
    two_installed(world)
    with (world.project / "adapters.yaml").open("a") as stream:
        stream.write("base_model: tiny-llama\n")
    found = plan(world)
    assert words(found) == []
    assert found.chosen == "no adapter: the bare base model tiny-llama"


def test_an_empty_stack_is_the_bare_base(world: World) -> None:
    world.publish("acme/medical-lora")
    world.install("acme/medical-lora")
    found = plan(world, "", base="tiny-llama")
    assert (words(found), found.base.ref.id) == ([], "tiny-llama")


def test_nothing_says_which_base(world: World) -> None:
    with pytest.raises(UsageError) as caught:
        plan(world)
    assert "--base NAME" in (caught.value.hint or "")
    two_installed(world)
    with pytest.raises(UsageError) as caught:
        plan(world)
    assert "medical, spanish" in (caught.value.hint or "")


def test_a_stack_that_is_none(world: World) -> None:
    with pytest.raises(UsageError, match="empty layer"):
        plan(world, "medical,,spanish")
    with pytest.raises(UsageError, match="neither an adapter nor a stack"):
        plan(world, "medcal")


def test_a_base_that_is_not_here(world: World) -> None:
    with pytest.raises(UnsatisfiedError) as caught:
        plan(world, base="no-such-base")
    assert (caught.value.hint or "").startswith("adapt base add no-such-base")


def test_a_damaged_package_is_refused(world: World) -> None:
    folder = world.build("one")
    flip_last_byte(folder / "adapter_model.safetensors")
    with pytest.raises(IntegrityError):
        plan(world, str(folder))


def test_another_base_of_the_same_shapes_is_refused(world: World, tmp_path: Path) -> None:
    world.add_base(tiny_llama(tmp_path / "other", seed=9), "other-llama")
    with pytest.raises(IncompatibleError) as caught:
        plan(world, str(world.build("one")), base="other-llama")
    assert caught.value.exit_code == 4
    assert caught.value.hint == "--base tiny-llama"


def test_the_same_weights_under_another_name_will_do(world: World) -> None:
    world.add_base(world.base, "my-llama")
    assert plan(world, str(world.build("one")), base="my-llama").warnings == ()


def test_a_base_with_another_name_stands_in_when_the_project_says_so(world: World, tmp_path: Path) -> None:
    world.yaml("base_model: tiny-llama\n")
    folder = world.build("one", base_id="org/original")
    found = plan(world, str(folder))
    assert (found.base.ref.id, found.warnings) == ("tiny-llama", ())


def test_a_plain_folder_says_what_is_not_known(world: World) -> None:
    folder = world.build("plain", manifest=False)
    warnings = plan(world, str(folder)).warnings
    assert any("derived" in text for text in warnings)
    assert any("nothing was recorded that could tell" in text for text in warnings)


def test_a_mismatch_that_was_allowed_at_install_is_a_warning(world: World, tmp_path: Path) -> None:
    world.add_base(tiny_llama(tmp_path / "other", seed=9), "other-llama")
    world.yaml("base_model: other-llama\n")
    world.publish("acme/medical-lora")
    world.install("acme/medical-lora", allow_base_mismatch=True)
    found = plan(world, "medical", base="other-llama")
    assert len(found.warnings) == 1 and "--allow-base-mismatch" in found.warnings[0]


def test_what_cannot_be_folded_is_named_all_at_once(world: World) -> None:
    prompt, heads = world.build("prompt", seed=1), world.build("heads", seed=2)
    for folder, change in ((prompt, {"method": "prompt_tuning"}), (heads, {"task": "SEQ_CLS"})):
        edit_json(folder / MANIFEST, **change)
    with pytest.raises(IncompatibleError) as caught:
        plan(world, f"{prompt}=0.5,{heads}")
    first, second = caught.value.details
    assert "prompt_tuning goes before the text" in first
    assert "SEQ_CLS" in second


def test_adapters_go_beside_weights_that_bitsandbytes_packed_and_no_others(world: World, tmp_path: Path) -> None:
    for name in ("bitsandbytes", "gptq"):
        quantized = tiny_llama(tmp_path / name)
        edit_json(quantized / "config.json", quantization_config={"quant_method": name, "load_in_4bit": True})
        world.add_base(quantized, name)
        assert plan(world, base=name).stack.layers == ()
    one = str(world.build("one"))
    # Another config.json: a base of its own, of the same weights.
    found = plan(world, one, base="bitsandbytes")
    assert [step.action for step in found.steps] == ["load", "activate"]
    with pytest.raises(IncompatibleError) as caught:
        plan(world, one, base="gptq")
    assert "gptq" in caught.value.details[0]
    with pytest.raises(UsageError, match="stored quantized"):
        plan(world, one, base="bitsandbytes", quantization=Quantization(load_in_8bit=True))


def test_a_base_is_packed_as_it_is_loaded(world: World) -> None:
    four = Quantization(load_in_4bit=True, bnb_4bit_use_double_quant=True)
    found = plan(world, str(world.build("one")), quantization=four)
    assert found.quantization == four
    assert dict(found.facts())["quantization"] == "4-bit (nf4, double quantization)"
    assert found.to_data()["quantization"] == four.to_data()
    assert [step.action for step in found.steps] == ["load", "activate"]
    assert plan(world, "", base="tiny-llama").to_data()["quantization"] is None


def with_tokenizer(world: World, name: str, template: str | None, *, seed: int) -> Path:
    folder = world.build(name, seed=seed, manifest=False)
    write_tokenizer(folder, chat_template=template)
    return folder


def test_an_adapter_s_own_tokenizer_is_used(world: World) -> None:
    own = with_tokenizer(world, "own", "{{ messages[0].content }}", seed=1)
    assert plan(world, f"{own},{world.build('other', seed=2)}").tokenizer == own


def test_a_copy_of_the_base_s_tokenizer_is_not(world: World) -> None:
    template = (world.base / "chat_template.jinja").read_text()
    same, bare = (with_tokenizer(world, name, text, seed=3) for name, text in (("same", template), ("bare", None)))
    assert plan(world, f"{same},{bare}").tokenizer is None


def test_two_different_tokenizers_are_refused(world: World) -> None:
    one = with_tokenizer(world, "one", "{{ messages[0].content }}", seed=1)
    two = with_tokenizer(world, "two", "{{ messages[0].role }}", seed=2)
    with pytest.raises(IncompatibleError, match="different tokenizers"):
        plan(world, f"{one},{two}")


def test_the_plan_as_data(world: World) -> None:
    folder = world.build("one")
    data = json.loads(json.dumps(plan(world, f"{folder}=0.5").to_data()))
    assert data["stack"] == [
        {"word": str(folder), "name": "tiny", "version": "1.0.0", "weight": 0.5, "path": str(folder)}
    ]
    assert (data["verb"], data["base"], data["changes"]) == ("load", "tiny-llama", True)


def test_a_plan_imports_no_torch(world: World) -> None:
    code = (
        "import sys; from pathlib import Path; from adapterhub.ops.load import plan_load\n"
        f"plan_load({str(world.build('one'))!r}, cwd=Path({str(world.project)!r}))\n"
        "print(sorted({'torch', 'transformers', 'peft', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr


def test_a_weight_that_is_not_one_is_shown(world: World) -> None:
    package = plan(world, str(world.build("one"))).stack.layers[0].package
    assert layer_label(ActiveLayer(word="a", package=package, weight=-0.5)) == "a 1.0.0 × -0.5"


@pytest.mark.engine
def test_a_loaded_stack_is_a_plain_model_and_a_tokenizer(world: World) -> None:
    two_installed(world)
    notes = Notes()
    options = {"settings": world.settings, "cwd": world.project, "device": "cpu", "dtype": "float32"}
    loaded = load("medical,spanish", progress=notes, **options)
    model, tokenizer = loaded
    assert type(model).__name__ == "LlamaForCausalLM"
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())
    assert (loaded.device, loaded.base.ref.id, notes.lines) == ("cpu", "tiny-llama", [])
    from tests.engine.peft_reference import active_model, difference, logits_of

    ids = tokenizer("hello").input_ids
    theirs = active_model(world.base, [(world.adapter("medical"), 1.0), (world.adapter("spanish"), 1.0)])
    assert difference(logits_of(model, ids), logits_of(theirs, ids)) <= 1e-4


@pytest.mark.engine
def test_the_api_tells_warnings_to_its_progress(world: World) -> None:
    notes = Notes()
    folder = world.build("plain", manifest=False)
    load(str(folder), settings=world.settings, cwd=world.project, device="cpu", progress=notes)
    assert notes.lines == list(plan(world, str(folder)).warnings) != []


@pytest.mark.engine
def test_dtype_and_device_are_taken_as_asked(world: World) -> None:
    import torch

    loaded = load(base="tiny-llama", settings=world.settings, cwd=world.project, device="cpu", dtype="bfloat16")
    assert loaded.model.dtype is torch.bfloat16 and loaded.dtype == "bfloat16"
    with pytest.raises(UsageError, match="not a device"):
        load(base="tiny-llama", settings=world.settings, cwd=world.project, device="abacus")
    with pytest.raises(UsageError, match="not a dtype"):
        load(base="tiny-llama", settings=world.settings, cwd=world.project, device="cpu", dtype="int3")


@pytest.mark.engine
def test_an_adapter_s_own_tokenizer_is_loaded(world: World) -> None:
    own = with_tokenizer(world, "own", "<{{ messages[0].content }}>", seed=1)
    _, tokenizer = load(str(own), settings=world.settings, cwd=world.project, device="cpu")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False) == "<x>"


@pytest.mark.engine
def test_a_module_that_the_base_lacks_is_refused(world: World, tmp_path: Path) -> None:
    deep = tiny_llama(tmp_path / "deep", layers=3)
    folder = World(root=tmp_path / "w", settings=world.settings, base=deep).build("one")
    # The manifest's word for it: trained on the base that is here.
    write_tiny_manifest(folder, world.base)
    with pytest.raises(IncompatibleError) as caught:
        load(str(folder), settings=world.settings, cwd=world.project, device="cpu")
    assert any("model.layers.2.self_attn.q_proj" in detail for detail in caught.value.details)


def test_a_stack_package_loads_what_its_members_load_by_name(world: World) -> None:
    two_installed(world)
    world.publish_stack("acme/clinic", {"acme/medical-lora": 0.5, "acme/spanish-lora": -2.0})
    world.install("acme/clinic")
    found = plan(world, "clinic=0.5")
    assert words(found) == [("acme/medical-lora", 0.25), ("acme/spanish-lora", -1.0)]
    named = plan(world, "medical=0.25,spanish=-1")
    assert [layer.package.path for layer in found.stack.layers] == [layer.package.path for layer in named.stack.layers]


@pytest.mark.engine
def test_a_stack_package_is_folded_as_its_members_are(world: World) -> None:
    world.publish("acme/medical-lora", seed=1)
    world.publish("acme/spanish-lora", seed=2)
    world.publish_stack("acme/clinic", {"acme/medical-lora": 0.5, "acme/spanish-lora": -2.0})
    world.install("acme/clinic")
    model, _ = load("clinic", settings=world.settings, cwd=world.project, dtype="float32")
    named, _ = load(
        "acme/medical-lora=0.5,acme/spanish-lora=-2", settings=world.settings, cwd=world.project, dtype="float32"
    )
    bare, _ = load("", base="tiny-llama", settings=world.settings, cwd=world.project, dtype="float32")
    weights, same, other = (dict(one.state_dict()) for one in (model, named, bare))
    assert all((weights[name] == same[name]).all() for name in weights)
    assert any((weights[name] != other[name]).any() for name in weights)

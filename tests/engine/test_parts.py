"""Stacks of several methods: against plain PEFT, one adapter merged and the next loaded over it, and by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from adapterhub.catalog.combinations import rule_of
from adapterhub.catalog.methods import METHODS, method_of_config
from adapterhub.catalog.stacking import FOLDED, Way, way_of
from adapterhub.engine.base import LoadedBase, without_future_warnings
from adapterhub.engine.parts import parts_of, put_parts
from adapterhub.engine.peft_adapter import put_on
from adapterhub.engine.swap import folded
from adapterhub.errors import AdapterHubError, IncompatibleError
from adapterhub.ops.load import load
from adapterhub.ops.merge import merge, plan_merge
from adapterhub.package import open_package
from adapterhub.spec.manifest import WEIGHTS_FILE
from adapterhub.spec.quantization import Quantization
from adapterhub.spec.stack import Parameters
from tests.equivalence.worlds import CASES, NotHere, World, difference, spread
from tests.factory import edit_json, edit_tensors

pytestmark = pytest.mark.engine

BOUND = 1e-5
EFFECT = 30 * BOUND


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], World]:
    made: dict[str, World] = {}

    def of(word: str) -> World:
        return made.setdefault(word, World(tmp_path_factory.mktemp(word), word))

    return of


def twin(world: World, case: str, seed: int = 1) -> Path:
    """Return another adapter of a case."""
    folder = world.root / "built" / f"{case.replace(', ', '-').replace('_', '-').lower()}-{seed}"
    return folder if folder.exists() else world._save(case, seed)


def layers_of(folders: Sequence[Path], weights: Sequence[float] = ()) -> list[Any]:
    return list(zip(map(open_package, folders), weights or [1.0] * len(folders), strict=True))


def put(world: World, folders: Sequence[Path], weights: Sequence[float] = (), rule: Any = None) -> Any:
    """Return a model with a stack, as `load_stack` puts it on."""
    base = LoadedBase(model=world.base(), tokenizer=None, device=torch.device("cpu"), dtype=torch.float32)  # type: ignore[arg-type]
    return put_parts(base, parts_of(layers_of(folders, weights), rule), task=world.task).model


def peft(model: Any, folder: Path, *, merged: bool = True) -> Any:
    """Load an adapter over a model by plain PEFT, and merge it."""
    from peft import PeftModel

    with without_future_warnings():
        adapted = PeftModel.from_pretrained(model, str(folder))
        return (adapted.merge_and_unload() if merged else adapted).eval()


def one_after_another(world: World, folders: Sequence[Path]) -> Any:
    """Return plain PEFT's model: each adapter loaded over the base into which those before it were merged."""
    model = world.base()
    for folder in folders:
        way = way_of(method_of_config(open_package(folder).config), open_package(folder).config)  # type: ignore[arg-type]
        model = peft(model, folder, merged=way in FOLDED)
    return model


def close(one: Any, other: Any) -> bool:
    return difference(one, other) <= BOUND


STACKS = [
    ("llama", ("lora", "ia3")),
    ("llama", ("ia3", "lora")),
    ("llama", ("lora", "dora")),
    ("llama", ("dora", "lora")),
    ("llama", ("dora", "ia3", "oft")),
    ("llama", ("lora, biases", "lora", "trainable_tokens")),
    ("gpt2", ("lora", "dora", "ia3")),  # whose weights are stored (in, out)
    ("bert", ("lora", "loha", "ln_tuning")),
    ("bert", ("dora", "ia3")),
]


@pytest.mark.parametrize(("word", "cases"), STACKS)
def test_what_changes_weights_is_what_peft_makes_one_after_another(
    world: Callable[[str], World], tmp_path: Path, word: str, cases: tuple[str, ...]
) -> None:
    here = world(word)
    folders = [twin(here, case) if cases.index(case) else here.make(case)[0] for case in cases]
    wanted = here.output(one_after_another(here, folders))
    loaded = here.output(put(here, folders))
    assert close(loaded, wanted)
    assert all(difference(here.output(one_after_another(here, folders[:count])), wanted) > EFFECT for count in (0, 1))
    stack = ",".join(map(str, folders))
    result = merge(plan_merge(tmp_path / "out", stack=stack, verify=word == "llama", settings=here.settings))
    assert close(here.output(here.plain(tmp_path / "out")), wanted)
    assert result.agreement is None or result.agreement.ok


def test_in_bfloat16_what_is_merged_is_what_runs_bit_for_bit(tmp_path: Path) -> None:
    here = World(tmp_path, "llama", dtype="bfloat16")
    stack = ",".join(str(here.make(case)[0]) for case in ("lora", "ia3", "dora", "lora, biases"))
    options: dict[str, Any] = {"stack": stack, "settings": here.settings, "cwd": tmp_path}
    loaded = states(load(dtype="bfloat16", device="cpu", base=here.base_id, **options).model)
    merge(plan_merge(tmp_path / "out", **options))
    merged, base = states(here.plain(tmp_path / "out")), states(here.base())
    assert all(torch.equal(loaded[name], merged[name]) for name in base)
    assert not torch.equal(
        merged["model.layers.0.self_attn.q_proj.weight"], base["model.layers.0.self_attn.q_proj.weight"]
    )


@pytest.mark.parametrize("word", ["bloom", "neox", "moe", "t5"])
@pytest.mark.parametrize("cases", [*sorted({cases for _, cases in STACKS}), ("lora", "hra"), ("c3a", "lora", "dora")])
@pytest.mark.exhaustive
def test_and_on_other_architectures(world: Callable[[str], World], word: str, cases: tuple[str, ...]) -> None:
    here = world(word)
    try:
        folders = [here.make(case)[0] for case in cases]
    except NotHere as error:
        pytest.skip(str(error))
    assert close(here.output(put(here, folders)), here.output(one_after_another(here, folders)))


def test_the_order_matters_where_a_method_makes_a_weight_of_the_weight_it_finds(world: Callable[[str], World]) -> None:
    here = world("llama")
    lora, loha, ia3, dora = (here.make(case)[0] for case in ("lora", "loha", "ia3", "dora"))
    for one, other, same in (
        (lora, loha, True),
        (ia3, twin(here, "ia3"), True),
        (lora, ia3, False),
        (dora, lora, False),
    ):
        found = [here.output(put(here, folders)) for folders in ([one, other], [other, one])]
        assert (difference(*found) <= BOUND) == same
        assert same or difference(*found) > EFFECT


def test_what_only_peft_can_merge_takes_its_place_in_the_order(world: Callable[[str], World]) -> None:
    here = world("llama")
    for cases in (("lora", "hra"), ("hra", "lora"), ("c3a", "dora", "lora")):
        folders = [here.make(case)[0] for case in cases]
        assert close(here.output(put(here, folders)), here.output(one_after_another(here, folders)))
    norms = here.make("ln_tuning")[0]
    with pytest.raises(IncompatibleError, match="hra before it has changed"):
        parts_of(layers_of([here.make("hra")[0], norms]))


def states(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def test_sums_of_all_methods_are_weighted(world: Callable[[str], World]) -> None:
    """W + Σ wᵢ·(Wᵢ − W), Wᵢ by PEFT's merge of one adapter."""
    here = world("llama")
    weights = {"lora": 0.7, "loha": -1.5, "vera": 2.0, "c3a": 0.5, "delora": -0.25}
    folders = [here.make(case)[0] for case in weights]
    base = states(here.base())
    wanted = dict(base)
    for folder, weight in zip(folders, weights.values(), strict=True):
        found = states(peft(here.base(), folder))
        wanted = {name: value + weight * (found[name] - base[name]) for name, value in wanted.items()}
    found = states(put(here, folders, list(weights.values())))
    assert max(float((found[name] - wanted[name]).abs().max()) for name in wanted) < 1e-5
    half = states(put(here, folders[1:2], [0.5]))
    by_hand = {
        name: base[name] + 0.5 * (value - base[name]) for name, value in states(peft(here.base(), folders[1])).items()
    }
    assert max(float((half[name] - by_hand[name]).abs().max()) for name in base) < 1e-6


def test_biases_norms_and_tokens_count_as_differences_to_the_base(world: Callable[[str], World]) -> None:
    here = world("bert")
    one, other = here.make("lora, biases")[0], twin(here, "lora, biases")
    base = states(here.base())
    trained = [states(peft(here.base(), folder)) for folder in (one, other)]
    found = states(put(here, [one, other], [0.7, -0.4]))
    biases = [name for name in base if name.endswith(".bias")]
    assert len(biases) > 8
    for name in biases:
        wanted = base[name] + 0.7 * (trained[0][name] - base[name]) - 0.4 * (trained[1][name] - base[name])
        assert torch.allclose(found[name], wanted, atol=1e-6), name
    assert max(float((trained[0][name] - base[name]).abs().max()) for name in biases) > 0.1

    here = world("llama")
    tokens, norms = [here.make("trainable_tokens")[0], twin(here, "trainable_tokens")], here.make("ln_tuning")[0]
    edit_json(tokens[1] / "adapter_config.json", token_indices=[97, 3, 4, 5, 6])  # one row that both name
    base = states(here.base())
    rows = [states(peft(here.base(), folder))["model.embed_tokens.weight"] for folder in tokens]
    found = states(put(here, [*tokens, norms], [1.0, 0.5, -1.0]))
    start = base["model.embed_tokens.weight"]
    assert torch.allclose(
        found["model.embed_tokens.weight"], start + (rows[0] - start) + 0.5 * (rows[1] - start), atol=1e-6
    )
    assert float((rows[0] - start)[97].abs().max()) > 0.01 < float((rows[1] - start)[97].abs().max())
    norm = states(peft(here.base(), norms))["model.norm.weight"]
    assert torch.allclose(found["model.norm.weight"], 2 * base["model.norm.weight"] - norm, atol=1e-6)


def test_factors_of_ia3_are_measured_from_one(world: Callable[[str], World]) -> None:
    here = world("llama")
    folder = here.make("ia3")[0]
    vectors = load_file(folder / WEIGHTS_FILE)
    base, found = states(here.base()), states(put(here, [folder], [-0.5]))
    for name, vector in vectors.items():
        weight = name.removeprefix("base_model.model.").replace("ia3_l", "weight")
        assert torch.allclose(found[weight], base[weight] * (1 - 0.5 * (vector - 1)), atol=1e-6)
        assert not torch.allclose(found[weight], base[weight], atol=1e-3)


def test_prompts_stand_one_after_another_over_changed_weights(world: Callable[[str], World]) -> None:
    here = world("llama")
    lora, prompts = here.make("lora")[0], [here.make("prompt_tuning")[0], twin(here, "p_tuning")]
    model = peft(here.base(), lora)
    before = torch.cat([load_file(folder / WEIGHTS_FILE)["prompt_embeddings"] for folder in prompts])
    with torch.no_grad():
        text = model.get_input_embeddings()(here.ids)
        inputs = torch.cat([before.expand(len(here.ids), -1, -1), text], dim=1)
        wanted = model(inputs_embeds=inputs).logits[:, -here.ids.shape[1] :]
    for folders in ([*prompts, lora], [lora, *prompts]):
        assert close(here.output(put(here, folders)), wanted)
    assert difference(here.output(put(here, [lora, *reversed(prompts)])), wanted) > EFFECT
    # One prompt over a LoRA is what PEFT has with one over the other.
    assert close(here.output(put(here, [prompts[0], lora])), here.output(one_after_another(here, [lora, prompts[0]])))


def test_prefixes_and_cartridges_stand_one_after_another(world: Callable[[str], World]) -> None:
    from transformers import DynamicCache

    here = world("llama")
    folders = [here.make("prefix_tuning")[0], here.make("cartridge")[0], twin(here, "prefix_tuning")]
    config = here.base().config
    flat = torch.cat([load_file(folder / WEIGHTS_FILE)["prompt_embeddings"] for folder in folders])
    heads, count = config.num_key_value_heads, len(flat)
    size = config.hidden_size // config.num_attention_heads
    states = flat.reshape(count, config.num_hidden_layers, 2, heads, size).permute(1, 2, 3, 0, 4)
    cache = DynamicCache()
    for index, (keys, values) in enumerate(states):
        rows = len(here.ids)
        cache.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), index)
    with torch.no_grad():
        wanted = here.base()(here.ids, past_key_values=cache).logits
    found = put(here, folders)
    assert found.active_peft_config.num_virtual_tokens == count
    assert close(here.output(found), wanted)
    # Attention sees a set of keys and values, whose positions are in them.
    assert close(here.output(put(here, folders[::-1])), wanted)
    assert difference(here.output(put(here, folders[:2])), wanted) > EFFECT


def test_an_encoder_decoder_s_prompts_too(world: Callable[[str], World]) -> None:
    """Of T5's two submodules each has its own vectors; PEFT puts the encoder's before the text."""
    here = world("t5")
    folders = [here.make("prompt_tuning")[0], twin(here, "prompt_tuning")]
    tensors = [load_file(folder / WEIGHTS_FILE)["prompt_embeddings"] for folder in folders]
    before = torch.cat([tensor[: len(tensor) // 2] for tensor in tensors])
    model = here.base()
    with torch.no_grad():
        inputs = torch.cat([before.expand(len(here.ids), -1, -1), model.get_input_embeddings()(here.ids)], dim=1)
        wanted = model(inputs_embeds=inputs, decoder_input_ids=here.ids.flip(0)).logits
    assert close(here.output(put(here, folders)), wanted)


def bottleneck_by_hand(folder: Path, place: str) -> Callable[[torch.Tensor], torch.Tensor]:
    tensors = load_file(folder / WEIGHTS_FILE)
    prefix = next(name for name in tensors if place in name).partition(place)[0] + place

    def act(hidden: torch.Tensor) -> torch.Tensor:
        down = torch.relu(hidden @ tensors[f"{prefix}.adapter_down.weight"].T + tensors[f"{prefix}.adapter_down.bias"])
        return down @ tensors[f"{prefix}.adapter_up.weight"].T + tensors[f"{prefix}.adapter_up.bias"]

    return act


def test_bottlenecks_act_one_after_another_over_changed_weights(world: Callable[[str], World]) -> None:
    here = world("llama")
    folders, lora = [here.make("bottleneck")[0], twin(here, "bottleneck")], here.make("lora")[0]
    slots = sorted({name.split(".")[-3] for name in load_file(folders[0] / WEIGHTS_FILE)})
    model = peft(here.base(), lora)
    layer = model.model.layers[0]
    for slot in slots:
        acts = [bottleneck_by_hand(folder, slot) for folder in folders]
        sublayer = layer.self_attn.o_proj if "attn" in slot or "attention" in slot else layer.mlp

        def after(_: Any, __: Any, out: Any, acts: Any = acts) -> Any:
            hidden = out[0] if isinstance(out, tuple) else out
            hidden = hidden + acts[0](hidden)
            return hidden + -0.5 * acts[1](hidden)

        sublayer.register_forward_hook(after)
    wanted = here.output(model)
    assert close(here.output(put(here, [folders[0], lora, folders[1]], [1.0, 1.0, -0.5])), wanted)
    assert difference(here.output(put(here, [folders[1], lora, folders[0]], [-0.5, 1.0, 1.0])), wanted) > EFFECT
    assert difference(here.output(put(here, [folders[0], lora])), wanted) > EFFECT


def test_around_a_norm_the_second_begins_where_the_first_ended(world: Callable[[str], World]) -> None:
    """LN(u' + a₂(LN(u'))) with u' = u + a₁(LN(u)): the model with the first one is the second one's base."""
    from adapterhub.engine.methods.bottleneck import insert, step_aside
    from adapterhub.spec.bottleneck import BottleneckSpec

    here = world("bert")
    spec = BottleneckSpec.from_hyperparameters(
        {"mh_adapter": False, "output_adapter": True, "original_ln_before": True}
    )
    model, plain = here.base(), here.base()
    both: list[list[Any]] = []
    for seed in (1, 2):
        if both:
            step_aside(model)
        parameters = insert(model, spec)
        spread(list(parameters.values()), seed)
        both.append([module for module in model.modules() if type(module).__name__ == "Bottleneck"][-1:])
    first, second = (modules[0] for modules in both)
    first, second = (first, second) if first._followed else (second, first)

    def around(norm: Any, args: Any, out: Any) -> Any:
        total = args[0] + first(out)
        return norm.forward(total + second(norm.forward(total)))

    name = next(
        name
        for name, module in model.named_modules()
        if any("_around_norm" in str(h) for h in module._forward_hooks.values())
    )
    wanted_model = plain
    wanted_model.get_submodule(name).register_forward_hook(around)
    assert close(here.output(model), here.output(wanted_model))
    assert difference(here.output(model), here.bare) > EFFECT


def test_a_prompt_over_a_dora_over_a_lora_and_one_change_of_the_way_through(world: Callable[[str], World]) -> None:
    here = world("llama")
    for cases in (("lora", "dora", "prefix_tuning"), ("lora", "ia3", "shadow"), ("loha", "beft")):
        folders = [here.make(case)[0] for case in cases]
        assert close(here.output(put(here, folders)), here.output(one_after_another(here, folders)))


def test_a_combination_is_of_the_loras_under_a_prompt(world: Callable[[str], World]) -> None:
    here = world("llama")
    loras, prompt = [here.make("lora")[0], twin(here, "lora")], here.make("prompt_tuning")[0]
    rule = rule_of("ties", Parameters(density=0.5, rank=4))
    model = put(here, loras, rule=rule)
    assert close(here.output(put(here, [*loras, prompt], rule=rule)), here.output(peft(model, prompt, merged=False)))
    even = rule_of("linear")
    assert close(
        here.output(put(here, [*loras, prompt], rule=even)), here.output(put(here, [*loras, prompt], [0.5, 0.5, 1.0]))
    )


@pytest.mark.parametrize(
    ("cases", "weights", "reason"),
    [
        (
            ("lora", "oft"),
            (1.0, 0.5),
            "oft makes a weight of the weight it finds, and has no coefficient but 1 (given 0.5)",
        ),
        (("dora", "lora"), (0.5, 1.0), "dora makes a weight of the weight it finds"),
        (("prefix_tuning", "prompt_tuning"), (), "they do not go into one prompt"),
        (("lora", "prompt_tuning"), (1.0, 2.0), "goes before the text, and has no coefficient but 1 (given 2)"),
        (("shadow", "beft"), (), "which does not end in the weights either: take one of them"),
        (("bottleneck", "adaption_prompt"), (), "adaption_prompt changes the way through the model"),
    ],
)
def test_what_has_no_meaning_is_refused_before_the_base_is_read(
    world: Callable[[str], World], cases: tuple[str, ...], weights: tuple[float, ...], reason: str
) -> None:
    here = world("llama")
    with pytest.raises(IncompatibleError) as caught:
        parts_of(layers_of([here.make(case)[0] for case in cases], weights))
    assert reason in " ".join(caught.value.details)


def test_over_packed_weights_loras_carry_bottlenecks_and_prompts(world: Callable[[str], World]) -> None:
    here = world("llama")
    assert here.record
    lora, prompt = here.make("lora")[0], here.make("prompt_tuning")[0]

    def packed(*folders: Path) -> Any:
        where: dict[str, Any] = {"settings": here.settings, "cwd": here.root, "base": here.base_id, "device": "cpu"}
        found = load(
            ",".join(map(str, folders)), dtype="float32", quantization=Quantization(load_in_4bit=True), **where
        )
        return found.model

    model = packed(lora)
    with torch.no_grad():
        before = load_file(prompt / WEIGHTS_FILE)["prompt_embeddings"].expand(len(here.ids), -1, -1)
        inputs = torch.cat([before, model.get_input_embeddings()(here.ids)], dim=1)
        wanted = model(inputs_embeds=inputs).logits[:, -here.ids.shape[1] :]
    assert close(here.output(packed(prompt, lora)), wanted)
    assert difference(here.output(packed(lora, here.make("bottleneck")[0])), here.output(packed(lora))) > EFFECT
    for cases in (("lora", "ia3"), ("ia3", "prompt_tuning"), ("lora, biases",), ("dora", "lora")):
        with pytest.raises(IncompatibleError) as caught:
            packed(*(here.make(case)[0] for case in cases))
        assert "packed weights take no change" in " ".join(caught.value.details)


def test_modules_saved_whole_and_fused_experts_are_of_one_adapter(
    world: Callable[[str], World], tmp_path: Path
) -> None:
    here = world("llama")
    norms, whole = here.make("ln_tuning")[0], tmp_path / "whole"
    import shutil

    shutil.copytree(here.make("ia3")[0], whole)
    edit_json(whole / "adapter_config.json", modules_to_save=["norm"])
    edit_tensors(
        whole / WEIGHTS_FILE,
        lambda all: all | {"base_model.model.model.norm.weight": here.base().model.norm.weight.detach().numpy()},
    )
    for folders, weights, reason in (
        ([norms, whole], (), "changed by another adapter of the stack"),
        ([whole], (0.5,), "has no coefficient but 1 (given 0.5)"),
    ):
        with pytest.raises(IncompatibleError) as caught:
            parts_of(layers_of(folders, weights))
        assert reason in " ".join((str(caught.value), *caught.value.details))


def test_a_mixed_stack_is_taken_out_again_to_the_bit(world: Callable[[str], World]) -> None:
    here = world("llama")
    folders = [here.make(case)[0] for case in ("lora, biases", "ia3", "dora", "trainable_tokens")]
    change = parts_of(layers_of(folders)).foldable
    assert change is not None
    for dtype in (torch.float32, torch.bfloat16):
        model = here.base(dtype)
        before = states(model)
        with folded(model, change):
            assert any(not torch.equal(before[name], value) for name, value in states(model).items())
        assert all(torch.equal(before[name], value) for name, value in states(model).items())
    assert not parts_of(layers_of([folders[0], here.make("prompt_tuning")[0]])).reversible


def _summed(quick: bool) -> Iterator[Any]:
    few = ("lora", "loha", "vera", "c3a", "dora", "oft", "hra", "hira")
    for case, (method, _) in CASES.items():
        if METHODS[method].foldable and case == method and (method in few) == quick:
            yield case if quick else pytest.param(case, marks=pytest.mark.exhaustive)


@pytest.mark.parametrize("case", [*_summed(True), *_summed(False)])
def test_a_method_is_a_sum_if_two_bases_are_changed_by_the_same(world: Callable[[str], World], case: str) -> None:
    here = world("bert" if case == "bitfit" else "llama")
    package = open_package(here.make(case)[0])
    method = METHODS[CASES[case][0]]
    changed = []
    for seed in (0, 3):
        model = here.base()
        if seed:
            spread(list(model.parameters()), seed, 0.05)
        before = states(model)
        after = states(put_on(model, package, method, task=here.task))
        changed.append({name: value - before[name] for name, value in after.items()})
    largest = max(float(value.abs().max()) for value in changed[0].values())
    apart = max(float((changed[0][name] - changed[1][name]).abs().max()) for name in changed[0])
    adds = apart < 1e-4 * largest
    # What takes the place of the base's own values is a sum of differences to those.
    assert adds or apart > 1e-2 * largest
    replaces = method.name in ("ln_tuning", "trainable_tokens")
    assert (way_of(method, package.config) is Way.SUM) == (adds or replaces)


def test_every_buildable_method_has_a_way() -> None:
    for method in METHODS.values():
        if method.buildable and method.peft_type is not None:
            way = way_of(method, {})
            assert way is not None and (way in FOLDED) == method.foldable, method.name


def test_what_cannot_be_run_is_told(world: Callable[[str], World], tmp_path: Path) -> None:
    import shutil

    here = world("llama")
    out = shutil.copytree(here.make("ia3")[0], tmp_path / "out")
    edit_json(out / "adapter_config.json", peft_type="XLORA")
    with pytest.raises(AdapterHubError, match="make no stack") as caught:
        parts_of(layers_of([out, here.make("lora")[0]]))
    assert "XLORA cannot be run yet" in " ".join(caught.value.details)

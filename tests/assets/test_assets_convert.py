import importlib.util
import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from pl_fed.assets.catalogue import PackagedAsset, PackagedFile, PackageSource
from pl_fed.assets.convert import convert_smollm2, convert_weights, copy_model
from pl_fed.assets.errors import AssetFetchError

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TOKENS = [*SPECIAL, "h", "i", "Ġ", "1", "2", "!", "hi", "12", "ĠĠ"]
MERGES = ["h i", "1 2", "Ġ Ġ"]
TEMPLATE = "{% for message in messages %}{{ '<|im_start|>' + message['content'] + '<|im_end|>' }}{% endfor %}"
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "model.layers.0.input_layernorm": "blk.0.attn_norm",
    "model.layers.0.post_attention_layernorm": "blk.0.ffn_norm",
    "model.layers.0.self_attn.q_proj": "blk.0.attn_q",
    "model.layers.0.self_attn.k_proj": "blk.0.attn_k",
    "model.layers.0.self_attn.v_proj": "blk.0.attn_v",
    "model.layers.0.self_attn.o_proj": "blk.0.attn_output",
    "model.layers.0.mlp.gate_proj": "blk.0.ffn_gate",
    "model.layers.0.mlp.up_proj": "blk.0.ffn_up",
    "model.layers.0.mlp.down_proj": "blk.0.ffn_down",
}
QUANTISED = "blk.0.ffn_gate"


def asset(build, *names: str) -> PackagedAsset:
    source = PackageSource("pip", "tiny", "1.0", 100, "data")
    files = tuple(PackagedFile(name, "0" * 64) for name in names)
    return PackagedAsset("tiny", "org/tiny", source, files, "MIT", "Q4_1-dequantised.", build)


def tiny_llama() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


def rotate_heads(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """Rows of one head from (half, pair) to (pair, half): the order that GGUF keeps queries and keys in."""
    return weight.reshape(num_heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(model: LlamaForCausalLM, path: Path) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Smol")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(TOKENS) - len(SPECIAL)))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)
    for name, parameter in model.named_parameters():
        short = NAMES[name.removesuffix(".weight")]
        weight = parameter.detach().numpy()
        if short.endswith(("attn_q", "attn_k")):
            weight = rotate_heads(weight, 2 if short.endswith("q") else 1)
        if short == QUANTISED:
            kind = gguf.GGMLQuantizationType.Q4_1
            writer.add_tensor(f"{short}.weight", gguf.quantize(weight, kind), raw_dtype=kind)
        else:
            writer.add_tensor(f"{short}.weight", weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> tuple[LlamaForCausalLM, Path, bool]:
    """A random Llama, the folder that its GGUF file was turned into, and whether that left the random state alone."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("target")
    torch.manual_seed(0)
    model = tiny_llama()
    write_gguf(model, source / "tiny.gguf")
    before = torch.get_rng_state()
    with torch.device("meta"):  # as inside Lightning's `configure_model`
        convert_smollm2(asset(convert_smollm2, "tiny.gguf"), source, target)
    return model, target, torch.equal(before, torch.get_rng_state())


def test_weights(converted) -> None:
    """All tensors come back bit by bit, the one in Q4_1 as the reference implementation of that format reads it."""
    model, folder, _ = converted
    loaded, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    kind = gguf.GGMLQuantizationType.Q4_1
    expected = {name: parameter.detach() for name, parameter in model.named_parameters()}
    gate = "model.layers.0.mlp.gate_proj.weight"
    expected[gate] = torch.from_numpy(gguf.dequantize(gguf.quantize(expected[gate].numpy(), kind), kind))
    assert not torch.equal(expected[gate], dict(model.named_parameters())[gate])
    for name, parameter in loaded.named_parameters():
        assert parameter.dtype == torch.float32 and torch.equal(parameter, expected[name]), name


def test_config(converted) -> None:
    config = json.loads((converted[1] / "config.json").read_text())
    assert "quantization_config" not in config and "_model_name_or_path" not in config
    assert config["rms_norm_eps"] == 1e-5
    assert config["initializer_range"] == 1 / 24
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (1, 2, 2)


def test_tokenizer(converted) -> None:
    """Each digit stands alone: "hi  12" is hi, two spaces, 1, 2, although the vocabulary has a merge for 12."""
    tokenizer = AutoTokenizer.from_pretrained(converted[1])
    assert tokenizer.convert_ids_to_tokens(tokenizer("hi  12!")["input_ids"]) == ["hi", "ĠĠ", "1", "2", "!"]
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (SPECIAL[1], SPECIAL[2], SPECIAL[2])
    assert tokenizer.model_max_length == 64
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert chat == "<|im_start|>hi<|im_end|>"


def test_model_card_and_random_state(converted) -> None:
    card = (converted[1] / "README.md").read_text()
    assert "Q4_1-dequantised" in card and "license: mit" in card and "PyPI tiny 1.0" in card
    assert converted[2], "a first run must draw the same numbers as the next"


def test_without_gguf(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(AssetFetchError, match=r"expected the package `gguf`.*pip install gguf"):
        convert_smollm2(asset(convert_smollm2, "tiny.gguf"), tmp_path, tmp_path)


def test_copy(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "1_Pooling").mkdir(parents=True)
    target.mkdir()
    for name in ("config.json", "1_Pooling/config.json", "not-listed"):
        (source / name).write_text(name)
    copy_model(asset(copy_model, "config.json", "1_Pooling/config.json"), source, target)
    assert (target / "1_Pooling" / "config.json").read_text() == "1_Pooling/config.json"
    assert sorted(p.name for p in target.iterdir()) == ["1_Pooling", "README.md", "config.json"]


def test_pickled_weights_become_safetensors(tmp_path: Path) -> None:
    """Values and types stay, also of a tensor that is a view of another."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    tensors = {"a.weight": torch.randn(2, 3).T, "a.seen": torch.tensor(4)}
    torch.save(tensors, source / "w.pth")
    convert_weights(asset(convert_weights, "w.pth"), source, target)
    torch.testing.assert_close(load_file(target / "model.safetensors"), tensors)

"""Writes a Hugging Face Llama folder as an f16 GGUF file for llama.cpp: convert.py FOLDER OUT.gguf

The file has no tokenizer: the benchmark feeds token ids.
"""

import json
import math
import sys
from pathlib import Path

import gguf
import numpy as np

import checkpoint


def permuted(weight, heads):
    """llama.cpp rotates neighbouring dimensions, Hugging Face the two halves of a head: reorder the rows of a head."""
    rest = weight.shape[1:]
    return weight.reshape(heads, 2, -1, *rest).swapaxes(1, 2).reshape(weight.shape)


def llama3_factors(rope, theta, head_dim):
    """What llama.cpp divides each frequency by, for `rope_type: llama3`."""
    old = rope["original_max_position_embeddings"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    factors = []
    for i in range(0, head_dim, 2):
        turns = old / (2 * math.pi * theta ** (i / head_dim))
        smooth = min(max((turns - low) / (high - low), 0.0), 1.0)
        factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(factors, np.float32)


folder, out = sys.argv[1:]
config = json.loads((Path(folder) / "config.json").read_text())
if config["model_type"] != "llama":
    sys.exit(f"{folder}: model_type is {config['model_type']}, only llama is converted")

layers = config["num_hidden_layers"]
heads = config["num_attention_heads"]
kv_heads = config.get("num_key_value_heads") or heads
head_dim = config.get("head_dim") or config["hidden_size"] // heads
# `rope_parameters` is the newer spelling and holds the theta too.
rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
rope_type = rope.get("rope_type", rope.get("type", "default"))
theta = config.get("rope_theta") or rope.get("rope_theta", 10000.0)

writer = gguf.GGUFWriter(out, "llama")
writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
writer.add_vocab_size(config["vocab_size"])
writer.add_tokenizer_model("none")
writer.add_context_length(config["max_position_embeddings"])
writer.add_embedding_length(config["hidden_size"])
writer.add_feed_forward_length(config["intermediate_size"])
writer.add_block_count(layers)
writer.add_head_count(heads)
writer.add_head_count_kv(kv_heads)
writer.add_key_length(head_dim)
writer.add_value_length(head_dim)
writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
writer.add_rope_dimension_count(head_dim)
writer.add_rope_freq_base(theta)
if rope_type == "linear":
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(rope["factor"])
elif rope_type == "llama3":
    writer.add_tensor("rope_freqs.weight", llama3_factors(rope, theta, head_dim))
elif rope_type != "default":
    sys.exit(f"{folder}: rope scaling `{rope_type}` is not converted")

names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, layers)
for name, array in checkpoint.weights(folder):
    if name.endswith("rotary_emb.inv_freq") or (name == "lm_head.weight" and config.get("tie_word_embeddings")):
        continue
    if ".q_proj." in name:
        array = permuted(array, heads)
    elif ".k_proj." in name:
        array = permuted(array, kv_heads)
    # Vectors (norms, biases) stay f32, as in llama.cpp's own converter.
    dtype = np.float32 if array.ndim == 1 else np.float16
    writer.add_tensor(names.get_name(name, (".weight", ".bias")), array.astype(dtype))

writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()

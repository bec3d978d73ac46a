"""Configs, tensor layouts and weights of the fixtures whose families transformers builds: used by make_fixtures.py.

A *group* is one set of weights in several *layouts* (one folder each), so that the folders differ in names, shapes and
config keys only. `hub` is the layout of published checkpoints with transformers 4 keys, `saved` what transformers 5
writes, `fused` what it writes with `save_original_format=False` (the experts of a layer in one tensor).

Weights are drawn per parameter of the model in memory, from a generator seeded by the group's and the parameter's name.
"""
import copy
import hashlib
import json
import re
import shutil
import tempfile
import pathlib

import torch
import transformers
from safetensors.torch import load_file, save_file

VOCAB = 160
IMAGE, VIDEO, VISION_START, VISION_END, AUDIO, AUDIO_START, AUDIO_END = range(150, 157)
VISION_TOKENS = dict(image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=VISION_START,
                     vision_end_token_id=VISION_END)
# Hidden size, expert width, its double and the number of experts all differ, also from the head widths.
TEXT = dict(vocab_size=VOCAB, hidden_size=32, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, hidden_act="silu", max_position_embeddings=128, rms_norm_eps=1e-6,
            initializer_range=0.02, attention_dropout=0.0, use_cache=True, tie_word_embeddings=False)
DELTA = dict(linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=16, linear_value_head_dim=24,
             linear_conv_kernel_dim=4)
QWEN3_5 = dict(head_dim=32, attention_bias=False, attn_output_gate=True, mtp_num_hidden_layers=1, **DELTA,
               rope_parameters=dict(rope_type="default", rope_theta=10000.0, partial_rotary_factor=0.25,
                                    mrope_interleaved=True, mrope_section=[2, 1, 1]))
HYBRID = dict(num_hidden_layers=4, full_attention_interval=4, layer_types=["linear_attention"] * 3 + ["full_attention"])
HYBRID_MOE = dict(num_hidden_layers=3, full_attention_interval=3, moe_intermediate_size=64, num_experts=4,
                  num_experts_per_tok=2, shared_expert_intermediate_size=96,
                  layer_types=["linear_attention"] * 2 + ["full_attention"])
VISION_2_5 = dict(depth=1, hidden_act="silu", hidden_size=16, in_chans=3, intermediate_size=24, num_heads=2,
                  out_hidden_size=32, patch_size=4, spatial_merge_size=2, temporal_patch_size=2, window_size=16,
                  fullatt_block_indexes=[0])
VISION_3 = dict(depth=2, hidden_size=16, intermediate_size=24, num_heads=2, out_hidden_size=32, patch_size=4,
                spatial_merge_size=2, temporal_patch_size=2, in_channels=3, num_position_embeddings=16,
                hidden_act="gelu_pytorch_tanh", deepstack_visual_indexes=[])
MROPE = dict(type="mrope", rope_type="default", mrope_section=[2, 3, 3])
MROPE_INTERLEAVED = dict(rope_type="default", mrope_interleaved=True, mrope_section=[4, 2, 2])
YARN_MSCALE = dict(type="yarn", factor=4.0, beta_fast=32, beta_slow=1, mscale=0.707, mscale_all_dim=1.0,
                   original_max_position_embeddings=16)
LONG = dict(type="longrope", original_max_position_embeddings=32, short_mscale=1.2, long_mscale=1.3,
            short_factor=[1.0, 1.1, 1.2, 1.4], long_factor=[1.5, 2.0, 3.0, 5.0])
DEEPSEEK = dict(num_key_value_heads=4, moe_intermediate_size=64, n_shared_experts=2, first_k_dense_replace=1,
                moe_layer_freq=1, norm_topk_prob=False, scoring_func="softmax", kv_lora_rank=24,
                qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=24, attention_bias=False, rope_theta=10000.0)


def text(kind, architecture, **keys):
    return dict(architectures=[architecture], model_type=kind, torch_dtype="bfloat16", bos_token_id=1, eos_token_id=2,
                **{**TEXT, **keys})


def moe(kind, architecture, width, **keys):
    """A mixture whose expert width is `intermediate_size`, as mixtral, olmoe and granitemoe have it."""
    return text(kind, architecture, **{**dict(intermediate_size=width, num_experts_per_tok=2, rope_theta=10000.0,
                                              output_router_logits=False, rope_scaling=None), **keys})


def vision_language(kind, architecture, inner, vision):
    inner = {**{k: v for k, v in inner.items() if k not in ("architectures", "torch_dtype")}, "dtype": "bfloat16"}
    return dict(architectures=[architecture], model_type=kind, text_config=inner, tie_word_embeddings=False,
                vision_config=dict(vision, model_type=VISION_TYPE.get(kind, kind)), **VISION_TOKENS)


VISION_TYPE = {}
QWEN3_VL = dict(head_dim=16, rope_theta=10000.0, rope_scaling=MROPE_INTERLEAVED, attention_bias=False)
THINKER = dict(
    architectures=["Qwen2_5OmniThinkerForConditionalGeneration"], model_type="qwen2_5_omni_thinker",
    torch_dtype="bfloat16", tie_word_embeddings=False,
    text_config={**TEXT, "num_hidden_layers": 2, "model_type": "qwen2_5_omni_text", "rope_theta": 10000.0,
                 "rope_scaling": MROPE | {"mrope_section": [1, 1, 2]}, "use_sliding_window": False},
    vision_config=dict({k: v for k, v in VISION_2_5.items()}, model_type="qwen2_5_omni_vision_encoder", in_channels=3),
    audio_config=dict(model_type="qwen2_5_omni_audio_encoder", num_mel_bins=8, encoder_layers=1,
                      encoder_attention_heads=2, encoder_ffn_dim=24, d_model=16, output_dim=32,
                      max_source_positions=40, n_window=10),
    image_token_index=IMAGE, video_token_index=VIDEO, audio_token_index=AUDIO, vision_start_token_id=VISION_START,
    vision_end_token_id=VISION_END, audio_start_token_id=AUDIO_START, audio_end_token_id=AUDIO_END)

GROUPS = {
    # group: (hub config, {folder: layout}, lengths beyond 1, 7 and 24)
    "qwen3_moe": (text("qwen3_moe", "Qwen3MoeForCausalLM", head_dim=24, moe_intermediate_size=64, num_experts=5,
                       num_experts_per_tok=2, decoder_sparse_step=1, mlp_only_layers=[], norm_topk_prob=True,
                       attention_bias=False, use_sliding_window=False, rope_theta=10000.0, rope_scaling=None),
                  {"qwen3_moe-fused": "fused"}, []),
    "olmoe": (moe("olmoe", "OlmoeForCausalLM", 64, num_experts=5, norm_topk_prob=False, clip_qkv=1.0,
                  attention_bias=False), {"olmoe": "hub", "olmoe-fused": "fused"}, []),
    "mixtral": (moe("mixtral", "MixtralForCausalLM", 64, num_local_experts=5, sliding_window=None),
                {"mixtral": "hub", "mixtral-fused": "fused"}, []),
    "phimoe": (moe("phimoe", "PhimoeForCausalLM", 64, num_local_experts=5, attention_bias=True, lm_head_bias=True,
                   router_jitter_noise=0.01, input_jitter_noise=0.0, sliding_window=128),
               {"phimoe": "hub", "phimoe-fused": "fused"}, []),
    "phimoe-longrope": (moe("phimoe", "PhimoeForCausalLM", 64, num_hidden_layers=1, num_local_experts=4,
                            attention_bias=True, lm_head_bias=True, router_jitter_noise=0.01, input_jitter_noise=0.0,
                            sliding_window=128, rope_scaling=LONG, original_max_position_embeddings=32),
                        {"phimoe-longrope": "hub"}, [40]),
    "granitemoe": (moe("granitemoe", "GraniteMoeForCausalLM", 64, num_local_experts=5, embedding_multiplier=12.0,
                       logits_scaling=2.0, residual_multiplier=0.22, attention_multiplier=0.0625,
                       attention_bias=False, tie_word_embeddings=True),
                   {"granitemoe": "hub", "granitemoe-fused": "fused"}, []),
    "deepseek_v2": (text("deepseek_v2", "DeepseekV2ForCausalLM", **DEEPSEEK, q_lora_rank=None, n_routed_experts=5,
                         num_experts_per_tok=2, n_group=1, topk_group=1, topk_method="greedy",
                         routed_scaling_factor=1.0, rope_scaling=None),
                    {"deepseek_v2": "hub", "deepseek_v2-fused": "fused"}, []),
    "deepseek_v2-grouped": (text("deepseek_v2", "DeepseekV2ForCausalLM", **DEEPSEEK, q_lora_rank=48,
                                 n_routed_experts=8, num_experts_per_tok=3, n_group=4, topk_group=2,
                                 topk_method="group_limited_greedy", routed_scaling_factor=2.5,
                                 rope_scaling=YARN_MSCALE),
                            {"deepseek_v2-grouped": "hub"}, [40]),
    "gpt_oss": (moe("gpt_oss", "GptOssForCausalLM", 96, hidden_size=64, num_local_experts=3, head_dim=24,
                    attention_bias=True, sliding_window=8, layer_types=["sliding_attention", "full_attention"],
                    swiglu_limit=7.0, experts_per_token=2, initial_context_length=32,
                    rope_scaling=dict(rope_type="yarn", factor=4.0, beta_fast=32.0, beta_slow=1.0, truncate=False,
                                      original_max_position_embeddings=32)),
                {"gpt_oss": "saved", "gpt_oss-mxfp4": "mxfp4"}, [40]),
    "qwen3_5-text": (text("qwen3_5_text", "Qwen3_5ForCausalLM", **QWEN3_5, **HYBRID), {"qwen3_5-text": "saved"}, [70]),
    "qwen3_5": (vision_language("qwen3_5", "Qwen3_5ForConditionalGeneration",
                                text("qwen3_5_text", "", **QWEN3_5, **HYBRID), VISION_3),
                {"qwen3_5": "hub", "qwen3_5-saved": "saved"}, []),
    "qwen3_5_moe-text": (text("qwen3_5_moe_text", "Qwen3_5MoeForCausalLM", **QWEN3_5, **HYBRID_MOE),
                         {"qwen3_5_moe-text": "fused"}, [70]),
    "qwen3_5_moe": (vision_language("qwen3_5_moe", "Qwen3_5MoeForConditionalGeneration",
                                    text("qwen3_5_moe_text", "", **QWEN3_5, **HYBRID_MOE), VISION_3),
                    {"qwen3_5_moe": "hub", "qwen3_5_moe-saved": "saved"}, []),
    "qwen2_5_vl": (text("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration", rope_theta=10000.0, head_dim=None,
                        rope_scaling=MROPE | {"mrope_section": [1, 1, 2]}, use_sliding_window=False,
                        vision_config=dict(VISION_2_5, tokens_per_second=2), **VISION_TOKENS),
                   {"qwen2_5_vl": "hub", "qwen2_5_vl-saved": "saved"}, []),
    "qwen3_vl": (vision_language("qwen3_vl", "Qwen3VLForConditionalGeneration", text("qwen3_vl_text", "", **QWEN3_VL),
                                 dict(VISION_3, deepstack_visual_indexes=[0, 1])),
                 {"qwen3_vl": "hub", "qwen3_vl-saved": "saved"}, []),
    "qwen3_vl_moe": (vision_language("qwen3_vl_moe", "Qwen3VLMoeForConditionalGeneration",
                                     text("qwen3_vl_moe_text", "", **QWEN3_VL, moe_intermediate_size=64, num_experts=5,
                                          num_experts_per_tok=2, decoder_sparse_step=1, mlp_only_layers=[],
                                          norm_topk_prob=True),
                                     dict(VISION_3, deepstack_visual_indexes=[0, 1])),
                     {"qwen3_vl_moe": "transposed", "qwen3_vl_moe-saved": "saved"}, []),
    "qwen2_5_omni": (THINKER, {"qwen2_5_omni": "omni", "qwen2_5_omni-thinker": "saved"}, []),
}
GROUPS["qwen2_5_vl"][0].pop("head_dim")
FIXTURES = {folder: group for group, (_, folders, _) in GROUPS.items() for folder in folders}


def seeded(key, shape):
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:6], "big")
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def draw(key, name, start):
    """One parameter: matrices scaled by their inputs, vectors spread around the value they start from (0 or 1)."""
    noise = seeded(f"{key}/{name}", start.shape)
    if name.endswith("A_log"):
        value = 0.4 * noise
    elif name.endswith("dt_bias"):
        value = 0.4 * noise - 1
    elif name.endswith("sinks"):
        value = noise
    elif name.endswith(("_bias", ".bias")) or start.dim() == 1:
        value = (1 if bool((start == 1).all()) else 0) + 0.2 * noise
    elif "embed_tokens" in name or "lm_head" in name:
        value = 0.3 * noise
    elif "conv1d" in name:
        value = 0.5 * noise
    elif is_router(name):
        value = 1.5 * noise / start.shape[1] ** 0.5
    elif start.dim() == 3 and "experts" in name:
        # [experts, out, in], but gpt_oss keeps [experts, in, out]; its weights are those MXFP4 can hold
        value = noise / start.shape[2] ** 0.5
        if key.startswith("gpt_oss"):
            value = mxfp4(value.transpose(1, 2))[2].transpose(1, 2)
    else:
        value = noise / start[0].numel() ** 0.5
    return value.to(torch.bfloat16).contiguous()


def is_router(name):
    return re.search(r"(mlp\.gate|mlp\.router|block_sparse_moe\.gate|router\.layer|\.router)\.weight$", name) is not None


FP4 = torch.tensor([0, .5, 1, 1.5, 2, 3, 4, 6, -0., -.5, -1, -1.5, -2, -3, -4, -6])


def mxfp4(weights):
    """Blocks of 32 along the last axis: (codes two to a byte, low first; exponents + 127; the values these stand for)."""
    blocks = weights.float().reshape(*weights.shape[:-1], -1, 32)
    exponent = torch.floor(torch.log2(blocks.abs().amax(-1, keepdim=True).clamp_min(2.0 ** -100))) - 2
    codes = (blocks / 2.0 ** exponent).unsqueeze(-1).sub(FP4).abs().argmin(-1).to(torch.uint8)
    values = (FP4[codes.long()] * 2.0 ** exponent).reshape(weights.shape)
    return codes[..., 0::2] | (codes[..., 1::2] << 4), (exponent.squeeze(-1) + 127).to(torch.uint8), values


def build(group):
    """The group's model in memory, in float32; its weights are drawn and such as bf16 holds."""
    with tempfile.TemporaryDirectory() as folder:
        (pathlib.Path(folder) / "config.json").write_text(json.dumps(GROUPS[group][0]))
        config = transformers.AutoConfig.from_pretrained(folder) if group != "qwen2_5_omni" else \
            transformers.Qwen2_5OmniThinkerConfig.from_pretrained(folder)
    for part in (config, *(getattr(config, name) for name in config.sub_configs)):
        part.dtype = torch.float32
    torch.manual_seed(0)
    model = model_class(group)(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(draw(group, name, parameter))
    return model.eval()


def model_class(group):
    return getattr(transformers, GROUPS[group][0]["architectures"][0])


def write(group, model, folder):
    """The model in the layout of one folder."""
    layout = GROUPS[group][1][folder.name]
    shutil.rmtree(folder, ignore_errors=True)
    halved = copy.deepcopy(model).to(torch.bfloat16)  # rounds the tables of the position encoding too
    for part in (halved.config, *(getattr(halved.config, name) for name in halved.config.sub_configs)):
        part.dtype = torch.bfloat16
    halved.save_pretrained(folder, save_original_format=layout != "fused")
    (folder / "generation_config.json").unlink(missing_ok=True)
    if layout in ("saved", "fused"):
        return
    hub, tensors = dict(GROUPS[group][0]), load_file(folder / "model.safetensors")
    if layout == "transposed":
        tensors = {n: t.transpose(1, 2) if ".mlp.experts." in n else t for n, t in tensors.items()}
    elif layout == "mxfp4":
        tensors = as_mxfp4(tensors)
        hub["quantization_config"] = dict(quant_method="mxfp4", modules_to_not_convert=[
            "model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"])
    elif layout == "omni":
        tensors = {f"thinker.{n}": t for n, t in tensors.items()} | talker_stand_ins(group)
        thinker = {k: v for k, v in hub.items() if k not in ("architectures", "torch_dtype", "tie_word_embeddings")}
        hub = dict(architectures=["Qwen2_5OmniModel"], model_type="qwen2_5_omni", torch_dtype="bfloat16",
                   enable_audio_output=True, enable_talker=True, thinker_config=thinker,
                   talker_config=dict(model_type="qwen2_5_omni_talker", hidden_size=16, num_hidden_layers=1),
                   token2wav_config=dict(model_type="qwen2_5_omni_token2wav"))
    elif group == "qwen3_5_moe":
        tensors = stacked_experts(tensors)
    if group in ("qwen3_5", "qwen3_5_moe"):
        tensors |= next_token_head(group, hub["text_config"])
    (folder / "config.json").write_text(json.dumps(hub, indent=2) + "\n")
    tensors = {n: t.contiguous() for n, t in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def stacked_experts(tensors):
    """Experts of one layer in one tensor: gate rows above up rows."""
    out, layers = {}, {}
    for name, tensor in tensors.items():
        found = re.match(r"(.*\.mlp\.experts)\.(\d+)\.(\w+)_proj\.weight$", name)
        if found:
            layers.setdefault(found[1], {}).setdefault(int(found[2]), {})[found[3]] = tensor
        else:
            out[name] = tensor
    for prefix, experts in layers.items():
        ordered = [experts[e] for e in sorted(experts)]
        out[f"{prefix}.gate_up_proj"] = torch.stack([torch.cat([e["gate"], e["up"]]) for e in ordered])
        out[f"{prefix}.down_proj"] = torch.stack([e["down"] for e in ordered])
    return out


def as_mxfp4(tensors):
    out = {}
    for name, tensor in tensors.items():
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            out[f"{name}_blocks"], out[f"{name}_scales"], values = mxfp4(tensor.float().transpose(1, 2).contiguous())
            assert torch.equal(values.transpose(1, 2).to(torch.bfloat16), tensor), f"{name} is not what MXFP4 holds"
        else:
            out[name] = tensor
    return out


def bf16(group, shapes):
    return {n: (0.2 * seeded(f"{group}/{n}", s)).to(torch.bfloat16) for n, s in shapes.items()}


def next_token_head(group, c):
    """The multi-token-prediction layer that published checkpoints carry and transformers leaves out."""
    hidden, width, heads, kv = c["hidden_size"], c["head_dim"], c["num_attention_heads"], c["num_key_value_heads"]
    at = "mtp.layers.0"
    shapes = {"mtp.fc.weight": [hidden, 2 * hidden], "mtp.norm.weight": [hidden],
              "mtp.pre_fc_norm_embedding.weight": [hidden], "mtp.pre_fc_norm_hidden.weight": [hidden],
              f"{at}.input_layernorm.weight": [hidden], f"{at}.post_attention_layernorm.weight": [hidden],
              f"{at}.self_attn.q_proj.weight": [2 * heads * width, hidden],
              f"{at}.self_attn.k_proj.weight": [kv * width, hidden],
              f"{at}.self_attn.v_proj.weight": [kv * width, hidden],
              f"{at}.self_attn.o_proj.weight": [hidden, heads * width],
              f"{at}.self_attn.q_norm.weight": [width], f"{at}.self_attn.k_norm.weight": [width]}

    def feed_forward(prefix, inner):
        shapes.update({f"{prefix}.gate_proj.weight": [inner, hidden], f"{prefix}.up_proj.weight": [inner, hidden],
                       f"{prefix}.down_proj.weight": [hidden, inner]})

    if "num_experts" in c:
        shapes[f"{at}.mlp.gate.weight"] = [c["num_experts"], hidden]
        shapes[f"{at}.mlp.shared_expert_gate.weight"] = [1, hidden]
        feed_forward(f"{at}.mlp.shared_expert", c["shared_expert_intermediate_size"])
        for e in range(c["num_experts"]):
            feed_forward(f"{at}.mlp.experts.{e}", c["moe_intermediate_size"])
    else:
        feed_forward(f"{at}.mlp", c["intermediate_size"])
    return bf16(group, shapes)


def talker_stand_ins(group):
    """A few tensors under the names of the speech parts, which nothing here computes but everything must carry."""
    return bf16(group, {
        "talker.thinker_to_talker_proj.weight": [16, 32], "talker.thinker_to_talker_proj.bias": [16],
        "talker.codec_head.weight": [24, 16], "talker.model.embed_tokens.weight": [24, 32],
        "talker.model.layers.0.self_attn.q_proj.weight": [16, 16], "talker.model.norm.weight": [16],
        "token2wav.code2wav_bigvgan_model.conv_pre.weight": [8, 4, 3],
        "token2wav.code2wav_dit_model.text_embed.codec_embed.weight": [24, 8]})


def reopen(group, folder, dtype):
    """The folder as transformers reads it, and the tensors it did not find or did not want."""
    layout, kwargs = GROUPS[group][1][folder.name], {}
    if layout == "mxfp4":
        kwargs["quantization_config"] = transformers.Mxfp4Config(dequantize=True)
    if layout == "omni":
        kwargs["config"] = transformers.Qwen2_5OmniConfig.from_pretrained(folder).thinker_config
    model, info = model_class(group).from_pretrained(
        folder, dtype=dtype, attn_implementation="eager", output_loading_info=True, **kwargs)
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    assert not info["missing_keys"] and not info["mismatched_keys"], (folder.name, info)
    carried = ("mtp.", "talker.", "token2wav.")
    assert all(k.startswith(carried) for k in info["unexpected_keys"]), (folder.name, info)
    if group == "phimoe-longrope":
        use_long_factors(model)
    return model.eval()


def use_long_factors(model):
    """Past the original context phimoe rotates by its long factors. transformers 5.23 chooses these frequencies before
    each pass (`dynamic_rope_update`) but then computes the short ones anew; what it chose is used here instead."""
    for module in model.modules():
        if type(module).__name__ == "PhimoeRotaryEmbedding":
            factor = module.attention_scaling
            module.rope_init_fn = lambda config, *_, rotary=module, **__: (rotary.inv_freq, factor)
            original = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["longrope"]
            limit = module.config.rope_parameters["original_max_position_embeddings"]
            module.long_inv_freq = original(module.config, None, seq_len=limit + 1)[0]

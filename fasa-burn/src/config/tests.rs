use super::*;
use serde_json::json;

const NANO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/nano");

fn nano_json() -> Value {
    let text = std::fs::read_to_string(format!("{NANO}/config.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// nano's configuration with some fields replaced; a null removes the field.
fn with(changes: Value) -> Result<ModelConfig> {
    let mut config = nano_json();
    let object = config.as_object_mut().unwrap();
    for (name, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => object.remove(name),
            _ => object.insert(name.clone(), value.clone()),
        };
    }
    ModelConfig::from_json(config.to_string(), Path::new("m/config.json"))
}

#[test]
fn nano_reads_as_written() {
    let config = ModelConfig::read(NANO).unwrap();
    let expected = ModelConfig {
        vocab_size: 4096,
        hidden_size: 256,
        intermediate_size: 768,
        num_hidden_layers: 6,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 64,
        model_type: "llama",
        norm: Norm::Rms,
        norm_eps: 1e-5,
        norm_place: NormPlace::Before,
        qk_norm: None,
        activation: Activation::Silu,
        qkv_bias: false,
        output_bias: false,
        mlp_bias: false,
        parallel_residual: false,
        fused_projections: false,
        rope: RopeConfig {
            theta: 500_000.0,
            rotary_dim: 64,
            scaling: RopeScaling::Default,
            attention_factor: 1.0,
            bfloat16: false,
        },
        local_rope: None,
        unrotated_layers: vec![],
        sliding_window: None,
        sliding_layers: vec![],
        attention_scale: 0.125,
        attention_softcap: None,
        embedding_multiplier: 1.0,
        residual_multiplier: 1.0,
        logits_multiplier: 1.0,
        logits_softcap: None,
        max_position_embeddings: 8192,
        tie_word_embeddings: true,
        bos_token_id: Some(0),
        eos_token_ids: vec![0],
    };
    assert_eq!(config, expected);
    assert_eq!(config.num_key_value_groups(), 2);
    assert_eq!(config.query_multiplier(), 1.0);
    assert_eq!(config.layer_rope(5), Some(&config.rope));
}

#[test]
fn absent_fields_take_the_defaults_of_transformers() {
    let config = with(json!({
        "num_key_value_heads": null, "head_dim": null, "rope_theta": null, "tie_word_embeddings": null,
        "bos_token_id": null, "eos_token_id": null, "hidden_act": null, "attention_bias": null,
        "mlp_bias": null, "rope_scaling": null,
    }))
    .unwrap();
    assert_eq!(config.num_key_value_heads, 4);
    assert_eq!(config.head_dim, 64);
    assert_eq!(config.rope.theta, 10_000.0);
    assert!(!config.tie_word_embeddings);
    assert_eq!(config.bos_token_id, None);
    assert!(config.eos_token_ids.is_empty());
}

#[test]
fn several_end_tokens() {
    let config = with(json!({"eos_token_id": [9, 3, 9]})).unwrap();
    assert_eq!(config.eos_token_ids, [3, 9]);
}

#[test]
fn either_naming_of_the_architecture_will_do() {
    assert!(with(json!({"architectures": null})).is_ok());
    assert!(with(json!({"model_type": null})).is_ok());
}

#[test]
fn both_rope_spellings() {
    let default = json!({"rope_type": "default", "rope_theta": 1e4});
    let cases = [
        (json!({"rope_theta": null, "rope_parameters": default}), 1e4),
        (json!({"rope_theta": 1e4, "rope_parameters": default}), 1e4),
        (json!({"rope_parameters": {"rope_type": "default"}}), 500_000.0),
        (json!({"rope_scaling": {"type": "default"}}), 500_000.0),
        (json!({"rope_scaling": {"rope_type": "default", "partial_rotary_factor": 1.0}}), 500_000.0),
    ];
    for (changes, theta) in cases {
        assert_eq!(with(changes.clone()).unwrap().rope.theta, theta, "{changes}");
    }
}

#[test]
fn what_is_not_implemented_is_refused_by_name() {
    let cases = [
        (json!({"model_type": "mamba"}), "`model_type` \"mamba\""),
        (json!({"model_type": "qwen3"}), "`architectures` LlamaForCausalLM"),
        (json!({"use_sliding_window": true}), "`use_sliding_window`"),
        (json!({"layer_types": vec!["sliding_attention"; 6]}), "`layer_types` \"sliding_attention\""),
        (json!({"layer_types": vec!["chunked_attention"; 6]}), "`layer_types` \"chunked_attention\""),
        (json!({"architectures": ["LlamaModel"]}), "`architectures` LlamaModel"),
        (json!({"model_type": null, "architectures": ["MixtralForCausalLM"]}), "MixtralForCausalLM"),
        (json!({"use_bidirectional_attention": true}), "`use_bidirectional_attention`"),
        (json!({"hidden_act": "relu2"}), "`hidden_act` \"relu2\""),
        (json!({"pretraining_tp": 2}), "`pretraining_tp` 2"),
        (json!({"quantization_config": {"quant_method": "gptq"}}), "`quantization_config`"),
        (json!({"rope_scaling": {"type": "su", "factor": 2.0}}), "`rope_scaling.type` \"su\""),
        (
            json!({"rope_parameters": {"rope_type": "proportional", "rope_theta": 1e4}}),
            "`rope_parameters.rope_type` \"proportional\"",
        ),
        (json!({"rope_scaling": {"type": "dynamic", "factor": 2.0, "alpha": 3.0}}), "`rope_scaling.alpha`"),
        (json!({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}), "`rope_parameters.full_attention`"),
        (json!({"rope_parameters": {"rope_type": "default", "factor": 2.0}}), "`rope_parameters.factor`"),
        (json!({"rope_scaling": {"type": "default", "mrope_section": [16, 24, 24]}}), "`rope_scaling.mrope_section`"),
    ];
    for (changes, named) in cases {
        let error = with(changes.clone()).unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }), "{error:?}");
        let message = error.to_string();
        assert!(message.contains(named), "{changes}: {message}");
        assert!(message.contains("m/config.json"), "{message}");
    }
    let message = with(json!({"model_type": "mamba"})).unwrap_err().to_string();
    assert!(message.contains("LlamaForCausalLM"), "{message}");
}

#[test]
fn wrong_fields_are_named() {
    let cases = [
        (json!({"vocab_size": null}), "vocab_size"),
        (json!({"vocab_size": 0}), "vocab_size"),
        (json!({"vocab_size": "4096"}), "vocab_size"),
        (json!({"vocab_size": 4096.0}), "vocab_size"),
        (json!({"vocab_size": u64::MAX}), "vocab_size"),
        (json!({"hidden_size": -256}), "hidden_size"),
        (json!({"hidden_size": 1u64 << 40}), "hidden_size"),
        (json!({"intermediate_size": null}), "intermediate_size"),
        (json!({"num_hidden_layers": 1_000_000}), "num_hidden_layers"),
        (json!({"num_attention_heads": true}), "num_attention_heads"),
        (json!({"num_key_value_heads": 3}), "num_key_value_heads"),
        (json!({"num_key_value_heads": 8}), "num_key_value_heads"),
        (json!({"head_dim": 63}), "head_dim"),
        (json!({"head_dim": 2048}), "head_dim"),
        (json!({"head_dim": null, "hidden_size": 255}), "head_dim"),
        (json!({"head_dim": null, "hidden_size": 8192}), "head_dim"),
        (json!({"rms_norm_eps": 0.0}), "rms_norm_eps"),
        (json!({"rms_norm_eps": -1e-5}), "rms_norm_eps"),
        (json!({"rms_norm_eps": 1e-300}), "rms_norm_eps"),
        (json!({"rms_norm_eps": null}), "rms_norm_eps"),
        (json!({"rope_theta": 1e300}), "rope_theta"),
        (json!({"rope_theta": "big"}), "rope_theta"),
        (
            json!({"rope_theta": 1e4, "rope_parameters": {"rope_type": "default", "rope_theta": 1e5}}),
            "rope_parameters.rope_theta",
        ),
        (json!({"rope_parameters": []}), "rope_parameters"),
        (json!({"partial_rotary_factor": 0.001}), "partial_rotary_factor"),
        (json!({"partial_rotary_factor": 1.5}), "partial_rotary_factor"),
        (json!({"rope_scaling": {"type": "linear"}}), "rope_scaling.factor"),
        (json!({"rope_scaling": {"type": "dynamic"}}), "rope_scaling.factor"),
        (json!({"rope_scaling": {"type": "longrope", "long_factor": [1.0]}}), "rope_scaling.short_factor"),
        (json!({"rope_scaling": {"type": "longrope", "short_factor": vec![1.0; 32]}}), "rope_scaling.long_factor"),
        (
            json!({"rope_scaling": {"type": "longrope", "short_factor": vec![0.0; 32], "long_factor": vec![1.0; 32]}}),
            "rope_scaling.short_factor",
        ),
        (
            json!({"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_type": "default"}}),
            "rope_scaling",
        ),
        (json!({"rope_scaling": {"type": 3}}), "rope_scaling.type"),
        (json!({"max_position_embeddings": null}), "max_position_embeddings"),
        (json!({"layer_types": ["full_attention"]}), "layer_types"),
        (json!({"tie_word_embeddings": 1}), "tie_word_embeddings"),
        (json!({"attention_bias": "no"}), "attention_bias"),
        (json!({"bos_token_id": -1}), "bos_token_id"),
        (json!({"bos_token_id": [0]}), "bos_token_id"),
        (json!({"eos_token_id": -1}), "eos_token_id"),
        (json!({"eos_token_id": [0, "x"]}), "eos_token_id"),
        (json!({"hidden_act": 7}), "hidden_act"),
        (json!({"architectures": "LlamaForCausalLM"}), "architectures"),
        (json!({"architectures": null, "model_type": null}), "model_type"),
        (json!({"model_type": ["llama"]}), "model_type"),
    ];
    for (changes, named) in cases {
        let error = with(changes.clone()).unwrap_err();
        match &error {
            Error::Config { field, .. } => assert_eq!(field, named, "{changes}: {error}"),
            other => panic!("{changes}: {other:?}"),
        }
    }
}

/// The configuration of a family with six layers, heads of 64 dimensions and 8,192 positions.
fn family(name: &str, class: &str, changes: Value) -> Result<ModelConfig> {
    let mut all = json!({"model_type": name, "architectures": [class], "rope_theta": null, "tie_word_embeddings": null,
        "layer_norm_eps": 1e-5});
    all.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    with(all)
}

#[test]
fn sliding_windows() {
    let (sliding, full) = ("sliding_attention", "full_attention");
    let cases = [
        ("mistral", "Mistral", json!({"sliding_window": 48}), Some(48), vec![1; 6]),
        ("mistral", "Mistral", json!({}), Some(4096), vec![1; 6]),
        ("qwen2", "Qwen2", json!({"sliding_window": 48, "max_window_layers": 4}), None, vec![]),
        (
            "qwen2",
            "Qwen2",
            json!({"use_sliding_window": true, "sliding_window": 48, "max_window_layers": 4}),
            Some(48),
            vec![0, 0, 0, 0, 1, 1],
        ),
        ("qwen3", "Qwen3", json!({"use_sliding_window": true, "max_window_layers": 0}), Some(4096), vec![1; 6]),
        ("gemma2", "Gemma2", json!({}), Some(4096), vec![1, 0, 1, 0, 1, 0]),
        ("gemma3_text", "Gemma3", json!({"sliding_window": 512}), Some(512), vec![1, 1, 1, 1, 1, 0]),
        (
            "gemma3_text",
            "Gemma3",
            json!({"sliding_window": 512, "sliding_window_pattern": 3}),
            Some(512),
            vec![1, 1, 0, 1, 1, 0],
        ),
        (
            "gemma3_text",
            "Gemma3",
            json!({"layer_types": [full, full, sliding, full, full, full]}),
            Some(4096),
            vec![0, 0, 1, 0, 0, 0],
        ),
        ("gemma2", "Gemma2", json!({"layer_types": vec![full; 6]}), None, vec![]),
        (
            "smollm3",
            "SmolLM3",
            json!({"use_sliding_window": true, "sliding_window": 48}),
            Some(48),
            vec![0, 0, 0, 1, 0, 0],
        ),
        ("smollm3", "SmolLM3", json!({"sliding_window": 48}), None, vec![]),
        ("phi3", "Phi3", json!({"sliding_window": 2047}), Some(2047), vec![1; 6]),
        ("phi3", "Phi3", json!({}), None, vec![]),
        ("phi3", "Phi3", json!({"sliding_window": 8192}), None, vec![]),
    ];
    for (name, class, changes, window, layers) in cases {
        let config = family(name, &format!("{class}ForCausalLM"), changes.clone()).unwrap();
        assert_eq!((config.sliding_window, &config.sliding_layers), (window, &layers), "{name} {changes}");
        for layer in 0..6 {
            assert_eq!(config.window(layer), window.filter(|_| layers.get(layer) == Some(&1)), "{name} {changes}");
        }
    }
    let error = family("qwen2", "Qwen2ForCausalLM", json!({"layer_types": vec![sliding; 6]})).unwrap_err();
    assert!(matches!(&error, Error::Config { field, .. } if field == "layer_types"), "{error}");
    // A null turns the window off where an absent field has a default.
    let mut json = nano_json();
    for (field, value) in [
        ("model_type", json!("mistral")),
        ("architectures", json!(["MistralForCausalLM"])),
        ("sliding_window", Value::Null),
    ] {
        json[field] = value;
    }
    let config = ModelConfig::from_json(json.to_string(), Path::new("m/config.json")).unwrap();
    assert_eq!(config.sliding_window, None);
}

#[test]
fn choices_of_families() {
    let gemma = family("gemma2", "Gemma2ForCausalLM", json!({"query_pre_attn_scalar": 144})).unwrap();
    assert_eq!((gemma.norm, gemma.norm_place), (Norm::RmsPlusOne, NormPlace::Around));
    assert_eq!((gemma.attention_softcap, gemma.logits_softcap), (Some(50.0), Some(30.0)));
    assert_eq!((gemma.embedding_multiplier, gemma.query_multiplier()), (16.0, 8.0 / 12.0));
    assert!(gemma.tie_word_embeddings && gemma.activation == Activation::GeluTanh);

    let gemma = family("gemma3_text", "Gemma3ForCausalLM", json!({})).unwrap();
    assert_eq!((gemma.attention_softcap, gemma.qk_norm), (None, Some(QkNorm::Head)));
    let thetas = [0, 5].map(|layer| gemma.layer_rope(layer).unwrap().theta);
    assert_eq!(thetas, [1e4, 1e6]);

    let stable = family("stablelm", "StableLmForCausalLM", json!({"qk_layernorm": true})).unwrap();
    assert_eq!((stable.norm, stable.qk_norm, stable.rope.rotary_dim), (Norm::Layer, Some(QkNorm::EachHead), 16));
    assert_eq!(family("stablelm", "StableLmForCausalLM", json!({})).unwrap().qk_norm, None);

    let numbers = json!({"attention_multiplier": 0.5, "embedding_multiplier": 12, "logits_scaling": 8.0,
        "residual_multiplier": 0.25, "attention_bias": true, "mlp_bias": true});
    let granite = family("granite", "GraniteForCausalLM", numbers).unwrap();
    assert_eq!((granite.query_multiplier(), granite.embedding_multiplier), (4.0, 12.0));
    assert_eq!((granite.logits_multiplier, granite.residual_multiplier), (0.125, 0.25));
    assert!(granite.qkv_bias && granite.output_bias && granite.mlp_bias);

    let llama = with(json!({"attention_bias": true, "hidden_act": "gelu"})).unwrap();
    assert!(llama.qkv_bias && llama.output_bias && !llama.mlp_bias && llama.activation == Activation::Gelu);
}

#[test]
fn frequencies_that_follow_the_length() {
    let dynamic = with(json!({"rope_scaling": {"type": "dynamic", "factor": 2.0}})).unwrap().rope;
    assert_eq!(dynamic.frequencies(1), dynamic.frequencies(8192));
    assert!(!dynamic.changes_at(8192) && dynamic.changes_at(8193) && dynamic.changes_at(10_000));
    // The base times (2 * 2 - 1)^(64 / 62).
    let (first, last) = (dynamic.frequencies(16_384), dynamic.theta * 3f64.powf(64.0 / 62.0));
    assert!((first[31] / last.powf(-62.0 / 64.0) - 1.0).abs() < 1e-12);

    let lists = json!({"type": "longrope", "short_factor": vec![1.0; 32], "long_factor": vec![4.0; 32]});
    let long = with(json!({"rope_scaling": lists, "original_max_position_embeddings": 1024})).unwrap().rope;
    assert_eq!(long.frequencies(1024)[3], 4.0 * long.frequencies(1025)[3]);
    assert!(long.changes_at(1025) && !long.changes_at(1024) && !long.changes_at(1026));
    assert_eq!(long.attention_factor, (1.0f64 + 8f64.ln() / 1024f64.ln()).sqrt());
}

#[test]
fn files_that_are_no_object_are_errors() {
    let path = Path::new("m/config.json");
    let text = std::fs::read_to_string(format!("{NANO}/config.json")).unwrap();
    for length in 0..text.len() {
        let error = ModelConfig::from_json(&text[..length], path).unwrap_err();
        assert!(error.to_string().contains("m/config.json"), "{error}");
    }
    for json in ["[]", "null", "3", "\u{feff}{}", &"[".repeat(100_000)] {
        assert!(ModelConfig::from_json(json, path).is_err());
    }
    assert!(matches!(ModelConfig::read(Path::new(NANO).join("absent")), Err(Error::Io { .. })));
}

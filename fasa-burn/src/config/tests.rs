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
        rms_norm_eps: 1e-5,
        model_type: "llama",
        rope: RopeConfig {
            theta: 500_000.0,
            rotary_dim: 64,
            scaling: RopeScaling::Default,
            attention_factor: 1.0,
            bfloat16: false,
        },
        unrotated_layers: vec![],
        qkv_bias: false,
        qk_norm: false,
        fused_projections: false,
        max_position_embeddings: 8192,
        tie_word_embeddings: true,
        bos_token_id: Some(0),
        eos_token_ids: vec![0],
    };
    assert_eq!(config, expected);
    assert_eq!(config.num_key_value_groups(), 2);
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
        (json!({"layer_types": ["sliding_attention"]}), "`layer_types` \"sliding_attention\""),
        (json!({"architectures": ["LlamaModel"]}), "`architectures` LlamaModel"),
        (json!({"model_type": null, "architectures": ["MistralForCausalLM"]}), "MistralForCausalLM"),
        (json!({"attention_bias": true}), "`attention_bias`"),
        (json!({"mlp_bias": true}), "`mlp_bias`"),
        (json!({"hidden_act": "gelu"}), "`hidden_act` \"gelu\""),
        (json!({"pretraining_tp": 2}), "`pretraining_tp` 2"),
        (json!({"quantization_config": {"quant_method": "gptq"}}), "`quantization_config`"),
        (json!({"rope_scaling": {"type": "dynamic", "factor": 2.0}}), "`rope_scaling.type` \"dynamic\""),
        (
            json!({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}),
            "`rope_parameters.rope_type` \"longrope\"",
        ),
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
        (json!({"rope_scaling": {"type": "yarn", "factor": 2.0}}), "rope_scaling.original_max_position_embeddings"),
        (
            json!({"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_type": "default"}}),
            "rope_scaling",
        ),
        (json!({"rope_scaling": {"type": 3}}), "rope_scaling.type"),
        (json!({"max_position_embeddings": null}), "max_position_embeddings"),
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

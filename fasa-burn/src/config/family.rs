//! What the supported families are made of: one row of choices each, for the one decoder that computes all of them.

use super::choices::{Activation, Attending, Norm, NormPlace, QkNorm};

/// Whether something is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Presence {
    Never,
    Always,
    /// If the file says so under this name.
    Field(&'static str),
}

/// Which layers have a sliding window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Windows {
    /// None: a file that asks for one is refused.
    None,
    /// All, where `sliding_window` is a number; if the field is absent, this one.
    Every(Option<usize>),
    /// Where `layer_types` says so, else all but every n-th; n is `sliding_window_pattern`, if that is absent, this one.
    AllBut(usize),
    /// If `use_sliding_window`: where `layer_types` says so, else from `max_window_layers` on.
    Upper,
    /// If `use_sliding_window`: where `layer_types` says so, else those without rotary positions.
    Unrotated,
}

/// Whether something is capped.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Cap {
    /// Not at all, whatever the file says.
    Never,
    /// As the file says; like this if it says nothing.
    Given(Option<f64>),
}

/// One family. Names and defaults are those of its configuration class in `transformers`.
#[derive(Debug)]
pub(super) struct Family {
    /// `model_type`.
    pub name: &'static str,
    /// The class in `architectures`.
    pub class: &'static str,
    pub norm: Norm,
    /// The field with what is added inside norms.
    pub norm_eps: &'static str,
    pub place: NormPlace,
    pub qk_norm: Option<QkNorm>,
    /// Whether [`Family::qk_norm`] is there.
    pub has_qk_norm: Presence,
    /// The field with the activation, and the activation if it is absent.
    pub activation: (&'static str, Activation),
    pub qkv_bias: Presence,
    pub output_bias: Presence,
    pub mlp_bias: Presence,
    pub parallel_residual: Presence,
    /// Projections that read the same input are stored as one matrix.
    pub fused: bool,
    pub windows: Windows,
    /// Layers with a window have rotary positions of their own, under `rope_local_base_freq` or in `rope_parameters`.
    pub local_rope: bool,
    /// Some layers have no rotary positions: `no_rope_layers`.
    pub unrotated: bool,
    /// The field that the scores' scale comes from.
    pub attending: Attending,
    /// The embedding is multiplied by the root of its width.
    pub embedding_root: bool,
    /// `embedding_multiplier`, `residual_multiplier` and `logits_scaling` count.
    pub multipliers: bool,
    /// `attn_logit_softcapping`.
    pub attention_softcap: Cap,
    /// `final_logit_softcapping`.
    pub logits_softcap: Cap,
    // Defaults of fields that are absent.
    pub tied: bool,
    pub head_dim: Option<usize>,
    pub theta: f64,
    pub rotary_share: f64,
}

/// Llama, which all others are said to differ from.
const LLAMA: Family = Family {
    name: "llama",
    class: "LlamaForCausalLM",
    norm: Norm::Rms,
    norm_eps: "rms_norm_eps",
    place: NormPlace::Before,
    qk_norm: None,
    has_qk_norm: Presence::Always,
    activation: ("hidden_act", Activation::Silu),
    qkv_bias: Presence::Field("attention_bias"),
    output_bias: Presence::Field("attention_bias"),
    mlp_bias: Presence::Field("mlp_bias"),
    parallel_residual: Presence::Never,
    fused: false,
    windows: Windows::None,
    local_rope: false,
    unrotated: false,
    attending: Attending::HeadDim,
    embedding_root: false,
    multipliers: false,
    attention_softcap: Cap::Never,
    logits_softcap: Cap::Never,
    tied: false,
    head_dim: None,
    theta: 10_000.0,
    rotary_share: 1.0,
};

const GEMMA2: Family = Family {
    name: "gemma2",
    class: "Gemma2ForCausalLM",
    norm: Norm::RmsPlusOne,
    place: NormPlace::Around,
    activation: ("hidden_activation", Activation::GeluTanh),
    mlp_bias: Presence::Never,
    windows: Windows::AllBut(2),
    attending: Attending::PreScalar,
    embedding_root: true,
    attention_softcap: Cap::Given(Some(50.0)),
    logits_softcap: Cap::Given(Some(30.0)),
    tied: true,
    head_dim: Some(256),
    ..LLAMA
};

pub(super) const FAMILIES: [Family; 11] = [
    LLAMA,
    Family {
        name: "mistral",
        class: "MistralForCausalLM",
        qkv_bias: Presence::Never,
        output_bias: Presence::Never,
        mlp_bias: Presence::Never,
        windows: Windows::Every(Some(4096)),
        ..LLAMA
    },
    Family {
        name: "qwen2",
        class: "Qwen2ForCausalLM",
        qkv_bias: Presence::Always,
        output_bias: Presence::Never,
        mlp_bias: Presence::Never,
        windows: Windows::Upper,
        ..LLAMA
    },
    Family {
        name: "qwen3",
        class: "Qwen3ForCausalLM",
        qk_norm: Some(QkNorm::Head),
        mlp_bias: Presence::Never,
        windows: Windows::Upper,
        head_dim: Some(128),
        ..LLAMA
    },
    Family {
        name: "phi3",
        class: "Phi3ForCausalLM",
        qkv_bias: Presence::Never,
        output_bias: Presence::Never,
        mlp_bias: Presence::Never,
        fused: true,
        windows: Windows::Every(None),
        ..LLAMA
    },
    Family {
        name: "smollm3",
        class: "SmolLM3ForCausalLM",
        windows: Windows::Unrotated,
        unrotated: true,
        tied: true,
        theta: 2_000_000.0,
        ..LLAMA
    },
    GEMMA2,
    Family {
        name: "gemma3_text",
        class: "Gemma3ForCausalLM",
        qk_norm: Some(QkNorm::Head),
        windows: Windows::AllBut(6),
        local_rope: true,
        // The class has the field, its attention does not look at it.
        attention_softcap: Cap::Never,
        logits_softcap: Cap::Given(None),
        theta: 1_000_000.0,
        ..GEMMA2
    },
    Family {
        name: "olmo2",
        class: "Olmo2ForCausalLM",
        place: NormPlace::After,
        qk_norm: Some(QkNorm::Projection),
        mlp_bias: Presence::Never,
        ..LLAMA
    },
    Family {
        name: "stablelm",
        class: "StableLmForCausalLM",
        norm: Norm::Layer,
        norm_eps: "layer_norm_eps",
        qk_norm: Some(QkNorm::EachHead),
        has_qk_norm: Presence::Field("qk_layernorm"),
        qkv_bias: Presence::Field("use_qkv_bias"),
        output_bias: Presence::Never,
        mlp_bias: Presence::Never,
        parallel_residual: Presence::Field("use_parallel_residual"),
        rotary_share: 0.25,
        ..LLAMA
    },
    Family {
        name: "granite",
        class: "GraniteForCausalLM",
        attending: Attending::Multiplier,
        multipliers: true,
        ..LLAMA
    },
];

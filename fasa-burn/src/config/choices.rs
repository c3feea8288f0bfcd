//! What decoders differ in.

/// What a norm computes. Its weight is `w`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Norm {
    /// Root mean square: `x / sqrt(mean(x²) + eps) * w`.
    Rms,
    /// The same, times `1 + w`: Gemma.
    RmsPlusOne,
    /// Mean and variance, with a bias: `(x - mean(x)) / sqrt(var(x) + eps) * w + b`.
    Layer,
}

/// Where the norms of attention and feed-forward block are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum NormPlace {
    /// Before the block: `x + block(norm(x))`.
    Before,
    /// Behind it: `x + norm(block(x))`.
    After,
    /// Both: `x + norm(block(norm(x)))`.
    Around,
}

/// What queries and keys go through before they are turned. Root mean square norms are those of [`Norm`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum QkNorm {
    /// Each head through the root mean square norm that all heads share.
    Head,
    /// All query heads as one through a root mean square norm, and all key heads.
    Projection,
    /// Each head through a layer norm of its own, without bias.
    EachHead,
}

/// What is between the projections of the feed-forward block: `activation(gate) * up`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Activation {
    /// `x / (1 + e^-x)`.
    Silu,
    /// With the error function.
    Gelu,
    /// With the hyperbolic tangent.
    GeluTanh,
}

impl Activation {
    /// By the names that `transformers` has for them.
    pub(super) fn named(name: &str) -> Option<Self> {
        match name {
            "silu" | "swish" => Some(Self::Silu),
            "gelu" => Some(Self::Gelu),
            "gelu_pytorch_tanh" | "gelu_new" => Some(Self::GeluTanh),
            _ => None,
        }
    }
}

/// What attention scores are multiplied by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Attending {
    /// The root of 1 / `head_dim`.
    HeadDim,
    /// The root of 1 / `query_pre_attn_scalar`, which is 256 if absent.
    PreScalar,
    /// `attention_multiplier`.
    Multiplier,
}

//! The model itself: tokens in, vectors out. Everything here blocks.

use candle_core::{Device, Module as _, Result, Tensor};
use candle_nn::Linear;
use candle_transformers::models::bert::BertModel;
use candle_transformers::models::xlm_roberta::XLMRobertaModel;
use tokenizers::Tokenizer;

use crate::domain::{BadVector, Embedding, Sparse};
use crate::providers::{ProviderError, normalize};

/// How the vectors of a text's tokens become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pooling {
    Mean,
    /// The vector of the first token.
    Cls,
}

/// The ids of one text's tokens.
pub(super) type Tokens = Vec<u32>;

/// The layers, by architecture.
pub(super) enum Layers {
    Bert(BertModel),
    XlmRoberta(XLMRobertaModel),
}

impl Layers {
    /// Texts × tokens × dimensions.
    fn forward(&self, ids: &Tensor, mask: &Tensor) -> Result<Tensor> {
        let types = ids.zeros_like()?;
        match self {
            Self::Bert(model) => model.forward(ids, &types, Some(mask)),
            Self::XlmRoberta(model) => model.forward(ids, mask, &types, None, None, None),
        }
    }
}

/// What gives each token its weight: BGE-M3's second head.
pub(super) struct Weights {
    pub(super) linear: Linear,
    /// Tokens that are no words.
    pub(super) special: Vec<u32>,
}

pub(super) struct Encoder {
    pub(super) layers: Layers,
    /// Cuts at the longest text, does not pad.
    pub(super) tokenizer: Tokenizer,
    pub(super) pooling: Pooling,
    pub(super) padding: u32,
    pub(super) weights: Option<Weights>,
}

impl Encoder {
    pub(super) fn tokenize(&self, texts: &[String]) -> std::result::Result<Vec<Tokens>, ProviderError> {
        texts.iter().map(|text| self.tokens(text)).collect()
    }

    /// The tokenizer's own words may quote the text, so they are not passed on.
    fn tokens(&self, text: &str) -> std::result::Result<Tokens, ProviderError> {
        let refused = |why: &str| ProviderError::Refused(why.to_owned());
        let encoding = self.tokenizer.encode_fast(text, true).map_err(|_| refused("the tokenizer cannot read it"))?;
        match encoding.get_ids() {
            [] => Err(refused("it has no tokens")),
            ids => Ok(ids.to_vec()),
        }
    }

    /// One pass. The batch is padded to its longest text; padding is masked and does not change the vectors.
    pub(super) fn embed(&self, batch: &[Tokens]) -> Result<Vec<std::result::Result<Embedding, BadVector>>> {
        let width = batch.iter().map(Vec::len).max().unwrap_or_default();
        let padded = |tokens: &Tokens, fill: u32| [tokens.clone(), vec![fill; width - tokens.len()]].concat();
        let ids: Vec<u32> = batch.iter().flat_map(|tokens| padded(tokens, self.padding)).collect();
        let mask: Vec<u32> = batch.iter().flat_map(|tokens| padded(&vec![1; tokens.len()], 0)).collect();

        let ids = Tensor::from_vec(ids, (batch.len(), width), &Device::Cpu)?;
        let mask = Tensor::from_vec(mask, (batch.len(), width), &Device::Cpu)?;
        let hidden = self.layers.forward(&ids, &mask)?;

        let mut vectors = self.pool(&hidden, &mask)?.to_vec2::<f32>()?;
        for vector in &mut vectors {
            normalize(vector);
        }
        let Some(weights) = &self.weights else {
            return Ok(vectors.into_iter().map(|vector| Ok(vector.into())).collect());
        };
        let of_tokens = weights.linear.forward(&hidden)?.relu()?.squeeze(2)?.to_vec2::<f32>()?;
        let embedding = |((vector, tokens), of_tokens): ((_, &Tokens), Vec<f32>)| {
            let sparse = weights.sparse(tokens, &of_tokens)?;
            Ok(Embedding { vector, sparse: Some(sparse) })
        };
        Ok(vectors.into_iter().zip(batch).zip(of_tokens).map(embedding).collect())
    }

    /// `hidden` is texts × tokens × dimensions. A mean is left as a sum, since only its direction is kept.
    fn pool(&self, hidden: &Tensor, mask: &Tensor) -> Result<Tensor> {
        match self.pooling {
            Pooling::Cls => hidden.narrow(1, 0, 1)?.squeeze(1),
            Pooling::Mean => hidden.broadcast_mul(&mask.to_dtype(hidden.dtype())?.unsqueeze(2)?)?.sum(1),
        }
    }
}

impl Weights {
    /// `of_tokens` goes on over the padding, which `tokens` does not have.
    fn sparse(&self, tokens: &Tokens, of_tokens: &[f32]) -> std::result::Result<Sparse, BadVector> {
        let words = tokens.iter().zip(of_tokens).filter(|(token, _)| !self.special.contains(token));
        Sparse::new(words.map(|(&token, &weight)| (token, weight)))
    }
}

//! What tokens cost.

use std::sync::Arc;

use llmproxy_core::{Cost, TokenUsage};
use serde::Deserialize;

use crate::Pattern;

/// What an operator may say about prices.
///
/// ```
/// use llmproxy_core::TokenUsage;
/// use llmproxy_metering::{Pattern, PriceConfig, Pricing, PricingConfig};
///
/// let price = PriceConfig { models: vec![Pattern::new("qwen*")], input: 0.15, cached_input: Some(0.05), output: 0.6 };
/// let pricing = Pricing::new(&PricingConfig { currency: "EUR".into(), models: vec![price] });
///
/// let usage = TokenUsage { prompt: 1_000_000, completion: 500_000, cached: Some(400_000), ..TokenUsage::default() };
/// let cost = pricing.cost(["qwen2.5-7b"], &usage).expect("there is a price for it");
/// assert_eq!(cost.amount(), 0.6 * 0.15 + 0.4 * 0.05 + 0.5 * 0.6);
/// ```
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct PricingConfig {
    /// What the prices are in; any text.
    pub currency: String,
    /// The prices. The first entry that has a pattern for a model counts.
    pub models: Vec<PriceConfig>,
}

/// The prices of some models, each for a million tokens.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct PriceConfig {
    /// Which models.
    pub models: Vec<Pattern>,
    /// Of a prompt's tokens.
    pub input: f64,
    /// Of those that the backend had cached; as the others where it is left out.
    pub cached_input: Option<f64>,
    /// Of an answer's tokens.
    pub output: f64,
}

/// Finds out what exchanges cost.
#[derive(Debug)]
pub struct Pricing {
    currency: Arc<str>,
    prices: Vec<Price>,
}

/// In trillionths of the currency's unit, for one token.
#[derive(Debug)]
struct Price {
    models: Vec<Pattern>,
    input: u64,
    cached_input: u64,
    output: u64,
}

// === impl PricingConfig ===

impl PricingConfig {
    /// US dollars, as everybody's price lists have it.
    pub const DEFAULT_CURRENCY: &str = "USD";
    /// A millionth of the unit for a million tokens: less is not told from 0.
    pub const MIN_PRICE: f64 = 0.000_001;
    /// A million tokens for a million of the unit: whoever writes more has missed the comma.
    pub const MAX_PRICE: f64 = 1_000_000.0;

    /// Everything that is wrong with the block: the key below `pricing`, and what is allowed.
    pub fn validate(&self) -> Vec<(String, String)> {
        let mut found = Vec::new();
        if self.currency.trim().is_empty() {
            found.push(("currency".into(), "must say what the prices are in, such as EUR".into()));
        }
        for (index, entry) in self.models.iter().enumerate() {
            if entry.models.is_empty() {
                let message = "must list the models that the price is for, such as [\"qwen*\"]";
                found.push((format!("models[{index}].models"), message.to_owned()));
            }
            if entry.models.iter().any(|model| model.as_str().is_empty()) {
                found.push((format!("models[{index}].models"), "a name is empty; write `*` for any model".to_owned()));
            }
            let prices =
                [("input", Some(entry.input)), ("cached_input", entry.cached_input), ("output", Some(entry.output))];
            for (key, price) in prices {
                if price.is_some_and(|price| price != 0.0 && !(Self::MIN_PRICE..=Self::MAX_PRICE).contains(&price)) {
                    let message = "must be the price of a million tokens: 0, or from 0.000001 to 1000000";
                    found.push((format!("models[{index}].{key}"), message.to_owned()));
                }
            }
        }
        found
    }
}

impl Default for PricingConfig {
    fn default() -> Self {
        Self { currency: Self::DEFAULT_CURRENCY.into(), models: Vec::new() }
    }
}

// === impl Pricing ===

impl Pricing {
    /// The price list that `config` is.
    pub fn new(config: &PricingConfig) -> Self {
        // A price in units for a million tokens is as many millionths for one, and a million times as many trillionths.
        let trillionths = |price: f64| (price * 1e6).round() as u64;
        let price = |entry: &PriceConfig| Price {
            models: entry.models.clone(),
            input: trillionths(entry.input),
            cached_input: trillionths(entry.cached_input.unwrap_or(entry.input)),
            output: trillionths(entry.output),
        };
        Self { currency: config.currency.as_str().into(), prices: config.models.iter().map(price).collect() }
    }

    /// What `usage` of a model costs that goes by these names, of which the first with a price counts. `None` where none has.
    pub fn cost<'a>(&self, names: impl IntoIterator<Item = &'a str>, usage: &TokenUsage) -> Option<Cost> {
        let of = |name| self.prices.iter().find(|price| price.models.iter().any(|model| model.matches(name)));
        let price = names.into_iter().find_map(of)?;
        let cached = usage.cached.unwrap_or(0).min(usage.prompt);
        let parts =
            [(usage.prompt - cached, price.input), (cached, price.cached_input), (usage.completion, price.output)];
        let sum = parts.into_iter().map(|(tokens, price)| tokens.saturating_mul(price)).fold(0, u64::saturating_add);
        Some(Cost { trillionths: sum, currency: self.currency.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(model: &str, input: f64, output: f64) -> PriceConfig {
        PriceConfig { models: vec![Pattern::new(model)], input, output, cached_input: None }
    }

    fn pricing(models: Vec<PriceConfig>) -> Pricing {
        Pricing::new(&PricingConfig { models, ..PricingConfig::default() })
    }

    fn usage(prompt: u64, completion: u64, cached: Option<u64>) -> TokenUsage {
        TokenUsage { prompt, completion, cached, reasoning: None }
    }

    #[test]
    fn the_first_name_with_a_price_counts_and_of_it_the_first_entry() {
        let pricing = pricing(vec![entry("big*", 2.0, 4.0), entry("*", 1.0, 1.0), entry("big", 9.0, 9.0)]);
        let of = |names: &[&str]| pricing.cost(names.iter().copied(), &usage(1, 1, None)).map(|cost| cost.trillionths);
        assert_eq!(of(&["big"]), Some(6_000_000));
        assert_eq!(of(&["alias", "big"]), Some(2_000_000));
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn a_model_without_a_price_has_no_cost() {
        assert_eq!(pricing(vec![entry("a", 1.0, 1.0)]).cost(["b"], &usage(1, 1, None)), None);
    }

    #[test]
    fn cached_tokens_cost_what_others_do_unless_there_is_a_price() {
        let mut entry = entry("m", 0.15, 0.6);
        let cost = |entry: &PriceConfig| {
            pricing(vec![entry.clone()]).cost(["m"], &usage(10, 3, Some(4))).map(|cost| cost.trillionths)
        };
        assert_eq!(cost(&entry), Some(10 * 150_000 + 3 * 600_000));
        entry.cached_input = Some(0.0);
        assert_eq!(cost(&entry), Some(6 * 150_000 + 3 * 600_000));
    }

    #[test]
    fn a_backend_that_says_nonsense_overflows_nothing() {
        let pricing = pricing(vec![entry("m", PricingConfig::MAX_PRICE, 1.0)]);
        let cost = pricing.cost(["m"], &usage(u64::MAX, u64::MAX, Some(u64::MAX))).unwrap();
        assert_eq!(cost.trillionths, u64::MAX);
    }

    #[test]
    fn what_is_no_price_is_refused_by_name() {
        let config = PricingConfig {
            currency: " ".into(),
            models: vec![PriceConfig::default(), entry("m", -1.0, f64::NAN), entry("", 1e-7, 0.0)],
        };
        let keys: Vec<String> = config.validate().into_iter().map(|(key, _)| key).collect();
        assert_eq!(
            keys,
            [
                "currency",
                "models[0].models",
                "models[1].input",
                "models[1].output",
                "models[2].models",
                "models[2].input"
            ]
        );
    }
}

//! Makes [`Balance`].

use std::sync::Arc;

use tower::Layer;

use crate::{Balance, Policy, Pool};

/// Sends each request to one of a pool's backends; see [`Balance`].
///
/// ```no_run
/// # fn example(pool: std::sync::Arc<llmproxy_balancer::Pool>) {
/// use http::{Request, Response};
/// use llmproxy_balancer::BalanceLayer;
/// use llmproxy_core::{BoxError, RequestBody, Target};
/// use tower::{ServiceBuilder, service_fn};
///
/// let service = ServiceBuilder::new().layer(BalanceLayer::new(pool)).service(service_fn(
///     async |request: Request<RequestBody>| {
///         let target = request.extensions().get::<Target>().expect("the balancer has picked one");
///         let text = format!("would ask {}", target.backend.name);
///         Ok::<_, BoxError>(Response::new(http_body_util::Full::new(bytes::Bytes::from(text))))
///     },
/// ));
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct BalanceLayer {
    pool: Arc<Pool>,
    policy: Arc<dyn Policy>,
}

// === impl BalanceLayer ===

impl BalanceLayer {
    /// Balances over `pool` as its configuration says.
    pub fn new(pool: Arc<Pool>) -> Self {
        let policy = pool.policy().clone();
        Self { pool, policy }
    }

    /// Lets `policy` choose instead of the configured strategy.
    pub fn with_policy(self, policy: Arc<dyn Policy>) -> Self {
        Self { policy, ..self }
    }
}

impl<S> Layer<S> for BalanceLayer {
    type Service = Balance<S>;

    fn layer(&self, inner: S) -> Balance<S> {
        Balance::new(inner, self.pool.clone(), self.policy.clone())
    }
}

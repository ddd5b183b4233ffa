//! Makes [`Balance`].

use std::sync::Arc;

use tower::Layer;

use crate::{Balance, Policy, Pool};

/// Sends each request to one of a pool's backends; see [`Balance`].
///
/// ```
/// use bytes::Bytes;
/// use http::{Request, Response};
/// use http_body_util::{BodyExt, Full};
/// use llmproxy_balancer::{BackendConfig, BalanceLayer, Balancer};
/// use llmproxy_core::{BoxError, HttpClient, RequestBody, Target};
/// use tower::{ServiceBuilder, ServiceExt, service_fn};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), BoxError> {
/// # let client = HttpClient::new(service_fn(async |_: Request<Bytes>| Ok::<_, BoxError>(Response::new(Bytes::new()))));
/// let (routing, health, queue) = Default::default();
/// let pool = Balancer::new(client).apply(&[BackendConfig::new("http://a:8000")], &routing, &health, &queue);
/// let service = ServiceBuilder::new().layer(BalanceLayer::new(pool)).service(service_fn(
///     async |request: Request<RequestBody>| {
///         let target = request.extensions().get::<Target>().expect("the balancer has picked one");
///         let text = format!("would ask {}", target.backend.name);
///         Ok::<_, BoxError>(Response::new(Full::new(Bytes::from(text))))
///     },
/// ));
/// let answer = service.oneshot(Request::new(RequestBody::whole("{}"))).await?;
/// assert_eq!(answer.into_body().collect().await?.to_bytes(), "would ask http://a:8000");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct BalanceLayer {
    pool: Arc<Pool>,
    policy: Option<Arc<dyn Policy>>,
}

// === impl BalanceLayer ===

impl BalanceLayer {
    /// Balances over `pool` as its configuration says.
    pub fn new(pool: Arc<Pool>) -> Self {
        Self { pool, policy: None }
    }

    /// Lets `policy` choose instead of every configured strategy. It is told of every backend of the pool that goes or comes
    /// back empty.
    pub fn with_policy(self, policy: Arc<dyn Policy>) -> Self {
        self.pool.add_policy(&policy);
        Self { policy: Some(policy), ..self }
    }
}

impl<S> Layer<S> for BalanceLayer {
    type Service = Balance<S>;

    fn layer(&self, inner: S) -> Balance<S> {
        Balance::new(inner, self.pool.clone(), self.policy.clone())
    }
}

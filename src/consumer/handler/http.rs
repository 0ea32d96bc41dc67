//! `http`: a POST per message, as a CloudEvent in binary mode, over connections that are kept.

mod answer;
mod request;

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::{Answer, Handle, reason};
use crate::config::group::HttpHandler;
use crate::domain::delivery::{Delivery, Outcome};
use crate::outside::SetupError;
use crate::outside::http::{self, Silence};

pub struct Poster {
    http: http::Poster,
    timeout: Duration,
    permanent_statuses: Option<BTreeSet<u16>>,
}

impl Poster {
    pub fn new(settings: &HttpHandler) -> Result<Self, SetupError> {
        let permanent_statuses = settings.permanent_statuses.clone();
        Ok(Self { http: http::Poster::new(settings)?, timeout: settings.timeout, permanent_statuses })
    }

    async fn post(&self, delivery: &Delivery) -> Outcome {
        let body = delivery.record.payload.clone().unwrap_or_default();
        let describe = |headers: &mut _| request::describe(delivery, headers);
        match self.http.post(body, describe, Instant::now() + self.timeout).await {
            Ok(http::Answer { status, headers, words }) => {
                let permanent = self.permanent_statuses.as_ref();
                answer::judge(status, permanent, &headers, &words, SystemTime::now())
            }
            Err(Silence::TimedOut) => reason::timed_out(self.timeout),
            Err(Silence::Failed(why)) => reason::retry(why),
        }
    }
}

impl Handle for Poster {
    fn handle<'a>(&'a self, delivery: &'a Delivery) -> Answer<'a> {
        Box::pin(self.post(delivery))
    }

    fn timeout(&self) -> Duration {
        self.timeout
    }
}

#[cfg(test)]
mod tests;

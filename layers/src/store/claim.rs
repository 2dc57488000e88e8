//! Claims: of several who want to fetch a layer, one does, and the others wait for it.
//!
//! A claim is the directory `staging/layer-<diffid hex>`, held as all directories there; it ends with
//! the process that holds it. Nothing relies on claims: two who fetch a layer at once do it twice.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::staging::Staging;
use super::{Store, StoreError};
use crate::digest::DiffId;

/// How often a claim of somebody else is looked at.
const PAUSE: Duration = Duration::from_millis(50);

/// A layer that nobody else fetches meanwhile, until it is dropped.
pub struct Claim {
    _staging: Staging,
}

impl Store {
    /// Waits until nobody else fetches a layer, and claims it; `None` if `stop` is set meanwhile.
    ///
    /// Who waits must hold no claim, so that two never wait for each other.
    pub(crate) fn claim_layer(
        &self,
        id: &DiffId,
        stop: &AtomicBool,
    ) -> Result<Option<Claim>, StoreError> {
        let (parent, name) = (self.root().join("staging"), format!("layer-{}", id.0.hex()));
        while !stop.load(Ordering::Relaxed) {
            if let Some(staging) = Staging::try_claim(&parent, &name)? {
                return Ok(Some(Claim { _staging: staging }));
            }
            std::thread::sleep(PAUSE);
        }
        Ok(None)
    }
}

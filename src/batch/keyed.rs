//! Drivers that hold one credential each, and which tenant's texts they are for.

use std::collections::HashMap;
use std::sync::Arc;

/// A driver with its credential.
pub struct Keyed<T: ?Sized> {
    /// A fingerprint of the secret.
    pub credential: String,
    /// Whose texts it is for; of the one for all others this is empty.
    pub tenants: Vec<String>,
    pub driver: Arc<T>,
}

/// One thing for each credential. Cheap to clone.
#[derive(Clone)]
pub(super) struct ByTenant<L> {
    others: L,
    own: Arc<[L]>,
    tenants: Arc<HashMap<String, usize>>,
}

impl<L> ByTenant<L> {
    /// Makes one for each driver that tenants have of their own, and one for all others.
    pub fn new<T: ?Sized>(others: Keyed<T>, own: Vec<Keyed<T>>, make: impl Fn(Keyed<T>) -> L) -> Self {
        let named = |(nth, keyed): (usize, &Keyed<T>)| {
            keyed.tenants.iter().map(move |tenant| (tenant.clone(), nth)).collect::<Vec<_>>()
        };
        let tenants = own.iter().enumerate().flat_map(named).collect();
        Self { others: make(others), own: own.into_iter().map(make).collect(), tenants: Arc::new(tenants) }
    }

    pub fn of(&self, tenant: &str) -> &L {
        self.tenants.get(tenant).map_or(&self.others, |&nth| &self.own[nth])
    }

    pub fn others(&self) -> &L {
        &self.others
    }

    pub fn all(&self) -> impl Iterator<Item = &L> {
        std::iter::once(&self.others).chain(self.own.iter())
    }
}

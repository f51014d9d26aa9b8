//! The settings that hold at one replica: the group's, once it has agreed on some and this replica has applied that;
//! before, those with which the replica was started.

use std::sync::{Arc, Mutex, PoisonError};

use crate::config::GroupConfig;

/// What holds now. The state has the truth; this is for threads that must not wait for the state.
pub(super) struct Agreed {
    started_with: Arc<GroupConfig>,
    now: Mutex<Arc<GroupConfig>>,
}

impl Agreed {
    /// Nothing is agreed.
    pub(super) fn new(started_with: GroupConfig) -> Self {
        let started_with = Arc::new(started_with);
        Self { now: Mutex::new(started_with.clone()), started_with }
    }

    pub(super) fn now(&self) -> Arc<GroupConfig> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// As the state says.
    pub(super) fn follow(&self, agreed: Option<&GroupConfig>) {
        let next = agreed.map_or_else(|| self.started_with.clone(), |agreed| Arc::new(agreed.clone()));
        *self.now.lock().unwrap_or_else(PoisonError::into_inner) = next;
    }
}

//! A watch channel that wakes its receivers in the order in which they began to wait. tokio's wakes them in an order
//! drawn from randomness that nobody can seed, so that a simulation over it would not repeat itself.

use std::sync::Arc;

use futures_util::FutureExt;
use openraft::async_runtime::watch::{RecvError, SendError, Watch, WatchReceiver, WatchSender};
use openraft::{OptionalSend, OptionalSync};
use tokio::sync::{Notify, watch};
use tokio::task::unconstrained;

pub(crate) struct OrderedWatch;

pub struct Sender<T> {
    /// None only while it is dropped.
    value: Option<watch::Sender<T>>,
    changed: Arc<Notify>,
}

pub struct Receiver<T> {
    value: watch::Receiver<T>,
    changed: Arc<Notify>,
}

impl<T> Sender<T> {
    fn value(&self) -> &watch::Sender<T> {
        self.value.as_ref().unwrap()
    }
}

impl<T> Sender<T> {
    pub(crate) fn new(value: T) -> Self {
        Self { value: Some(watch::Sender::new(value)), changed: Arc::default() }
    }

    pub(crate) fn subscribe(&self) -> Receiver<T> {
        Receiver { value: self.value().subscribe(), changed: self.changed.clone() }
    }

    pub(crate) fn borrow(&self) -> watch::Ref<'_, T> {
        self.value().borrow()
    }

    pub(crate) fn send_replace(&self, value: T) -> T {
        let before = self.value().send_replace(value);
        self.changed.notify_waiters();
        before
    }

    pub(crate) fn send_modify(&self, modify: impl FnOnce(&mut T)) {
        self.value().send_modify(modify);
        self.changed.notify_waiters();
    }
}

impl<T> Receiver<T> {
    pub(crate) fn borrow(&self) -> watch::Ref<'_, T> {
        self.value.borrow()
    }

    pub(crate) async fn changed(&mut self) -> Result<(), watch::error::RecvError> {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            // Unconstrained: a task that is to yield would be told that nothing has changed, and wait for ever.
            match unconstrained(self.value.changed()).now_or_never() {
                Some(seen) => return seen,
                None => changed.await,
            }
        }
    }

    pub(crate) async fn wait_for(
        &mut self,
        mut condition: impl FnMut(&T) -> bool,
    ) -> Result<watch::Ref<'_, T>, watch::error::RecvError> {
        while !condition(&self.value.borrow_and_update()) {
            self.changed().await?;
        }
        Ok(self.value.borrow())
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self { value: self.value.clone(), changed: self.changed.clone() }
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        Self { value: self.value.clone(), changed: self.changed.clone() }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        drop(self.value.take());
        self.changed.notify_waiters();
    }
}

impl Watch for OrderedWatch {
    type Sender<T: OptionalSend + OptionalSync> = Sender<T>;
    type Receiver<T: OptionalSend + OptionalSync> = Receiver<T>;
    type Ref<'a, T: OptionalSend + 'a> = watch::Ref<'a, T>;

    fn channel<T: OptionalSend + OptionalSync>(init: T) -> (Sender<T>, Receiver<T>) {
        let (sender, receiver) = watch::channel(init);
        let changed = Arc::new(Notify::new());
        let sender = Sender { value: Some(sender), changed: changed.clone() };
        (sender, Receiver { value: receiver, changed })
    }
}

impl<T: OptionalSend + OptionalSync> WatchSender<OrderedWatch, T> for Sender<T> {
    fn send(&self, value: T) -> Result<(), SendError<T>> {
        let sent = self.value().send(value).map_err(|error| SendError(error.0));
        self.changed.notify_waiters();
        sent
    }

    fn send_if_modified<F: FnOnce(&mut T) -> bool>(&self, modify: F) -> bool {
        let modified = self.value().send_if_modified(modify);
        if modified {
            self.changed.notify_waiters();
        }
        modified
    }

    fn borrow_watched(&self) -> watch::Ref<'_, T> {
        self.value().borrow()
    }

    fn subscribe(&self) -> Receiver<T> {
        Self::subscribe(self)
    }
}

impl<T: OptionalSend + OptionalSync> WatchReceiver<OrderedWatch, T> for Receiver<T> {
    async fn changed(&mut self) -> Result<(), RecvError> {
        Self::changed(self).await.map_err(|_| RecvError(()))
    }

    fn borrow_watched(&self) -> watch::Ref<'_, T> {
        self.value.borrow()
    }

    fn borrow_and_update(&mut self) -> watch::Ref<'_, T> {
        self.value.borrow_and_update()
    }
}

//! A watch channel that wakes its receivers in the order in which they began to wait. tokio's wakes them in an order
//! drawn from randomness that nobody can seed, so that a simulation over it would not repeat itself.

use std::sync::Arc;

use futures_util::FutureExt;
use openraft::async_runtime::watch::{RecvError, SendError, Watch, WatchReceiver, WatchSender};
use openraft::{OptionalSend, OptionalSync};
use tokio::sync::{Notify, watch};
use tokio::task::unconstrained;

pub(crate) struct OrderedWatch;

pub(crate) struct OrderedSender<T> {
    /// None only while it is dropped.
    value: Option<watch::Sender<T>>,
    changed: Arc<Notify>,
}

pub(crate) struct OrderedReceiver<T> {
    value: watch::Receiver<T>,
    changed: Arc<Notify>,
}

impl<T> OrderedSender<T> {
    fn value(&self) -> &watch::Sender<T> {
        self.value.as_ref().unwrap()
    }
}

impl<T> Clone for OrderedSender<T> {
    fn clone(&self) -> Self {
        Self { value: self.value.clone(), changed: self.changed.clone() }
    }
}

impl<T> Clone for OrderedReceiver<T> {
    fn clone(&self) -> Self {
        Self { value: self.value.clone(), changed: self.changed.clone() }
    }
}

impl<T> Drop for OrderedSender<T> {
    fn drop(&mut self) {
        drop(self.value.take());
        self.changed.notify_waiters();
    }
}

impl Watch for OrderedWatch {
    type Sender<T: OptionalSend + OptionalSync> = OrderedSender<T>;
    type Receiver<T: OptionalSend + OptionalSync> = OrderedReceiver<T>;
    type Ref<'a, T: OptionalSend + 'a> = watch::Ref<'a, T>;

    fn channel<T: OptionalSend + OptionalSync>(init: T) -> (OrderedSender<T>, OrderedReceiver<T>) {
        let (sender, receiver) = watch::channel(init);
        let changed = Arc::new(Notify::new());
        let sender = OrderedSender { value: Some(sender), changed: changed.clone() };
        (sender, OrderedReceiver { value: receiver, changed })
    }
}

impl<T: OptionalSend + OptionalSync> WatchSender<OrderedWatch, T> for OrderedSender<T> {
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

    fn subscribe(&self) -> OrderedReceiver<T> {
        OrderedReceiver { value: self.value().subscribe(), changed: self.changed.clone() }
    }
}

impl<T: OptionalSend + OptionalSync> WatchReceiver<OrderedWatch, T> for OrderedReceiver<T> {
    async fn changed(&mut self) -> Result<(), RecvError> {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            // Unconstrained: a task that is to yield would be told that nothing has changed, and wait for ever.
            match unconstrained(self.value.changed()).now_or_never() {
                Some(seen) => return seen.map_err(|_| RecvError(())),
                None => changed.await,
            }
        }
    }

    fn borrow_watched(&self) -> watch::Ref<'_, T> {
        self.value.borrow()
    }

    fn borrow_and_update(&mut self) -> watch::Ref<'_, T> {
        self.value.borrow_and_update()
    }
}

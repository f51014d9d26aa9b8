//! Work on many items by several threads, whose results are taken one after another in the items' order.
//!
//! ```text
//!   thread 0: item 0, item 3, ..  --one result-->  \
//!   thread 1: item 1, item 4, ..  --one result-->   > taken: 0, 1, 2, 3, ..
//!   thread 2: item 2, item 5, ..  --one result-->  /
//! ```
//!
//! A thread works on one item while one result of it waits: that bounds the memory.

use std::sync::mpsc;

/// Calls `work` for each item, with a buffer that is the thread's own, and `take` for each result in order. Ends at
/// the first error of `take`. With one thread, everything is done on the caller's.
pub(super) fn in_order<T: Sync, R: Send, E>(
    items: &[T],
    threads: usize,
    work: impl Fn(&T, &mut Vec<u8>) -> R + Sync,
    mut take: impl FnMut(&T, R) -> Result<(), E>,
) -> Result<(), E> {
    let count = threads.min(items.len());
    let work = &work;
    std::thread::scope(|scope| {
        let mut workers = Vec::new();
        for first in (0..count).filter(|_| count > 1) {
            let (result, results) = mpsc::sync_channel(1);
            let work_on = move || {
                let mut buffer = Vec::new();
                for item in items.iter().skip(first).step_by(count) {
                    if result.send(work(item, &mut buffer)).is_err() {
                        // Nobody takes it: an error has ended this.
                        return;
                    }
                }
            };
            let started = std::thread::Builder::new().name("wal-recovery".into()).spawn_scoped(scope, work_on);
            // Without a thread, its items are left to the caller's.
            workers.push(started.ok().map(|_| results));
        }
        let mut buffer = Vec::new();
        for (at, item) in items.iter().enumerate() {
            let worker = workers.get(at % count.max(1)).and_then(Option::as_ref);
            let result = worker.and_then(|results| results.recv().ok()).unwrap_or_else(|| work(item, &mut buffer));
            take(item, result)?;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_order_whatever_the_number_of_threads() {
        let items: Vec<u64> = (0..50).collect();
        for threads in [0, 1, 2, 3, 7, 100] {
            let mut taken = Vec::new();
            let work = |item: &u64, _: &mut Vec<u8>| {
                (0..item % 3 * 20).for_each(|_| std::thread::yield_now());
                item * item
            };
            let done: Result<(), ()> = in_order(&items, threads, work, |&item, square| {
                taken.push((item, square));
                Ok(())
            });
            assert_eq!(done, Ok(()));
            assert!(taken.iter().map(|&(item, _)| item).eq(0..50), "{threads} threads: {taken:?}");
            assert!(taken.iter().all(|&(item, square)| square == item * item));
        }
    }

    #[test]
    fn it_ends_at_the_first_error_and_no_thread_is_far_ahead() {
        let items: Vec<u64> = (0..1000).collect();
        let begun = std::sync::atomic::AtomicU64::new(0);
        let work = |item: &u64, _: &mut Vec<u8>| {
            begun.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            *item
        };
        let ended = in_order(&items, 3, work, |_, item| if item == 10 { Err(item) } else { Ok(()) });
        assert_eq!(ended, Err(10));
        // Eleven were taken; of each thread one waits, and one is being worked on.
        assert!(begun.into_inner() <= 11 + 3 * 2);
    }
}

//! One item ahead: while the caller works on an item, a background thread makes the next.

use std::sync::mpsc::sync_channel;

/// Calls `make(0)`, `make(1)` … on a thread of its own and `work` with each result, in order. At most two items exist
/// at a time: the one being worked on and the next.
///
/// # Errors
/// The first error of either; the other side stops after the item in hand.
pub fn one_ahead<T: Send, E: Send>(
    count: usize,
    make: impl Fn(usize) -> Result<T, E> + Send,
    mut work: impl FnMut(usize, T) -> Result<(), E>,
) -> Result<(), E> {
    std::thread::scope(|scope| {
        // No slot in the channel: the maker waits with a finished item in hand.
        let (sender, receiver) = sync_channel(0);
        scope.spawn(move || {
            for index in 0..count {
                let item = make(index);
                let failed = item.is_err();
                if sender.send(item).is_err() || failed {
                    return;
                }
            }
        });
        for (index, item) in receiver.iter().enumerate() {
            work(index, item?)?;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_arrive_in_order_and_an_error_ends_it() {
        let mut seen = Vec::new();
        let result = one_ahead(
            5,
            |i| if i == 3 { Err("three") } else { Ok(i * 10) },
            |i, item| {
                seen.push((i, item));
                Ok(())
            },
        );
        assert_eq!(result, Err("three"));
        assert_eq!(seen, [(0, 0), (1, 10), (2, 20)]);
    }

    #[test]
    fn an_error_of_the_worker_stops_the_maker() {
        let result = one_ahead(1000, Ok, |i, _: usize| if i == 1 { Err("enough") } else { Ok(()) });
        assert_eq!(result, Err("enough"));
    }
}

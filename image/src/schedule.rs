//! Running things that need each other's results, several at a time.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Condvar, Mutex};

/// What is known while things run.
struct State<T> {
    started: Vec<bool>,
    done: Vec<Option<T>>,
    failed: Option<anyhow::Error>,
}

/// Runs `work` once for each thing, at most `width` at the same time, and
/// returns the results in the order of the things. `needs[n]` lists the things
/// that must be done before thing `n`; it is told their results in that order.
/// Of those that are ready the first one starts first.
///
/// After a failure nothing new is started, and what runs is waited for.
///
/// # Errors
/// The first failure.
///
/// # Panics
/// When a thing needs itself or a later one.
pub fn run<T: Clone + Send>(
    needs: &[Vec<usize>],
    width: usize,
    work: impl Fn(usize, &[T]) -> anyhow::Result<T> + Sync,
) -> anyhow::Result<Vec<T>> {
    for (thing, needs) in needs.iter().enumerate() {
        assert!(needs.iter().all(|need| *need < thing), "a circle of needs");
    }
    let state = Mutex::new(State {
        started: vec![false; needs.len()],
        done: needs.iter().map(|_| None).collect::<Vec<Option<T>>>(),
        failed: None,
    });
    let changed = Condvar::new();
    let lock = || state.lock().expect("work runs outside of the lock");
    let worker = || {
        let mut state = lock();
        loop {
            if state.failed.is_some() || state.started.iter().all(|started| *started) {
                return;
            }
            let ready = (0..needs.len()).find(|thing| {
                !state.started[*thing] && needs[*thing].iter().all(|n| state.done[*n].is_some())
            });
            let Some(thing) = ready else {
                state = changed.wait(state).expect("work runs outside of the lock");
                continue;
            };
            state.started[thing] = true;
            let inputs: Vec<T> = needs[thing]
                .iter()
                .filter_map(|need| state.done[*need].clone())
                .collect();
            drop(state);
            // A panic must not leave the others waiting for its result.
            let result = catch_unwind(AssertUnwindSafe(|| work(thing, &inputs)))
                .unwrap_or_else(|_| Err(anyhow::anyhow!("panicked; this is a bug")));
            state = lock();
            match result {
                Ok(value) => state.done[thing] = Some(value),
                Err(error) => {
                    state.failed.get_or_insert(error);
                }
            }
            changed.notify_all();
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..width.clamp(1, needs.len().max(1)) {
            scope.spawn(worker);
        }
    });
    let state = state.into_inner().expect("work runs outside of the lock");
    match state.failed {
        Some(error) => Err(error),
        None => Ok(state.done.into_iter().flatten().collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn a_thing_starts_when_what_it_needs_is_done() {
        // 0 and 1 run at the same time: each waits for the other.
        let both = Barrier::new(2);
        let needs = [vec![], vec![], vec![1, 0], vec![2]];
        let made = run(&needs, 2, |thing, inputs: &[String]| {
            if thing < 2 {
                both.wait();
            }
            Ok(format!("{thing}({})", inputs.join(" ")))
        });
        assert_eq!(made.unwrap(), ["0()", "1()", "2(1() 0())", "3(2(1() 0()))"]);
    }

    #[test]
    fn after_a_failure_nothing_new_starts() {
        let begun = AtomicUsize::new(0);
        let needs: Vec<Vec<usize>> = (0..10usize)
            .map(|thing| thing.checked_sub(1).into_iter().collect())
            .collect();
        let result = run(&needs, 3, |thing, _: &[()]| {
            begun.fetch_add(1, Ordering::SeqCst);
            anyhow::ensure!(thing != 3, "thing {thing} failed");
            Ok(())
        });
        assert_eq!(result.unwrap_err().to_string(), "thing 3 failed");
        assert_eq!(begun.into_inner(), 4);
    }

    #[test]
    fn nothing_to_do_is_done() {
        let made = run(&[], 4, |_, _: &[u8]| Ok(1)).unwrap();
        assert!(made.is_empty());
    }
}

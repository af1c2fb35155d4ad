//! Births by the ten thousand, over a network that loses, doubles, reorders and delays,
//! beside another DHCP server, with a factory that stops at any moment and a clock
//! that jumps. See `docs/testing.md`.
//!
//! The factory's own code decides everything: the DHCP engine with its lease journal,
//! the TFTP transfers, the ledger, the verdicts. [`factory`] stands for the sockets and
//! calls around them, [`machine`] for firmware and installer, [`world`] for network,
//! power and operators, and judges.
//!
//! `LEAP_SIM_SEED` repeats a run, `LEAP_SIM_BIRTHS` says how many births: 20,000 if
//! not said, so that all tests together do not wait for it.

#![allow(clippy::unwrap_used, reason = "a simulation may fail loudly")]
#![allow(
    clippy::print_stderr,
    reason = "the seed is for whoever reads the test"
)]
#![allow(unreachable_pub, reason = "modules of one test")]

mod factory;
mod machine;
mod random;
mod world;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use random::Random;
use world::{Outcome, Violation, World};

/// What one world adds to the sum.
type Sum = Vec<(&'static str, u64)>;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name}: expected a number, not {text:?}")),
    )
}

fn tell(violation: &Violation, seed: u64) -> String {
    // The same world once more, this time told.
    let mut world = World::new(seed);
    world.log = Some(Vec::new());
    let again = world.run().expect_err("one seed is one story");
    assert_eq!(&again, violation, "one seed is one story");
    format!(
        "{}\n\nworld {seed:#x} (LEAP_SIM_SEED={seed} LEAP_SIM_BIRTHS=1), {:.3} s, machine {:?}; \
         its last steps:\n{}",
        violation.what,
        world::seconds(violation.time),
        violation.machine,
        world.last_steps(violation.machine, 60),
    )
}

#[test]
fn births_keep_every_promise_however_much_goes_wrong() {
    let seed = number("LEAP_SIM_SEED").unwrap_or_else(Random::any_seed);
    let births = number("LEAP_SIM_BIRTHS").unwrap_or(20_000);
    eprintln!("LEAP_SIM_SEED={seed} LEAP_SIM_BIRTHS={births}");
    let (next, done) = (AtomicU64::new(0), AtomicU64::new(0));
    let sum: Mutex<Sum> = Mutex::default();
    let failed: Mutex<Option<(u64, Violation)>> = Mutex::default();
    let work = || {
        while done.load(Ordering::Relaxed) < births && failed.lock().unwrap().is_none() {
            let world = seed.wrapping_add(next.fetch_add(1, Ordering::Relaxed));
            match World::new(world).run() {
                Ok(Outcome { births, counts }) => {
                    done.fetch_add(births, Ordering::Relaxed);
                    let mut sum = sum.lock().unwrap();
                    for (name, count) in counts {
                        match sum.iter_mut().find(|(known, _)| *known == name) {
                            Some((_, all)) => *all += count,
                            None => sum.push((name, count)),
                        }
                    }
                }
                Err(violation) => *failed.lock().unwrap() = Some((world, violation)),
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(work);
        }
    });
    if let Some((world, violation)) = failed.into_inner().unwrap() {
        panic!("{}", tell(&violation, world));
    }
    let sum = sum.into_inner().unwrap();
    eprintln!("{} births: {sum:?}", done.into_inner());
    // A simulation in which nothing goes wrong proves nothing.
    if births >= 1_000 {
        for what in [
            "crash",
            "torn line",
            "clock jump",
            "power cut",
            "rogue address",
            "address in use",
            "lost",
            "doubled",
            "refused",
            "invited",
            "uninvited",
            "tftp",
            "http",
            "again",
            "kept off",
        ] {
            assert!(
                sum.iter().any(|(name, _)| *name == what),
                "never happened: {what}"
            );
        }
    }
}

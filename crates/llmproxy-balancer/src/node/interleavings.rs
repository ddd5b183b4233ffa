//! What is in flight, in many orders of the steps of those who begin and end it.

use shuttle::thread;

use super::{
    tests::{backend, end},
    *,
};
use crate::{HealthCheckConfig, flight::Flight, policy::Work};

/// How many orders are tried, by chance and by few changes of the thread that steps.
const ORDERS: usize = 1000;
const THREADS: usize = 3;

fn attempts_of_many() {
    let rules = Rules::new(&HealthCheckConfig::default());
    let node = Node::new(0, backend("a"), rules, Arc::default());
    let threads: Vec<_> = (0..THREADS)
        .map(|number| {
            let node = node.clone();
            thread::spawn(move || {
                let flight = Flight::new(node.enter(&node.name(), &Work::default()), Default::default());
                assert!((1..=THREADS).contains(&node.in_flight()), "{}", node.in_flight());
                end(flight, number);
                assert!(node.in_flight() < THREADS, "{}", node.in_flight());
            })
        })
        .collect();
    node.configure(backend("b"), rules);
    threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
    assert_eq!(node.in_flight(), 0);
}

#[test]
fn each_attempt_is_counted_once_and_given_back_once() {
    shuttle::check_random(attempts_of_many, ORDERS);
    shuttle::check_pct(attempts_of_many, ORDERS, 3);
}

//! Whatever comes, ends, leaves and changes: nobody waits while there is room, and nobody overtakes.

use super::*;

#[derive(Clone, Debug)]
enum Event {
    Comes,
    /// The oldest that is still there ends.
    Ends,
    /// One that waits leaves.
    Leaves(usize),
    /// The rooms are others.
    Reload(usize, usize),
    Drain(bool),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => Just(Event::Comes),
        3 => Just(Event::Ends),
        1 => (0..8_usize).prop_map(Event::Leaves),
        1 => (1..4_usize, 1..4_usize).prop_map(|(a, b)| Event::Reload(a, b)),
        1 => any::<bool>().prop_map(Event::Drain),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(128) })]

    #[test]
    fn nobody_waits_while_there_is_room_and_nobody_overtakes(events in proptest::collection::vec(event(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let balancer = balancer();
            let mut room = [2, 1];
            let mut drained = false;
            apply(&balancer, &with_room(&room), QueueConfig { max_waiting: 100, timeout: Duration::from_secs(3600) });
            let proxy = named(&balancer);
            let mut waiting: VecDeque<Asking> = VecDeque::new();
            let mut there: VecDeque<Answer> = VecDeque::new();
            let mut most = room;
            for event in events {
                match event {
                    Event::Comes => waiting.push_back(ask(&proxy).await),
                    Event::Ends => drop(there.pop_front()),
                    Event::Leaves(at) => if let Some(asking) = waiting.remove(at) {
                        asking.abort();
                    }
                    Event::Reload(a, b) => {
                        room = [a, b];
                        apply(&balancer, &with_room(&room), QueueConfig { max_waiting: 100, timeout: Duration::from_secs(3600) });
                    }
                    Event::Drain(drain) => {
                        drained = drain;
                        balancer.set_draining("b", drain).unwrap();
                    }
                }
                settle().await;
                // Served in the order in which they came.
                while waiting.front().is_some_and(|first| first.is_finished()) {
                    there.push_back(waiting.pop_front().unwrap().await.unwrap().1.unwrap());
                }
                prop_assert!(waiting.iter().all(|asking| !asking.is_finished()), "somebody overtook");
                let at = proxy.in_flight();
                prop_assert_eq!(at.iter().sum::<usize>(), there.len());
                prop_assert_eq!(proxy.pool.waiting(), waiting.len());
                for (index, at) in at.iter().enumerate() {
                    // A smaller room does not send away who is there.
                    most[index] = room[index].max(*at.min(&most[index]));
                    prop_assert!(*at <= most[index], "{at} of {}", room[index]);
                    let takes = index == 0 || !drained;
                    prop_assert!(waiting.is_empty() || !takes || *at >= room[index], "somebody waits while there is room");
                }
            }
            Ok(())
        })?;
    }
}

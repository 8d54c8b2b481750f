//! What must hold of placement, whatever is offered and asked for.

use proptest::prelude::*;
use uuid::Uuid;

use super::{Offer, Want, spread};
use crate::fleet::RunnerId;

fn offer(number: usize, capacity: u32, used: u32) -> Offer {
    #[allow(clippy::unwrap_used)]
    let name = format!("runner-{number}").parse().unwrap();
    Offer { runner: RunnerId { name, incarnation: Uuid::from_u128(1) }, capacity, used, version: 1 }
}

fn offers(given: &[(u32, u32)]) -> Vec<Offer> {
    given.iter().enumerate().map(|(number, (capacity, used))| offer(number, *capacity, *used)).collect()
}

fn wishes() -> impl Strategy<Value = Vec<Want>> {
    prop::collection::vec(prop::sample::select(vec![Want::Free, Want::Any]), 0..120)
}

proptest! {
    #[test]
    fn each_goes_to_the_most_free_place_of_its_time(
        given in prop::collection::vec((0u32..30, 0u32..40), 0..6),
        wishes in wishes(),
    ) {
        let offers = offers(&given);
        let places = spread(&offers, &wishes);
        prop_assert_eq!(places.len(), wishes.len());
        let mut free: Vec<i64> = offers.iter().map(Offer::free).collect();
        for (want, place) in wishes.iter().zip(places) {
            let most = free.iter().max().copied();
            match place {
                Some(index) => {
                    prop_assert_eq!(Some(free[index]), most);
                    prop_assert!(*want == Want::Any || free[index] > 0);
                    free[index] -= 1;
                }
                None => prop_assert!(most.is_none_or(|most| *want == Want::Free && most <= 0)),
            }
        }
    }

    #[test]
    fn equal_runners_get_equally_many(runners in 1usize..6, sessions in 0usize..200) {
        let offers = offers(&vec![(1000, 0); runners]);
        let mut counts = vec![0usize; runners];
        for place in spread(&offers, &vec![Want::Free; sessions]).into_iter().flatten() {
            counts[place] += 1;
        }
        let (least, most) = (counts.iter().min().copied(), counts.iter().max().copied());
        prop_assert!(most.unwrap_or(0) - least.unwrap_or(0) <= 1);
        prop_assert_eq!(counts.iter().sum::<usize>(), sessions);
    }
}

#[test]
fn of_equally_free_ones_the_emptier_is_taken() {
    let offers = offers(&[(8, 4), (4, 0), (4, 0)]);
    assert_eq!(spread(&offers, &[Want::Free, Want::Free, Want::Free]), [Some(1), Some(2), Some(0)]);
    assert_eq!(spread(&[], &[Want::Any]), [None]);
}

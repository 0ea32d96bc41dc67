//! The order of a key's records, by the places of their messages in the order of their inserts.

/// What is wrong with it, and what is repeated.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Order {
    /// Messages without a record.
    pub missing: usize,
    /// Messages that first appear behind a later one: B, A, or B, A, B.
    pub inverted: usize,
    /// Records of messages that appeared before.
    pub repeats: usize,
    /// Repeats that leave out what lies between them and the record before: a repeated tail must be whole, in order.
    pub skips: usize,
}

/// Of a key with so many messages, whose records tell of these.
pub fn order(messages: usize, records: &[usize]) -> Order {
    let mut order = Order::default();
    let mut seen = vec![false; messages];
    let mut next = 0;
    let mut highest = None;
    for &place in records {
        if std::mem::replace(&mut seen[place], true) {
            order.repeats += 1;
            order.skips += usize::from(place > next);
        } else {
            order.inverted += usize::from(highest > Some(place));
        }
        highest = highest.max(Some(place));
        next = place + 1;
    }
    order.missing = seen.iter().filter(|seen| !**seen).count();
    order
}

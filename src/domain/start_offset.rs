//! Where a group begins to read a partition that it is given.

/// The records that a partition has: from `low` up to, not including, `high`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    pub low: i64,
    pub high: i64,
}

/// Where to begin, and whether that is where the group stood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartOffset {
    At(i64),
    /// The records from `wanted` on are gone, or the log is another: the earliest record that there is.
    Reset {
        wanted: i64,
        low: i64,
    },
    /// The topic was deleted and made anew: its beginning.
    Anew {
        low: i64,
    },
}

impl StartOffset {
    pub fn offset(self) -> i64 {
        match self {
            Self::At(offset) | Self::Reset { low: offset, .. } | Self::Anew { low: offset } => offset,
        }
    }
}

impl Extent {
    /// An offset that can be read, or waited for.
    pub fn clamp(self, wanted: i64) -> StartOffset {
        if (self.low..=self.high).contains(&wanted) {
            StartOffset::At(wanted)
        } else {
            StartOffset::Reset { wanted, low: self.low }
        }
    }

    /// Where to read on at `next`, if this was asked for when the reader was at `asked`. One that has been read on since
    /// was not out of range, and the log may have grown beyond this answer.
    pub fn read_on(self, asked: i64, next: i64) -> StartOffset {
        if next == asked { self.clamp(next) } else { StartOffset::At(next) }
    }

    /// `stored` is the database's position, `committed` Kafka's.
    ///
    /// The lower of the two: a database that went back must handle again what it forgot. The database is the record:
    /// a partition that it does not know appeared after the group began, and is read from its beginning whatever
    /// Kafka says; offsets that Kafka has forgotten are not missed.
    pub fn start(self, stored: Option<i64>, committed: Option<i64>) -> StartOffset {
        match stored {
            Some(stored) => self.clamp(committed.map_or(stored, |committed| committed.min(stored))),
            None => StartOffset::At(self.low),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: Extent = Extent { low: 100, high: 200 };

    #[test]
    fn nothing_unfinished_is_passed_over() {
        let start = |stored, committed| LOG.start(stored, committed);
        assert_eq!(start(Some(150), Some(180)), StartOffset::At(150), "a database that went back");
        assert_eq!(start(Some(180), Some(150)), StartOffset::At(150));
        assert_eq!(start(Some(150), None), StartOffset::At(150), "Kafka forgot");
        assert_eq!(start(None, Some(150)), StartOffset::At(100), "the database never saw this partition");
        assert_eq!(start(None, None), StartOffset::At(100));
        assert_eq!(start(Some(200), Some(200)), StartOffset::At(200), "the end is a place to wait at");
    }

    #[test]
    fn an_offset_out_of_range_goes_to_the_earliest_record() {
        assert_eq!(LOG.start(Some(50), None), StartOffset::Reset { wanted: 50, low: 100 });
        assert_eq!(
            LOG.start(Some(201), None),
            StartOffset::Reset { wanted: 201, low: 100 },
            "a topic made anew"
        );
    }
    #[test]
    fn a_reader_that_moved_while_the_log_was_asked_for_is_not_sent_back() {
        assert_eq!(LOG.read_on(200, 205), StartOffset::At(205), "the log has grown");
        assert_eq!(LOG.read_on(150, 150), StartOffset::At(150));
        assert_eq!(LOG.read_on(205, 205), StartOffset::Reset { wanted: 205, low: 100 });
    }
}

//! A Postgres snapshot: which transactions were visible at a moment.

use std::fmt;
use std::str::FromStr;

/// `pg_snapshot`: everything below `xmin` had ended, nothing from `xmax` on had, `xip` between them was running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    xmin: u64,
    xmax: u64,
    /// Sorted.
    xip: Vec<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a pg_snapshot (xmin:xmax:xip,...)")]
pub struct NotASnapshot(String);

impl Snapshot {
    /// Before every transaction of an application: nothing is visible.
    pub fn nothing() -> Self {
        Self { xmin: 3, xmax: 3, xip: Vec::new() }
    }

    pub fn new(xmin: u64, xmax: u64, mut xip: Vec<u64>) -> Self {
        xip.sort_unstable();
        Self { xmin, xmax, xip }
    }

    /// One above the latest transaction that had ended.
    pub fn xmax(&self) -> u64 {
        self.xmax
    }

    /// Transactions that were running.
    pub fn xip(&self) -> &[u64] {
        &self.xip
    }

    /// `pg_visible_in_snapshot`: that transaction had ended. Whether it committed is for MVCC to say.
    pub fn sees(&self, txid: u64) -> bool {
        txid < self.xmin || (txid < self.xmax && self.xip.binary_search(&txid).is_err())
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:", self.xmin, self.xmax)?;
        for (index, txid) in self.xip.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            write!(f, "{txid}")?;
        }
        Ok(())
    }
}

impl FromStr for Snapshot {
    type Err = NotASnapshot;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || NotASnapshot(text.to_owned());
        let number = |digits: &str| digits.parse::<u64>().map_err(|_| wrong());
        let mut parts = text.splitn(3, ':');
        let (Some(xmin), Some(xmax), Some(xip)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(wrong());
        };
        let xip = xip.split(',').filter(|digits| !digits.is_empty()).map(number).collect::<Result<_, _>>()?;
        Ok(Self::new(number(xmin)?, number(xmax)?, xip))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_is_the_servers() {
        for text in ["3:3:", "10:20:10,14,15", "18446744073709551614:18446744073709551615:"] {
            assert_eq!(text.parse::<Snapshot>().unwrap().to_string(), text);
        }
        for text in ["", "1", "1:2", "a:2:", "1:2:x"] {
            assert!(text.parse::<Snapshot>().is_err(), "{text}");
        }
    }

    #[test]
    fn sees_what_had_ended_and_nothing_else() {
        let snapshot: Snapshot = "10:20:10,14".parse().unwrap();
        assert!(snapshot.sees(9) && snapshot.sees(11) && snapshot.sees(19));
        assert!(!snapshot.sees(10) && !snapshot.sees(14) && !snapshot.sees(20) && !snapshot.sees(21));
    }
}

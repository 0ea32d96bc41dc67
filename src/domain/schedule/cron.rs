//! A cron expression with crontab's meaning, by the clock of a timezone.
//!
//! The fields are read by the `cron` crate, one at a time. Which days they name together, and what becomes of them
//! where a clock is set forward or back, is decided here.

use std::fmt;
use std::str::FromStr;

use ::cron::TimeUnitSpec;
use chrono::{
    DateTime, Datelike, Days, LocalResult, NaiveDate, NaiveDateTime, NaiveTime, Offset, TimeDelta, TimeZone,
    Timelike, Utc,
};
use chrono_tz::Tz;

use super::{ScheduleError, weekday};

/// In seven-field order.
const FIELDS: [(&str, &str); 7] = [
    ("second", "0-59"),
    ("minute", "0-59"),
    ("hour", "0-23"),
    ("day of month", "1-31"),
    ("month", "1-12 or jan-dec"),
    ("day of week", "0-7 or sun-sat; 0 and 7 are Sunday"),
    ("year", "1970-2100"),
];
const DAY_OF_WEEK: usize = 5;

const NICKNAMES: [(&str, &str); 7] = [
    ("@yearly", "0 0 1 1 *"),
    ("@annually", "0 0 1 1 *"),
    ("@monthly", "0 0 1 * *"),
    ("@weekly", "0 0 * * 0"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    ("@hourly", "0 * * * *"),
];

/// How far apart two looks for a change of the clock are: no zone changes it twice within.
const STRIDE: TimeDelta = TimeDelta::days(1);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cron {
    text: String,
    timezone: Tz,
    seconds: Vec<u32>,
    minutes: Vec<u32>,
    hours: Vec<u32>,
    days: Vec<u32>,
    months: Vec<u32>,
    /// 0 is Sunday.
    weekdays: Vec<u32>,
    years: Vec<u32>,
    /// Both day fields are restricted: a day that fits either is meant, else one that fits both.
    either_day: bool,
    /// The hour is named: what falls where the clock skips is due once, at the end of the gap.
    fixed_hour: bool,
    /// Hour, minute and second are named: what falls where the clock runs twice is due the first time only.
    fixed_time: bool,
}

impl Cron {
    /// 5, 6 or 7 fields, or a nickname such as `@daily`.
    pub fn parse(text: &str, timezone: Tz) -> Result<Self, ScheduleError> {
        let lower = text.to_ascii_lowercase();
        let expression =
            NICKNAMES.iter().find(|(name, _)| *name == lower).map_or(&*lower, |(_, expression)| expression);
        let fields: Vec<&str> = expression.split_whitespace().collect();
        let fields: [&str; 7] = match fields[..] {
            [minute, hour, day, month, weekday] => ["0", minute, hour, day, month, weekday, "*"],
            [second, minute, hour, day, month, weekday] => [second, minute, hour, day, month, weekday, "*"],
            [second, minute, hour, day, month, weekday, year] => {
                [second, minute, hour, day, month, weekday, year]
            }
            [] | [_] => return Err(ScheduleError::Unknown),
            _ => return Err(ScheduleError::Fields(fields.len())),
        };
        let [second, minute, hour, day, _, weekday, _] = fields;
        // crontab's rule: a field that starts with a star, also `*/2`, does not restrict.
        let starred = |field: &str| field.starts_with(['*', '?']);
        let cron = Self {
            text: text.to_owned(),
            timezone,
            seconds: values(&fields, 0)?,
            minutes: values(&fields, 1)?,
            hours: values(&fields, 2)?,
            days: values(&fields, 3)?,
            months: values(&fields, 4)?,
            weekdays: values(&fields, DAY_OF_WEEK)?,
            years: values(&fields, 6)?,
            either_day: !starred(day) && !starred(weekday),
            fixed_hour: !starred(hour),
            fixed_time: ![second, minute, hour].into_iter().any(starred),
        };
        cron.first_day(NaiveDate::default()).ok_or(ScheduleError::Impossible)?;
        Ok(cron)
    }

    /// Whose clock it means.
    pub fn timezone(&self) -> Tz {
        self.timezone
    }

    /// The first firing strictly after `after`; `None`: never again.
    ///
    /// Between two changes of the clock local time and real time run side by side, so each such stretch is searched
    /// by the calendar alone.
    pub fn next_after(&self, after: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let mut since = after.with_nanosecond(0)?;
        let mut offset = self.offset(since);
        let mut local = since.naive_utc() + offset;
        loop {
            let next = self.next_local(local)?;
            let due = next.and_utc() - offset;
            if let Some(change) = self.clock_change(since, due) {
                let (from, to) = (change.naive_utc() + offset, change.naive_utc() + self.offset(change));
                if self.fixed_hour && (from..to).contains(&next) {
                    return Some(change);
                }
                since = change;
                offset = self.offset(change);
                local = to - TimeDelta::seconds(1);
            } else if self.fixed_time && self.is_second_pass(next, due) {
                local = next;
            } else {
                return Some(due);
            }
        }
    }

    fn offset(&self, at: DateTime<Utc>) -> TimeDelta {
        TimeDelta::seconds(
            self.timezone.offset_from_utc_datetime(&at.naive_utc()).fix().local_minus_utc().into(),
        )
    }

    /// The first second in `since..=until` that has another offset than `since`.
    fn clock_change(&self, since: DateTime<Utc>, until: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let offset = self.offset(since);
        let mut before = since;
        while before < until {
            let after = (before + STRIDE).min(until);
            if self.offset(after) != offset {
                return Some(self.bisect(before, after));
            }
            before = after;
        }
        None
    }

    fn bisect(&self, mut before: DateTime<Utc>, mut after: DateTime<Utc>) -> DateTime<Utc> {
        let offset = self.offset(before);
        while after - before > TimeDelta::seconds(1) {
            let middle = before + TimeDelta::seconds((after - before).num_seconds() / 2);
            if self.offset(middle) == offset { before = middle } else { after = middle }
        }
        after
    }

    fn is_second_pass(&self, local: NaiveDateTime, at: DateTime<Utc>) -> bool {
        matches!(self.timezone.from_local_datetime(&local), LocalResult::Ambiguous(first, _) if first.to_utc() < at)
    }

    /// The next date and time after `after` by the calendar, as if no clock were ever changed.
    fn next_local(&self, after: NaiveDateTime) -> Option<NaiveDateTime> {
        let from = after + TimeDelta::seconds(1);
        let today = self.first_day(from.date())?;
        let earliest = if today == from.date() { from.time() } else { NaiveTime::MIN };
        if let Some(time) = self.next_time(earliest) {
            return Some(today.and_time(time));
        }
        let tomorrow = self.first_day(today.checked_add_days(Days::new(1))?)?;
        self.next_time(NaiveTime::MIN).map(|time| tomorrow.and_time(time))
    }

    /// The first day from `from` on that fits.
    fn first_day(&self, from: NaiveDate) -> Option<NaiveDate> {
        let year = u32::try_from(from.year()).unwrap_or(0);
        for next in self.years.iter().copied().filter(|next| *next >= year) {
            let start =
                if next == year { from } else { NaiveDate::from_ymd_opt(i32::try_from(next).ok()?, 1, 1)? };
            if let Some(day) =
                start.iter_days().take_while(|day| day.year() == start.year()).find(|day| self.fits(*day))
            {
                return Some(day);
            }
        }
        None
    }

    fn fits(&self, date: NaiveDate) -> bool {
        let day = self.days.contains(&date.day());
        let weekday = self.weekdays.contains(&date.weekday().num_days_from_sunday());
        self.months.contains(&date.month()) && if self.either_day { day || weekday } else { day && weekday }
    }

    /// The first time of a day at or after `from`.
    fn next_time(&self, from: NaiveTime) -> Option<NaiveTime> {
        let (hour, minute, second) = (from.hour(), from.minute(), from.second());
        let at = |hour, minute, second| NaiveTime::from_hms_opt(hour, minute, second);
        let (first_minute, first_second) = (*self.minutes.first()?, *self.seconds.first()?);
        if self.hours.contains(&hour) {
            if self.minutes.contains(&minute)
                && let Some(second) = at_least(&self.seconds, second)
            {
                return at(hour, minute, second);
            }
            if let Some(minute) = at_least(&self.minutes, minute + 1) {
                return at(hour, minute, first_second);
            }
        }
        at(at_least(&self.hours, hour + 1)?, first_minute, first_second)
    }
}

fn at_least(sorted: &[u32], bound: u32) -> Option<u32> {
    sorted.iter().copied().find(|value| *value >= bound)
}

/// What a field names, in order. It is read alone, so that no garbage in it can run into its neighbours.
fn values(fields: &[&str; 7], index: usize) -> Result<Vec<u32>, ScheduleError> {
    let text = fields[index];
    let (field, range) = FIELDS[index];
    let read = if index == DAY_OF_WEEK {
        weekday::parse(text)
    } else {
        let mut alone = ["*"; 7];
        alone[index] = text;
        ::cron::Schedule::from_str(&alone.join(" ")).ok().map(|schedule| match index {
            0 => schedule.seconds().iter().collect(),
            1 => schedule.minutes().iter().collect(),
            2 => schedule.hours().iter().collect(),
            3 => schedule.days_of_month().iter().collect(),
            4 => schedule.months().iter().collect(),
            _ => schedule.years().iter().collect(),
        })
    };
    read.filter(|values: &Vec<u32>| !values.is_empty()).ok_or_else(|| ScheduleError::Field {
        field,
        range,
        text: text.to_owned(),
    })
}

impl fmt::Display for Cron {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

//! A circuit breaker: while the other side of a handler is down, messages wait instead of using up their attempts.

/// How it stands. Closed is the normal state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    #[default]
    Closed,
    /// Nothing starts.
    Open,
    /// One message at a time is let through, to see.
    HalfOpen,
}

/// What is to be told to all agents of the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Open,
    Close,
}

#[derive(Debug)]
pub struct Breaker {
    /// Failures in a row that open it.
    limit: u32,
    in_a_row: u32,
    state: State,
}

impl Breaker {
    pub fn new(limit: u32) -> Self {
        Self { limit, in_a_row: 0, state: State::Closed }
    }

    pub fn state(&self) -> State {
        self.state
    }

    /// What the group's agents have agreed on.
    pub fn hear(&mut self, state: State) {
        if self.state != State::Closed && state == State::Closed {
            self.in_a_row = 0;
        }
        self.state = state;
    }

    /// The other side has answered, be it with a refusal.
    pub fn answered(&mut self) -> Option<Change> {
        self.in_a_row = 0;
        if self.state != State::HalfOpen {
            return None;
        }
        self.state = State::Closed;
        Some(Change::Close)
    }

    /// A failure that another try may mend.
    pub fn failed(&mut self) -> Option<Change> {
        self.in_a_row = self.in_a_row.saturating_add(1);
        let opens = match self.state {
            State::Closed => self.in_a_row >= self.limit,
            State::HalfOpen => true,
            // One that had begun before.
            State::Open => false,
        };
        opens.then(|| {
            self.state = State::Open;
            Change::Open
        })
    }

    /// How many may run at a time, of so many.
    pub fn places(&self, of: usize) -> usize {
        match self.state {
            State::Closed => of,
            State::Open => 0,
            State::HalfOpen => of.min(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_in_a_row_open_it_and_one_success_closes_it() {
        let mut breaker = Breaker::new(3);
        assert_eq!([breaker.failed(), breaker.failed(), breaker.answered()], [None; 3]);
        assert_eq!([breaker.failed(), breaker.failed()], [None; 2], "they were not in a row");
        assert_eq!(breaker.failed(), Some(Change::Open));
        assert_eq!(breaker.failed(), None, "it is told once");
        assert_eq!(breaker.places(16), 0);
        breaker.hear(State::HalfOpen);
        assert_eq!(breaker.places(16), 1);
        assert_eq!(breaker.failed(), Some(Change::Open));
        breaker.hear(State::HalfOpen);
        assert_eq!(breaker.answered(), Some(Change::Close));
        assert_eq!((breaker.places(16), breaker.failed()), (16, None));
    }

    #[test]
    fn one_that_another_agent_closed_counts_anew() {
        let mut breaker = Breaker::new(2);
        breaker.failed();
        assert_eq!(breaker.failed(), Some(Change::Open));
        breaker.hear(State::Closed);
        assert_eq!(breaker.failed(), None);
    }
}

//! The engine of a membership, over all of its partitions, in three stages that overlap: a batch is looked up, messages
//! whose turn it is are handled, what is finished is completed.
//!
//! One task owns all of this state, so that there is nothing to lock; the database is asked by tasks of their own.

#![allow(clippy::vec_box, reason = "a message is large, and goes from queue to queue")]

mod asking;
mod attempt;
mod company;
mod effects;
mod gathering;
mod intake;
mod message;
mod orders;
mod outcomes;
mod recording;
mod suspects;
mod turns;

use std::collections::{HashMap, HashSet, VecDeque};
use std::pin::Pin;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use self::asking::LookedUp;
use self::attempt::End;
use self::gathering::{Gathering, Written};
use self::message::{Ending, Message};
use self::suspects::Suspects;
use super::Group;
use super::control::Heard;
use super::level::{HIGH_SPAN, Level};
use super::places::Place;
use super::session::{Event, Events, at};
use crate::domain::chains::Chains;
use crate::domain::delivery::{Record, TopicPartition};
use crate::domain::rate::Turn;
use crate::domain::watermark::Watermark;
use crate::pg::claims::Claimed;

/// An assignment of a partition; never used twice.
pub(super) type Slot = u64;

/// What the engine is told.
#[derive(Debug)]
pub(super) enum Input {
    Begin {
        slot: Slot,
        at: TopicPartition,
        start: i64,
        topic_id: Option<Uuid>,
        level: Arc<Level>,
    },
    Records(Vec<(Slot, Record)>),
    /// What runs is finished, nothing more is started.
    Stop(Slot),
    /// Nothing of it counts any more.
    Lose(Slot),
}

/// What the engine tells.
#[derive(Debug)]
pub(super) enum Report {
    /// Everything below is finished and recorded.
    Completed(Vec<(TopicPartition, i64)>),
    /// It was full, and has room again.
    Room(Slot),
    /// Nothing more comes from it.
    Ended(Slot),
    /// The engine itself is at its end.
    Down,
}

/// Tells the session; the engine's end is told even by a panic.
struct Reporter(Events);

impl Reporter {
    fn tell(&self, report: Report) {
        // Without a session there is nobody to tell.
        let _ = self.0.send(Event::Engine(report));
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        self.tell(Report::Down);
    }
}

struct Partition {
    at: TopicPartition,
    topic_id: Option<Uuid>,
    watermark: Watermark,
    level: Arc<Level>,
    ending: Arc<Ending>,
    /// Records to come that whoever had it before may have begun.
    in_doubt: usize,
    /// Those of them that are noted, and not finished.
    noted: HashSet<Uuid>,
    /// Messages that were begun and are not recorded.
    busy: u64,
    changed: bool,
}

/// An id that is under way.
enum Id {
    /// With those that have the same: they wait for what becomes of it.
    Working(Vec<Box<Message>>),
    /// A look-up that began before may not have seen it.
    Recorded,
}

/// Messages whose turn has come.
#[derive(Default)]
struct Line {
    /// Their keys are to be claimed.
    unclaimed: VecDeque<Box<Message>>,
    /// They lack only a handler.
    startable: VecDeque<Box<Message>>,
}

impl Line {
    fn len(&self) -> usize {
        self.unclaimed.len() + self.startable.len()
    }
}

type Work<T> = Option<AbortOnDropHandle<T>>;
/// Messages, and what became of their claims, if that is known.
type Asked = (Vec<Box<Message>>, Option<Vec<Claimed>>);
type Handled = (Box<Message>, End);
type Running = Pin<Box<dyn Future<Output = Vec<Handled>> + Send>>;
type NextPlace = Pin<Box<dyn Future<Output = Place> + Send>>;
type Delayed = Pin<Box<dyn Future<Output = Box<Message>> + Send>>;

pub(super) struct Engine {
    group: Arc<Group>,
    inputs: mpsc::UnboundedReceiver<Input>,
    reporter: Reporter,
    /// Taken, for the next that starts.
    place: Option<Place>,
    /// All are taken: when one is ours.
    line_for_place: Option<NextPlace>,
    partitions: HashMap<Slot, Partition>,
    /// Polled, not looked up.
    waiting: VecDeque<(Slot, Record)>,
    /// To be looked up again.
    again: Vec<Box<Message>>,
    look_up: Work<LookedUp>,
    ids: HashMap<Uuid, Id>,
    /// Recorded while a look-up was under way.
    recorded: Vec<Uuid>,
    chains: Chains<Box<Message>>,
    /// Keys that are held, as far as this engine knows: it hears of their release when it writes.
    held: HashSet<u64>,
    /// Their turn has come in their chains.
    free: VecDeque<Box<Message>>,
    /// Of keys that a message of this engine has: who waits for them.
    operations: HashMap<u64, Vec<Box<Message>>>,
    line: Line,
    claim: Work<Asked>,
    running: FuturesUnordered<Running>,
    heard: watch::Receiver<Heard>,
    /// Why nothing may start, by an order.
    closed: Option<String>,
    suspects: Suspects,
    /// Of the next one that starts.
    turn: Option<Turn>,
    /// When the next one may start, if the pace is what holds it.
    next_at: Option<Instant>,
    delayed: FuturesUnordered<Delayed>,
    gathering: Gathering,
    completion: Work<Written>,
}

/// Starts it; dropped, it leaves what runs without evidence.
pub(super) fn start(
    group: &Arc<Group>,
    events: &Events,
) -> (mpsc::UnboundedSender<Input>, AbortOnDropHandle<()>) {
    let (sender, inputs) = mpsc::unbounded_channel();
    let engine = Engine {
        group: Arc::clone(group),
        inputs,
        reporter: Reporter(events.clone()),
        place: None,
        line_for_place: None,
        partitions: HashMap::new(),
        waiting: VecDeque::new(),
        again: Vec::new(),
        look_up: None,
        ids: HashMap::new(),
        recorded: Vec::new(),
        chains: Chains::default(),
        held: HashSet::new(),
        free: VecDeque::new(),
        operations: HashMap::new(),
        line: Line::default(),
        claim: None,
        running: FuturesUnordered::new(),
        heard: group.control.heard.clone(),
        closed: None,
        suspects: Suspects::default(),
        turn: None,
        next_at: None,
        delayed: FuturesUnordered::new(),
        gathering: Gathering::default(),
        completion: None,
    };
    (sender, AbortOnDropHandle::new(tokio::spawn(engine.run())))
}

/// The answer of a task, if there is one; it is taken off. A task that panicked is the end of the engine.
async fn answer<T>(work: &mut Work<T>) -> Option<T> {
    match work {
        Some(handle) => {
            let answer = handle.await;
            *work = None;
            answer.ok()
        }
        None => std::future::pending().await,
    }
}

async fn next_place(line: &mut Option<NextPlace>) -> Place {
    match line {
        Some(next) => next.await,
        None => std::future::pending().await,
    }
}

impl Engine {
    async fn run(mut self) {
        let mut inputs = Vec::new();
        self.hear();
        loop {
            self.advance();
            let due = if self.completion.is_none() { self.gathering.due() } else { None };
            let due = at(due);
            tokio::select! {
                biased;
                written = answer(&mut self.completion) => match written {
                    Some(written) => self.written(written),
                    None => return,
                },
                looked_up = answer(&mut self.look_up) => match looked_up {
                    Some(looked_up) => {
                        // The database is at the next batch while this one is worked on.
                        self.begin_look_up();
                        self.looked_up(looked_up);
                    }
                    None => return,
                },
                claimed = answer(&mut self.claim) => match claimed {
                    Some((messages, claimed)) => self.claimed(messages, claimed),
                    None => return,
                },
                counted = answer(&mut self.suspects.counting) => match counted {
                    Some(counted) => self.counted(counted),
                    None => return,
                },
                Some(handled) = self.running.next() => {
                    self.handled(handled);
                    while let Some(Some(handled)) = self.running.next().now_or_never() {
                        self.handled(handled);
                    }
                }
                Some(message) = self.delayed.next() => self.free.push_back(message),
                place = next_place(&mut self.line_for_place) => {
                    self.line_for_place = None;
                    self.place = Some(place);
                }
                count = self.inputs.recv_many(&mut inputs, 64) => {
                    if count == 0 {
                        return;
                    }
                    for input in inputs.drain(..) {
                        self.input(input);
                    }
                }
                () = due => {}
                () = at(self.next_at) => {}
                Ok(()) = self.heard.changed() => self.hear(),
            }
        }
    }

    fn input(&mut self, input: Input) {
        match input {
            Input::Begin { slot, at, start, topic_id, level } => {
                let partition = Partition {
                    at,
                    topic_id,
                    watermark: Watermark::new(start),
                    level,
                    ending: Arc::default(),
                    in_doubt: HIGH_SPAN,
                    noted: HashSet::new(),
                    busy: 0,
                    changed: false,
                };
                self.partitions.insert(slot, partition);
            }
            Input::Records(records) => self.waiting.extend(records),
            Input::Stop(slot) => {
                if let Some(partition) = self.partitions.get(&slot) {
                    partition.ending.stop();
                    self.drop_unstarted(slot);
                    self.end(slot);
                }
            }
            Input::Lose(slot) => {
                if let Some(partition) = self.partitions.remove(&slot) {
                    partition.ending.lose();
                    self.drop_unstarted(slot);
                }
            }
        }
    }

    /// Others are dropped when their turn comes.
    fn drop_unstarted(&mut self, slot: Slot) {
        self.waiting.retain(|(of, _)| *of != slot);
        let (line, suspects) = (&mut self.line, &mut self.suspects);
        let of_suspects = [&mut suspects.waiting, &mut suspects.line.unclaimed, &mut suspects.line.startable];
        for queue in [&mut line.unclaimed, &mut line.startable].into_iter().chain(of_suspects) {
            let (gone, stays): (VecDeque<_>, _) = queue.drain(..).partition(|message| message.slot == slot);
            *queue = stays;
            self.free.extend(gone);
        }
    }

    /// Does all that can be done without waiting.
    fn advance(&mut self) {
        loop {
            while let Some(message) = self.free.pop_front() {
                self.proceed(message);
            }
            let has_work = !self.suspects.line_or(&mut self.line).startable.is_empty();
            if !has_work || !self.take_place() || !self.is_in_pace() {
                break;
            }
            let Some(message) = self.suspects.line_or(&mut self.line).startable.pop_front() else { break };
            self.start(message);
        }
        // For others, as long as nothing here can start.
        self.place = None;
        if self.suspects.line_or(&mut self.line).startable.is_empty() {
            self.line_for_place = None;
        }
        self.end_proof();
        self.begin_lineup();
        self.begin_claim();
        self.begin_look_up();
        self.begin_completion();
        for partition in self.partitions.values_mut().filter(|partition| partition.changed) {
            partition.changed = false;
            self.group.status.at_work(&partition.at, partition.busy, partition.watermark.waits_for());
        }
    }
}

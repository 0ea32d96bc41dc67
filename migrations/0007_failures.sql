-- What groups could not handle: failures and their retries, keys that wait behind them, dead letters; and who of a group
-- is at work.

-- A message that its group failed to handle, or that waits behind one of its key: the record whole, so that nothing
-- depends on what is still in the topic. An id is in here or in outboxd.handled, or the group has not seen it.
create sequence outboxd.failures_place;
create table outboxd.failures (
  consumer_group text not null,
  message_id uuid not null,
  state text not null check (state in ('due', 'retrying', 'running', 'held', 'dead', 'discarded')),
  topic text not null,
  partition integer not null,
  "offset" bigint not null,
  recorded_at timestamptz,        -- the record's own time
  key bytea,
  key_digest bytea generated always as (sha256(key)) stored,  -- an index entry is limited, a key is not
  payload bytea,
  header_names text[] not null,   -- in order, repeated ones kept
  header_values bytea[] not null,
  type text,                      -- these two are in the headers too: here to be filtered by
  idempotency_key text,
  attempts integer not null default 0,   -- that started
  forgiven integer not null default 0,   -- of these, before an operator's replay: they do not count against max_attempts
  last_agent uuid,                -- whose attempt failed last
  error text,                     -- of the last attempt
  reason text check (reason in ('attempts', 'starts', 'permanent', 'undeliverable', 'operator')),  -- why it was given up
  failed_at timestamptz,          -- first
  next_attempt_at timestamptz,    -- of one that is due
  dispatch bigint not null default 0,    -- fencing number: whoever starts or completes an attempt names it
  dispatch_seq bigint,            -- its message in the outbox, in the lane of priority 0
  target uuid,                    -- the agent that this dispatch is for
  published_at timestamptz,       -- when its message was seen to be published
  expires_at timestamptz,         -- of a published dispatch that nobody starts, or of a lease that nobody renews
  undelivered smallint not null default 0,  -- dispatches in a row that an agent was given and did not start
  place bigint not null default nextval('outboxd.failures_place'),  -- among those held for one key
  changed_at timestamptz not null default clock_timestamp(),
  copied_at timestamptz,          -- of a dead letter, to the topic of dead letters
  operation bigint,               -- of outboxd.operations: who decided about it last
  primary key (consumer_group, message_id),
  check (cardinality(header_names) = cardinality(header_values)),
  check ((state = 'due') = (next_attempt_at is not null)),
  check ((state in ('retrying', 'running')) <= (target is not null)),
  check ((state in ('dead', 'discarded')) = (reason is not null))
);
create index failures_due on outboxd.failures (consumer_group, next_attempt_at) where state = 'due';
create index failures_out on outboxd.failures (expires_at) where state in ('retrying', 'running');
create index failures_held on outboxd.failures (consumer_group, topic, key_digest, place) where state = 'held';
create index failures_uncopied on outboxd.failures (changed_at) where state = 'dead' and copied_at is null;
create index failures_given_up on outboxd.failures (changed_at) where state in ('dead', 'discarded');

-- Keys whose messages wait: the head failed, and later ones of (group, topic, key) are copied to failures as held.
-- Who copies locks the row for share, and looks again if it is gone; who frees it locks it for update, and then looks
-- for held ones in a new statement.
create table outboxd.held_keys (
  consumer_group text not null,
  topic text not null,
  key_digest bytea not null,
  message_id uuid not null,       -- the head
  held_at timestamptz not null default clock_timestamp(),
  primary key (consumer_group, topic, key_digest)
);

-- Every attempt that failed, while its failure is open and for as long as evidence is kept.
create table outboxd.attempts (
  consumer_group text not null,
  message_id uuid not null,
  attempt integer not null,
  agent text not null,
  error text not null,
  failed_at timestamptz not null default clock_timestamp(),
  primary key (consumer_group, message_id, attempt)
);
create index attempts_failed_at on outboxd.attempts using brin (failed_at);

-- Messages that lay in the span above the committed offset when a partition was assigned: one of them may have killed
-- its process. Removed when they are finished.
create table outboxd.starts (
  consumer_group text not null,
  message_id uuid not null,
  starts integer not null default 0,
  primary key (consumer_group, message_id)
);

-- What an operator or a breaker ordered for a group; agents look once a second.
alter table outboxd.groups
  add paused_at timestamptz,
  add paused_by text,
  add breaker_until timestamptz,  -- open until then, half open after; null is closed
  add breaker_reason text;

-- The agents that work for a group, as they say once a second: whom a retry may be given to.
create table outboxd.members (
  consumer_group text not null,
  agent_id uuid not null,
  agent text not null,            -- its name
  seen_at timestamptz not null default clock_timestamp(),
  in_flight integer not null default 0,
  error_rate real not null default 0,        -- of the last minute, 0 to 1
  takes_retries boolean not null default false,  -- its reader of the retry topic moves, and it does not drain
  primary key (consumer_group, agent_id)
) with (fillfactor = 50);

-- What an operator ordered for an agent: no new work until it is taken back.
alter table outboxd.agents add drain_ordered_at timestamptz;

-- For people; it shows no record.
create view outboxd.failure_states as
select consumer_group, message_id, state, attempts, reason, error, failed_at, next_attempt_at from outboxd.failures;

create view outboxd.dead_letters as
select consumer_group, message_id, topic, partition, "offset", recorded_at, type, idempotency_key, attempts, reason, error,
  failed_at, changed_at as died_at
from outboxd.failures where state = 'dead';

insert into outboxd.upkeep (job) values ('process-retry'), ('dead-letters');

-- What groups did: where they stand, the evidence of every handled message, and the operations they claim.

create table outboxd.groups (
  name text primary key,
  kafka_group text not null,
  cluster_id text not null,   -- of the Kafka cluster the group began with
  created_at timestamptz not null default clock_timestamp(),
  unique (cluster_id, kafka_group)
);

-- The offset behind the longest prefix, in order of delivery, of finished messages. It only rises.
create table outboxd.group_positions (
  consumer_group text not null,
  cluster_id text not null,
  topic text not null,
  partition integer not null,
  next_offset bigint not null,
  updated_at timestamptz not null default clock_timestamp(),
  primary key (consumer_group, cluster_id, topic, partition)
) with (fillfactor = 50);

-- Evidence: this group handled this message. Insert only. Ranges follow the time in the message's UUIDv7.
create table outboxd.handled (
  consumer_group text not null,
  message_id uuid not null,
  topic text not null,
  partition integer not null,
  "offset" bigint not null,
  agent text not null,
  attempt integer not null,
  duplicate_of uuid,          -- another message had done the same operation: nothing was called for this one
  handled_at timestamptz not null default now(),
  took interval,
  primary key (message_id, consumer_group)  -- what differs comes first: half of the work is to compare
) partition by range (message_id);

create table outboxd.handled_default partition of outboxd.handled default;

-- An operation (an idempotency key, or a message's own id) of a group: claimed while it is done, done for good.
create sequence outboxd.claims_seq;
create table outboxd.idempotency_keys (
  consumer_group text not null,
  namespace text not null check (namespace in ('key', 'id')),
  key text not null,
  message_id uuid not null,
  payload_hash bigint not null,
  state text not null check (state in ('claimed', 'done')),
  claim bigint not null default nextval('outboxd.claims_seq'),  -- fencing number: a completion names it
  owner uuid not null,                                          -- the agent
  expires_at timestamptz,                                       -- of a claim that nobody completes
  done_at timestamptz,
  primary key (consumer_group, namespace, key),
  check ((state = 'claimed') = (expires_at is not null)),
  check ((state = 'done') = (done_at is not null))
);

-- What a function of an `sql` handler is called with.
create type outboxd.delivery as (
  consumer_group text,
  id uuid,
  type text,
  key text,               -- null if the key is not text
  key_bytes bytea,
  topic text,
  partition integer,
  "offset" bigint,
  attempt integer,
  idempotency_key text,
  headers jsonb,          -- those that are text
  payload bytea           -- null is a tombstone
);

-- The outbox: where applications insert, and how far each lane of it is published.

create sequence outboxd.messages_seq;  -- CACHE 1: a cache would invert order between sessions

-- One outbox, one row: what makes its message ids its own, and the cluster whose xids its cursors speak of.
create table outboxd.outbox (
  singleton boolean primary key default true check (singleton),
  tag_high integer not null,
  tag_low bigint not null,
  system_identifier bigint not null,
  created_at timestamptz not null default clock_timestamp()
);

insert into outboxd.outbox (tag_high, tag_low, system_identifier)
select ('x' || substr(r, 1, 3))::bit(12)::integer,
       ('x' || substr(r, 17, 16))::bit(64)::bigint & 4611686018427387903,
       (select system_identifier from pg_control_system())
from (select replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', '')) as random (r);

-- The derived id of a message: a UUIDv7 of its time in milliseconds and of its seq, xor this outbox's random tag.
-- The tag is written into the function as a constant, so that an insert through enqueue() reads no table for it.
do $create$
declare
  tag outboxd.outbox;
begin
  select * into strict tag from outboxd.outbox;
  execute format($function$
    create function outboxd.message_id(created_at timestamptz, seq bigint) returns uuid
    language sql immutable strict parallel safe as $body$
      select encode(
        int8send((floor(extract(epoch from created_at) * 1000)::bigint << 16) | 28672 | (%s # ((seq >> 62) & 4095)))
        || int8send((-9223372036854775808) | (%s # (seq & 4611686018427387903))), 'hex')::uuid
    $body$
  $function$, tag.tag_high, tag.tag_low);
end
$create$;

create table outboxd.messages (
  txid xid8 not null default pg_current_xact_id(),              -- must stay before seq: defaults are evaluated in column
  seq bigint not null default nextval('outboxd.messages_seq'),  -- order, so a row's xid exists before its seq does
  priority smallint not null default 0,
  id uuid,
  topic text not null,
  key text,
  payload bytea,
  headers jsonb not null default '{}',
  type text,
  idempotency_key text,
  deliver_after timestamptz,
  retry jsonb,
  created_at timestamptz not null default clock_timestamp(),
  primary key (priority, seq),
  constraint messages_priority_is_minus_1_0_or_1 check (priority between -1 and 1),
  constraint messages_topic_is_a_name_that_kafka_allows
    check (topic ~ '^[a-zA-Z0-9._-]{1,249}$' and topic not in ('.', '..')),
  constraint messages_headers_are_a_flat_object_of_strings
    check (headers = '{}' or (jsonb_typeof(headers) = 'object'
      and not jsonb_path_exists(headers, 'strict $.* ? (@.type() != "string")'))),
  constraint messages_headers_are_not_named_id_or_outboxd
    check (headers = '{}' or not (headers ? 'id'
      or jsonb_path_exists(headers, '$.keyvalue() ? (@.key starts with "outboxd-")'))),
  constraint messages_idempotency_key_has_1_to_1024_bytes check (octet_length(idempotency_key) between 1 and 1024)
) partition by range (seq);

create index messages_txid on outboxd.messages (txid);
create index messages_own_id on outboxd.messages (id) where id is not null;

create table outboxd.messages_default partition of outboxd.messages default;

comment on table outboxd.messages is
  'Insert here, inside your own transaction: topic, key, payload, and if you like id, headers, type, idempotency_key, priority, deliver_after.';
comment on column outboxd.messages.priority is '-1 low, 0 normal, 1 high; order is kept per key and priority';
comment on column outboxd.messages.payload is 'null is a tombstone';
comment on column outboxd.messages.retry is 'set on targeted retries only';

-- How far a lane (a priority) is published, and who may move it.
create table outboxd.lanes (
  priority smallint primary key,
  owner uuid,                     -- fresh per acquisition
  agent text,
  epoch bigint not null default 0,
  lease_expires_at timestamptz,
  "window" bigint not null default 0,
  done pg_snapshot not null default '3:3:',
  floor bigint not null default 0,
  candidate_floor bigint,         -- this pair becomes the floor once done reaches candidate_xid
  candidate_xid xid8,
  target pg_snapshot,
  published_seq bigint not null default 0,
  top bigint not null default 0,  -- the sequence's last value, read after the newest snapshot
  moved_at timestamptz,
  wanted_by text,                 -- an agent with fewer lanes, for whom the owner gives this one up
  wanted_at timestamptz,
  -- What is published and not yet in outboxd.publications: kept here, so that a takeover loses nothing of it.
  publishing_done pg_snapshot,
  publishing_first_seq bigint,
  publishing_last_seq bigint,
  publishing_messages bigint not null default 0,
  publishing_began_at timestamptz,
  publishing_offsets jsonb not null default '{}',
  check ((candidate_floor is null) = (candidate_xid is null))
) with (fillfactor = 50);

insert into outboxd.lanes (priority) values (-1), (0), (1);

-- What was published when, by whom, without a write per message: a row for each window, or for each second of windows
-- that were quiet. It is about the messages visible in target and not in done.
create table outboxd.publications (
  priority smallint not null,
  "window" bigint not null,       -- the lane's number when it ended
  done pg_snapshot not null,
  target pg_snapshot not null,
  first_seq bigint not null,
  last_seq bigint not null,
  messages bigint not null,
  agent text,                     -- who published the end of it
  began_at timestamptz not null,
  ended_at timestamptz not null,
  offsets jsonb not null,         -- "topic/partition" -> the highest offset
  primary key (priority, "window")
);
create index publications_seqs on outboxd.publications (priority, last_seq);
create index publications_ended_at on outboxd.publications (ended_at);

-- Rows that leave the line, copied whole, so that no partition of the outbox waits for them. Those that an operator has
-- decided stay as a trace until their retention ends; whoever reads the open window again skips them.
create table outboxd.set_aside (
  priority smallint not null,
  seq bigint not null,
  state text not null check (state in ('scheduled', 'held', 'parked', 'discarded', 'replayed')),
  reason text,
  due_at timestamptz,
  set_aside_at timestamptz not null default clock_timestamp(),  -- in this state
  key_line bigint,                    -- rows of a key that wait one behind the other: the seq of the first refused one
  stops_lane boolean not null default false,  -- nothing of the lane is sent behind it
  decided_at timestamptz,             -- by an operator: discarded, or sent again as a new message
  operation bigint,                   -- his, in outboxd.operations
  id uuid,
  topic text not null,
  key text,
  payload bytea,
  headers jsonb not null,
  type text,
  idempotency_key text,
  retry jsonb,
  created_at timestamptz not null,
  primary key (priority, seq),
  check ((state = 'scheduled') <= (due_at is not null)),
  check ((state in ('discarded', 'replayed')) = (decided_at is not null)),
  check ((decided_at is not null) <= (key_line is null and not stops_lane))
);
create index set_aside_due on outboxd.set_aside (priority, due_at) where state = 'scheduled';
create index set_aside_held on outboxd.set_aside (priority, topic, seq) where state = 'held' and key_line is null;
create index set_aside_key_line on outboxd.set_aside (priority, key_line, seq) where key_line is not null;
create index set_aside_stops_lane on outboxd.set_aside (priority, seq) where stops_lane;
create index set_aside_parked on outboxd.set_aside (seq) where state = 'parked';
create index set_aside_decided on outboxd.set_aside (decided_at) where decided_at is not null;
create index set_aside_own_id on outboxd.set_aside (id) where id is not null;
comment on table outboxd.set_aside is
  'scheduled: due later; held: waits for its topic or behind one of its key; parked: refused by Kafka for good, until an operator decides; discarded, replayed: he has';

-- Writes that others stand on call this in their WHERE: the commit waits for the flush whatever the session says,
-- and a database that is stricter stays so.
create function outboxd.durable() returns boolean language sql volatile as $$
  select set_config('synchronous_commit',
    case current_setting('synchronous_commit') when 'remote_apply' then 'remote_apply' else 'on' end, true) is not null
$$;

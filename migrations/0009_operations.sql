-- What operators did: who, to what, when, and with what result.

create table outboxd.operations (
  id bigint generated always as identity primary key,
  command text not null,                  -- as it was typed, without what it names: 'retry run'
  selection jsonb not null,               -- the ids or the filters that it named
  database_user text not null default session_user,
  os_user text not null,
  host text not null,
  began_at timestamptz not null default clock_timestamp(),
  ended_at timestamptz,                   -- null: it is under way, or was cut short
  messages bigint not null default 0,     -- that it changed, counted in the transactions that did
  result text,                            -- 'done', or why not
  check ((ended_at is null) = (result is null))
);
create index operations_began_at on outboxd.operations (began_at);

-- The running processes, and what they said of themselves.

create table outboxd.agents (
  id uuid primary key,            -- of this start; a restart is another agent of the same name
  name text not null,
  role text not null,
  groups text[] not null default '{}',
  host text not null,
  pid integer not null,
  version text not null,
  http text,                      -- where its health is asked for
  started_at timestamptz not null default clock_timestamp(),
  last_heartbeat_at timestamptz not null default clock_timestamp(),
  heartbeat interval not null,
  status text not null default 'active' check (status in ('active', 'draining', 'stopped', 'suspect', 'inactive')),
  health jsonb not null default '{}'
);
create index agents_name on outboxd.agents (name);

-- The beats of the last day.
create table outboxd.agent_heartbeats (
  agent_id uuid not null,
  at timestamptz not null default clock_timestamp(),
  status text not null,
  health jsonb not null,
  primary key (agent_id, at)
);
create index agent_heartbeats_at on outboxd.agent_heartbeats using brin (at);

-- What recurs: the board that all agents read once a second, and what became of each run.

create table outboxd.jobs (
  name text primary key,
  scope text not null check (scope in ('agent', 'cluster')),  -- each agent runs it, or one of them
  role text not null check (role in ('producer', 'consumer', 'any')),
  schedule text not null,         -- as the agent has it that entered it last
  timezone text not null,
  enabled boolean not null,
  entered_at timestamptz not null default clock_timestamp(),   -- when an agent last said that it has this job
  -- The last firing that was claimed or passed, or when the job was new: what comes after it is due. It moves by compare
  -- and set, so a firing has one claim; and it does not depend on the history, which a monthly job outlives.
  last_firing timestamptz not null default clock_timestamp(),
  paused_at timestamptz,
  paused_by text,
  run_requested_at timestamptz,   -- an operator wants a run, now; with scope 'agent' it stays, and each agent knows what it did
  run_requested_by text,
  lease uuid,                     -- of the run under way
  busy_until timestamptz,         -- when that lease ends; without one, when the last run ended
  -- The run under way, or the last one.
  firing timestamptz,             -- its nominal time
  requested_by text,              -- null: it was due
  agent text,
  started_at timestamptz,
  ended_at timestamptz,
  result text,
  error text,
  succeeded_at timestamptz,       -- when a run last ended well
  runs bigint not null default 0,
  missed bigint not null default 0,
  -- Of a job that runs when a condition becomes true.
  armed boolean not null default true,  -- it was false since the job last ran for it
  fired_at timestamptz
) with (fillfactor = 50);

create table outboxd.job_runs (
  id bigint generated always as identity primary key,
  job text not null,
  firing timestamptz not null,    -- nominal; of 'missed', the last of those that got no start
  requested_by text,              -- null: it was due
  started_at timestamptz,         -- null: missed
  ended_at timestamptz not null default clock_timestamp(),
  agent text not null,
  result text not null check (result in ('done', 'failed', 'cut', 'lost', 'missed', 'skipped')),
  error text,
  rows bigint
);
create index job_runs_job on outboxd.job_runs (job, id);
create index job_runs_ended_at on outboxd.job_runs using brin (ended_at);

-- The board has the claims now.
drop table outboxd.upkeep;

-- Whether messages of a key wait behind one that failed (on_failure), as the group's agents say: a replay keeps to it.
alter table outboxd.groups add column holds_keys boolean not null default true;

-- Whether no other message ran in the process at the last of these starts: only then it is blamed for the end of that.
alter table outboxd.starts add column alone boolean not null default false;

-- How a member is getting on, for `groups list`.
alter table outboxd.members
  add column lag bigint not null default 0,               -- messages of its partitions that are not finished
  add column rate real not null default 0,                -- handled a second, lately
  add column paused_partitions integer not null default 0;

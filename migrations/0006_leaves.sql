-- The life of the outbox's partitions (leaves): made ahead, emptied when released, dropped when it is free.
--
-- Nothing here queues in front of an application. What an insert minds (ACCESS EXCLUSIVE on the parent, the default or a
-- leaf) is taken with NOWAIT only, and a call that does not get it says so and is made again later.

-- What a group reads, so that retention waits for it also while none of its consumers runs.
alter table outboxd.groups add column topics text[] not null default '{}';

create view outboxd.leaves as
select c.oid as relation, c.relname as name, range.bounds[1] as from_seq, range.bounds[2] as to_seq  -- to_seq is not in it
from pg_catalog.pg_inherits i
join pg_catalog.pg_class c on c.oid = i.inhrelid
cross join lateral (
  select regexp_match(pg_get_expr(c.relpartbound, c.oid), 'FROM \(''(-?\d+)''\) TO \(''(-?\d+)''\)')::bigint[] as bounds
) range
where i.inhparent = 'outboxd.messages'::regclass and range.bounds is not null;

-- How fast the sequence rises: leaves are sized and counted by it.
create table outboxd.insert_rate (
  singleton boolean primary key default true check (singleton),
  last_seq bigint not null default 0,
  read_at timestamptz not null default clock_timestamp(),
  per_day double precision not null default 0,       -- of about the last hour
  peak_per_day double precision not null default 0   -- the highest of that; fades by half a week
);
insert into outboxd.insert_rate default values;

-- Jobs of which one in the cluster is at work: a claim that nobody gives back ends by itself.
create table outboxd.upkeep (
  job text primary key,
  claimed_until timestamptz not null default '-infinity'
);
insert into outboxd.upkeep (job) values ('partitions'), ('cleanup');

-- Takes ACCESS EXCLUSIVE on all of these or none, without ever waiting for it. Tries for half a second, and only while
-- nobody is seen to hold anything of them: a vacuum of a TOAST table would stop us in the middle, holding the rest.
create function outboxd.lock_if_free(variadic relations regclass[]) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  tables oid[] := relations::oid[] || array(select reltoastrelid from pg_class where oid = any(relations));
  parts oid[] := tables || array(select indexrelid from pg_index where indrelid = any(tables));
  relation regclass;
begin
  for try in 1..100 loop
    if not exists (select from pg_locks l
        where l.locktype = 'relation' and l.relation = any(parts) and l.pid is distinct from pg_backend_pid()
          and l.database = (select oid from pg_database where datname = current_database())) then
      begin
        foreach relation in array relations loop
          execute format('lock table only %s in access exclusive mode nowait', relation);
        end loop;
        return true;
      exception when lock_not_available then null;  -- and gives back what it got
      end;
    end if;
    perform pg_sleep(0.005);
  end loop;
  return false;
end
$$;

-- Makes and attaches a leaf; false: the default or the parent is in use. The default is scanned under its lock unless a
-- constraint of it says that the range has no rows there.
create function outboxd.make_leaf(from_seq bigint, to_seq bigint) returns boolean
language plpgsql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '20ms' as $$
declare
  leaf text := format('outboxd.%I', 'messages_' || from_seq);
begin
  if exists (select from outboxd.leaves l where l.from_seq = make_leaf.from_seq and l.to_seq = make_leaf.to_seq) then
    return true;
  end if;
  begin
    lock table only outboxd.messages in share update exclusive mode nowait;
    execute format('create table %s (like outboxd.messages including all)', leaf);
    if not outboxd.lock_if_free('outboxd.messages_default') then
      raise lock_not_available;
    end if;
    execute format('alter table outboxd.messages attach partition %s for values from (%s) to (%s)', leaf, from_seq, to_seq);
    return true;
  exception when lock_not_available then
    return false;
  end;
end
$$;

-- The way back from a default with rows, in transactions of their own: reserve_range, validate_range, make_leaf for each,
-- free_range, advance_sequence. The range lies so far beyond the sequence that no insert meets the constraint.
create function outboxd.free_range() returns boolean
language plpgsql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '20ms' as $$
begin
  if not exists (select from pg_constraint
      where conrelid = 'outboxd.messages_default'::regclass and conname = 'messages_default_leaves_a_range_free') then
    return true;
  end if;
  if not outboxd.lock_if_free('outboxd.messages_default') then
    return false;
  end if;
  alter table outboxd.messages_default drop constraint if exists messages_default_leaves_a_range_free;
  return true;
end
$$;

create function outboxd.reserve_range(from_seq bigint, to_seq bigint) returns boolean
language plpgsql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '20ms' as $$
begin
  if not (outboxd.free_range() and outboxd.lock_if_free('outboxd.messages_default')) then
    return false;
  end if;
  execute format('alter table outboxd.messages_default add constraint messages_default_leaves_a_range_free
    check (seq < %s or seq >= %s) not valid', from_seq, to_seq);
  return true;
end
$$;

create function outboxd.validate_range() returns boolean
language plpgsql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '20ms' as $$
begin
  lock table only outboxd.messages_default in share update exclusive mode nowait;
  alter table outboxd.messages_default validate constraint messages_default_leaves_a_range_free;
  return true;
exception when lock_not_available then
  return false;
end
$$;

-- The next message gets this seq or a higher one; a leaf must begin there. Over a short way the numbers are used up one by
-- one, because setval could set a sequence back that others move meanwhile; over a long one nobody can be that fast.
create function outboxd.advance_sequence(to_seq bigint) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  last bigint := coalesce(pg_sequence_last_value('outboxd.messages_seq'), 0);
begin
  if last >= to_seq - 1 then
    return;
  end if;
  if not exists (select from outboxd.leaves l where l.from_seq = advance_sequence.to_seq) then
    raise exception 'outboxd: no leaf begins at %', to_seq;
  end if;
  if to_seq - last > 4194304 then
    perform setval('outboxd.messages_seq', to_seq - 1);
  else
    perform count(nextval('outboxd.messages_seq')) from generate_series(last + 1, to_seq - 1);
  end if;
  -- These numbers were not inserts.
  update outboxd.insert_rate r set last_seq = r.last_seq + (to_seq - 1 - last);
end
$$;

-- Do the cursors speak of this cluster's transactions, and has the sequence never been set back? If not, what they call
-- published may not be.
create function outboxd.cursors_are_sound() returns boolean
language sql volatile set search_path = pg_catalog, pg_temp as $$
  select o.system_identifier = c.system_identifier
    and coalesce(pg_sequence_last_value('outboxd.messages_seq'), 0) >= (select max(floor) from outboxd.lanes)
  from outboxd.outbox o, pg_control_system() c
$$;

-- A lock is asked for, and what it protects is looked at by a later statement.
create function outboxd.need_read_committed() returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  if current_setting('transaction_isolation') <> 'read committed' then
    raise exception 'outboxd: a leaf is emptied or dropped in READ COMMITTED only, where a statement sees what committed before it';
  end if;
end
$$;

-- Empties a leaf: 'reclaimed', 'busy' (in use), or 'kept': a row of it is not published, or something of it was published
-- since `checked_at`, when retention was asked.
--
-- With the lock no transaction, open or prepared, has rows in the leaf. That all of them are published is asked then, by a
-- new statement: asked before, it loses what commits in between. Below the floor only rows of transactions that were in
-- progress at `done` can be unpublished.
create function outboxd.reclaim_leaf(from_seq bigint, to_seq bigint, checked_at timestamptz) returns text
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp set lock_timeout = '20ms'
set enable_seqscan = off set enable_bitmapscan = off set jit = off as $$
declare
  leaf regclass := (select l.relation from outboxd.leaves l
    where l.from_seq = reclaim_leaf.from_seq and l.to_seq = reclaim_leaf.to_seq);
  unpublished boolean;
begin
  perform outboxd.need_read_committed();
  if leaf is null then
    return 'kept';
  end if;
  if not outboxd.lock_if_free(leaf) then
    return 'busy';
  end if;
  if not outboxd.cursors_are_sound()
    or exists (select from outboxd.lanes where floor < to_seq - 1)
    or exists (select from outboxd.lanes where publishing_last_seq >= from_seq and publishing_first_seq < to_seq)
    or exists (select from outboxd.publications p
        where p.ended_at >= checked_at and p.last_seq >= from_seq and p.first_seq < to_seq) then
    return 'kept';
  end if;
  execute format('
    select exists (
      select from outboxd.lanes l
      cross join lateral pg_snapshot_xip(l.done) as running (txid)
      cross join lateral (select from only %1$s m where m.txid = running.txid and m.priority = l.priority limit 1) straggler
    ) or exists (
      select from outboxd.lanes l
      cross join lateral (select from only %1$s m
        where m.txid >= pg_snapshot_xmax(l.done) and m.priority = l.priority limit 1) later
    )', leaf) into unpublished;
  if unpublished then
    return 'kept';
  end if;
  begin
    execute format('truncate %s', leaf);
  exception when lock_not_available then
    return 'busy';
  end;
  return 'reclaimed';
end
$$;

-- Drops a table that the caller has locked, if it has no rows; false: it has some, or what belongs to it is in use.
create function outboxd.drop_if_empty(leaf regclass) returns boolean
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
  has_rows boolean;
begin
  execute format('select exists (select from only %s)', leaf) into has_rows;
  if has_rows then
    return false;
  end if;
  execute format('drop table %s', leaf);
  return true;
exception when lock_not_available then
  return false;
end
$$;

-- Drops a leaf that is behind all lanes and has no rows; false: it is in use, or has some.
create function outboxd.drop_leaf(from_seq bigint, to_seq bigint) returns boolean
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp set lock_timeout = '20ms' as $$
declare
  leaf regclass := (select l.relation from outboxd.leaves l
    where l.from_seq = drop_leaf.from_seq and l.to_seq = drop_leaf.to_seq);
begin
  perform outboxd.need_read_committed();
  if leaf is null or not outboxd.lock_if_free('outboxd.messages', leaf) then
    return false;
  end if;
  if exists (select from outboxd.lanes where floor < to_seq - 1) then
    return false;
  end if;
  return outboxd.drop_if_empty(leaf);
end
$$;

-- Deletes from the default what is published of this range of a lane; says how many rows.
create function outboxd.delete_published(lane smallint, from_seq bigint, to_seq bigint) returns bigint
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  deleted bigint;
begin
  if not outboxd.cursors_are_sound() then
    return 0;
  end if;
  delete from only outboxd.messages_default m using outboxd.lanes l
  where m.priority = lane and m.seq >= from_seq and m.seq < to_seq
    and l.priority = lane and m.seq <= l.floor and pg_visible_in_snapshot(m.txid, l.done);
  get diagnostics deleted = row_count;
  return deleted;
end
$$;

revoke execute on function outboxd.lock_if_free, outboxd.need_read_committed, outboxd.drop_if_empty, outboxd.make_leaf,
  outboxd.free_range, outboxd.reserve_range, outboxd.validate_range, outboxd.advance_sequence, outboxd.cursors_are_sound,
  outboxd.reclaim_leaf, outboxd.drop_leaf, outboxd.delete_published from public;

-- The first leaves. If the default has rows already, the job `partitions` finds the way back.
select outboxd.make_leaf(n * 1048576, (n + 1) * 1048576)
from generate_series(0, 7) as n
where not exists (select from only outboxd.messages_default);

-- The life of the evidence's partitions (leaves): by the time in the message's id, made ahead, and dropped when the newest
-- handling in them is past retention, whatever the age of the messages.
--
-- Only consumers write here, and what they write in may be locked against them for a moment; an application is never met.

create view outboxd.evidence_leaves as
select c.oid as relation, c.relname as name,
  to_timestamp(('x' || translate(left(range.bounds[1], 13), '-', ''))::bit(48)::bigint / 1000.0) as from_time,
  to_timestamp(('x' || translate(left(range.bounds[2], 13), '-', ''))::bit(48)::bigint / 1000.0) as to_time  -- not in it
from pg_catalog.pg_inherits i
join pg_catalog.pg_class c on c.oid = i.inhrelid
cross join lateral (
  select regexp_match(pg_get_expr(c.relpartbound, c.oid), 'FROM \(''([0-9a-f-]+)''\) TO \(''([0-9a-f-]+)''\)') as bounds
) range
where i.inhparent = 'outboxd.handled'::regclass and range.bounds is not null;

-- What no leaf takes is deleted row by row: ids of a time that has no leaf any more, of no time, or far ahead. Rows lie in
-- the order in which they were handled, so that this finds the old ones.
create index handled_default_handled_at on outboxd.handled_default using brin (handled_at) with (autosummarize = on);

-- The lowest UUIDv7 of that millisecond.
create function outboxd.first_id(at timestamptz) returns uuid language sql immutable strict parallel safe as $$
  select (lpad(to_hex(floor(extract(epoch from at) * 1000)::bigint), 12, '0') || repeat('0', 20))::uuid
$$;

-- Makes and attaches a leaf, and moves there what the default has of its range; false: it is in use.
create function outboxd.make_evidence_leaf(from_time timestamptz, to_time timestamptz) returns boolean
language plpgsql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '20ms' as $$
declare
  first uuid := outboxd.first_id(from_time);
  past uuid := outboxd.first_id(to_time);
  leaf text := format('outboxd.%I', 'handled_' || to_char(from_time at time zone 'UTC', 'YYYYMMDD"t"HH24MI'));
begin
  if exists (select from outboxd.evidence_leaves l
      where l.from_time = make_evidence_leaf.from_time and l.to_time = make_evidence_leaf.to_time) then
    return true;
  end if;
  begin
    lock table only outboxd.handled in share update exclusive mode nowait;
    execute format('create table %s (like outboxd.handled including all)', leaf);
    if not outboxd.lock_if_free('outboxd.handled_default') then
      raise lock_not_available;
    end if;
    execute format('
      with moved as (delete from only outboxd.handled_default where message_id >= %1$L and message_id < %2$L returning *)
      insert into %3$s select * from moved', first, past, leaf);
    execute format('alter table outboxd.handled attach partition %s for values from (%L) to (%L)', leaf, first, past);
    return true;
  exception when lock_not_available then
    return false;
  end;
end
$$;

-- Empties a leaf if nothing in it was handled within `kept`: 'reclaimed', 'busy' or 'kept'. While it is read nobody writes
-- in it; most of the time the newest rows, which lie at its end, spare the reading.
create function outboxd.reclaim_evidence_leaf(from_time timestamptz, to_time timestamptz, kept interval) returns text
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp set lock_timeout = '20ms' as $$
declare
  leaf regclass := (select l.relation from outboxd.evidence_leaves l
    where l.from_time = reclaim_evidence_leaf.from_time and l.to_time = reclaim_evidence_leaf.to_time);
  is_young text := 'select exists (select from only %s where handled_at > clock_timestamp() - $1 %s)';
  last_pages text;
  young boolean;
begin
  perform outboxd.need_read_committed();
  if leaf is null then
    return 'kept';
  end if;
  last_pages := format('and ctid >= %L', format('(%s,0)', greatest(pg_relation_size(leaf) / 8192 - 32, 0))::tid);
  execute format(is_young, leaf, last_pages) into young using kept;
  if young then
    return 'kept';
  end if;
  begin
    execute format('lock table only %s in share mode nowait', leaf);
    execute format(is_young, leaf, '') into young using kept;
    if young then
      return 'kept';
    end if;
    if not outboxd.lock_if_free(leaf) then
      return 'busy';
    end if;
    execute format('truncate %s', leaf);
  exception when lock_not_available then
    return 'busy';
  end;
  return 'reclaimed';
end
$$;

-- Drops a leaf that has no rows and takes none any more; false: it is in use, or has some.
create function outboxd.drop_evidence_leaf(from_time timestamptz, to_time timestamptz) returns boolean
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp set lock_timeout = '20ms' as $$
declare
  leaf regclass := (select l.relation from outboxd.evidence_leaves l
    where l.from_time = drop_evidence_leaf.from_time and l.to_time = drop_evidence_leaf.to_time);
begin
  perform outboxd.need_read_committed();
  if leaf is null or not outboxd.lock_if_free('outboxd.handled', leaf) then
    return false;
  end if;
  return outboxd.drop_if_empty(leaf);
end
$$;

revoke execute on function outboxd.make_evidence_leaf, outboxd.reclaim_evidence_leaf, outboxd.drop_evidence_leaf from public;

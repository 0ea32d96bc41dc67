-- Views for people; none shows a payload.

-- Of the rows that are in the outbox, and of those that were copied out of it, whose leaf may be emptied. To look through
-- many, read each on its own, newest first: an order over both together would first make all of it.
create view outboxd.message_states_in_outbox as
select coalesce(m.id, outboxd.message_id(m.created_at, m.seq)) as id, m.seq, m.priority, m.topic, m.key, m.type,
  m.idempotency_key, m.created_at, m.deliver_after,
  case
    when a.state is not null then a.state
    when m.seq <= l.top and (pg_visible_in_snapshot(m.txid, l.done)
      or (l.target is not null and m.seq <= l.published_seq and pg_visible_in_snapshot(m.txid, l.target)))
    then 'published'
    else 'pending'
  end as state,
  a.reason
from outboxd.messages m
join outboxd.lanes l using (priority)
left join outboxd.set_aside a using (priority, seq);

create view outboxd.message_states_aside as
select coalesce(id, outboxd.message_id(created_at, seq)) as id, seq, priority, topic, key, type, idempotency_key, created_at,
  due_at as deliver_after, state, reason
from outboxd.set_aside;

create view outboxd.message_states as
select * from outboxd.message_states_in_outbox
union all
select a.* from outboxd.message_states_aside a
where not exists (select from outboxd.messages m where m.priority = a.priority and m.seq = a.seq);

-- When a published message was, by whom, and up to which offset of each partition of its topic: a row for each that it may
-- be in, one without a partition if none is known. Of a message that was held, this is when its turn was.
create view outboxd.message_publications as
select p.priority, p.seq, p.agent, p.began_at, p.ended_at, place.partition, place.highest_offset
from (
  select m.priority, m.seq, m.topic, p.agent, p.began_at, p.ended_at, p.offsets
  from outboxd.messages m
  join outboxd.publications p on p.priority = m.priority and p.last_seq >= m.seq and p.first_seq <= m.seq
    and pg_visible_in_snapshot(m.txid, p.target) and not pg_visible_in_snapshot(m.txid, p.done)
  union all
  select m.priority, m.seq, m.topic, l.agent, l.publishing_began_at, null, l.publishing_offsets
  from outboxd.messages m
  join outboxd.lanes l on l.priority = m.priority and l.publishing_last_seq >= m.seq and l.publishing_first_seq <= m.seq
    and not pg_visible_in_snapshot(m.txid, l.publishing_done)
) p
left join lateral (
  select split_part(o.place, '/', 2)::integer as partition, o."offset"::bigint as highest_offset
  from jsonb_each_text(p.offsets) as o (place, "offset")
  where split_part(o.place, '/', 1) = p.topic
) place on true;

create view outboxd.lane_status as
select l.priority, case l.priority when -1 then 'low' when 0 then 'normal' else 'high' end as name,
  l.owner, l.agent, l.epoch, l.lease_expires_at, coalesce(l.lease_expires_at > clock_timestamp(), false) as owned,
  l."window", l.moved_at,
  pending.messages as pending, pending.oldest as oldest_pending_at,
  aside.scheduled, aside.held, aside.parked, stop.seq as stopped_at_seq, stop.reason as stopped_reason
from outboxd.lanes l
cross join lateral (
  -- Bounded: a lane with more than 10,000 pending messages says 10,000. Its oldest is exact, by seq.
  select count(*) as messages, min(created_at) as oldest from (
    (select m.created_at from outboxd.messages m
     where m.priority = l.priority and m.seq > greatest(l.floor, l.published_seq) and m.txid >= pg_snapshot_xmax(l.done)
       and (l.target is null or m.seq > l.published_seq or not pg_visible_in_snapshot(m.txid, l.target))
     order by m.seq limit 10000)
    union all
    -- What was in progress when the lane last moved on, and has committed since.
    (select m.created_at from pg_snapshot_xip(l.done) as running (txid)
     cross join lateral (select created_at, seq, txid from outboxd.messages
       where txid = running.txid and priority = l.priority limit 10000) m
     where l.target is null or m.seq > l.published_seq or not pg_visible_in_snapshot(m.txid, l.target)
     limit 10000)
  ) unpublished
) pending
cross join lateral (
  select count(*) filter (where state = 'scheduled') as scheduled, count(*) filter (where state = 'held') as held,
    count(*) filter (where state = 'parked') as parked
  from outboxd.set_aside where priority = l.priority
) aside
left join lateral (
  select seq, reason from outboxd.set_aside where priority = l.priority and stops_lane order by seq limit 1
) stop on true;

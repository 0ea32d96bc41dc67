-- What is set aside is counted no further than what is pending: nothing that looks reads all of it.

create or replace view outboxd.lane_status as
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
  -- Each by an index of its own, and bounded as well.
  select
    (select count(*) from (select from outboxd.set_aside a
      where a.priority = l.priority and a.state = 'scheduled' limit 10000) bounded) as scheduled,
    (select count(*) from (
      (select from outboxd.set_aside a where a.priority = l.priority and a.state = 'held' and a.key_line is null limit 10000)
      union all
      (select from outboxd.set_aside a
        where a.priority = l.priority and a.key_line is not null and a.state = 'held' limit 10000)
      limit 10000) bounded) as held,
    (select count(*) from (select from outboxd.set_aside a
      where a.state = 'parked' and a.priority = l.priority limit 10000) bounded) as parked
) aside
left join lateral (
  select seq, reason from outboxd.set_aside where priority = l.priority and stops_lane order by seq limit 1
) stop on true;

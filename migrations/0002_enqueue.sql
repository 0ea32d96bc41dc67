-- The comfortable door: outboxd.enqueue(...) for bytea, text, json and jsonb payloads. It returns the message's id.

create function outboxd.priority(name text) returns smallint language plpgsql immutable strict parallel safe as $$
begin
  return case lower(name)
    when 'low' then -1 when 'normal' then 0 when 'high' then 1
    when '-1' then -1 when '0' then 0 when '1' then 1
  end;
end
$$;

create function outboxd.enqueue(
  topic text, payload bytea, key text default null, type text default null, headers jsonb default '{}',
  idempotency_key text default null, priority anycompatible default 'normal'::text, deliver_after timestamptz default null,
  id uuid default null
) returns uuid language plpgsql volatile as $$
#variable_conflict use_column
declare
  message record;
  lane smallint := outboxd.priority(enqueue.priority::text);
begin
  if lane is null then
    raise exception 'outboxd: priority % is none of low, normal, high (-1, 0, 1)', coalesce(quote_literal(enqueue.priority::text), 'null')
      using errcode = 'check_violation', constraint = 'messages_priority_is_minus_1_0_or_1', schema = 'outboxd', table = 'messages';
  end if;
  insert into outboxd.messages (topic, payload, key, type, headers, idempotency_key, priority, deliver_after, id)
  values (enqueue.topic, enqueue.payload, enqueue.key, enqueue.type, coalesce(enqueue.headers, '{}'),
    enqueue.idempotency_key, lane, enqueue.deliver_after, enqueue.id)
  returning messages.seq, messages.created_at into message;
  return coalesce(enqueue.id, outboxd.message_id(message.created_at, message.seq));
end
$$;

create function outboxd.enqueue(
  topic text, payload text, key text default null, type text default null, headers jsonb default '{}',
  idempotency_key text default null, priority anycompatible default 'normal'::text, deliver_after timestamptz default null,
  id uuid default null
) returns uuid language sql volatile as $$
  select outboxd.enqueue(topic, convert_to(payload, 'UTF8'), key, type, headers, idempotency_key, priority, deliver_after, id)
$$;

create function outboxd.enqueue(
  topic text, payload jsonb, key text default null, type text default null, headers jsonb default '{}',
  idempotency_key text default null, priority anycompatible default 'normal'::text, deliver_after timestamptz default null,
  id uuid default null
) returns uuid language sql volatile as $$
  select outboxd.enqueue(topic, convert_to(payload::text, 'UTF8'), key, type,
    '{"content-type": "application/json"}' || coalesce(headers, '{}'), idempotency_key, priority, deliver_after, id)
$$;

create function outboxd.enqueue(
  topic text, payload json, key text default null, type text default null, headers jsonb default '{}',
  idempotency_key text default null, priority anycompatible default 'normal'::text, deliver_after timestamptz default null,
  id uuid default null
) returns uuid language sql volatile as $$
  select outboxd.enqueue(topic, convert_to(payload::text, 'UTF8'), key, type,
    '{"content-type": "application/json"}' || coalesce(headers, '{}'), idempotency_key, priority, deliver_after, id)
$$;

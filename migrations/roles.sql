-- Roles and what each may do. Run after every migration; {app}, {agent}, {operator} and {reader} are the configured names.
-- A person or a service is made a member: grant outboxd_app to shop;

grant usage on schema outboxd to {app}, {agent}, {operator}, {reader};

-- Applications: insert, and read back what they need for the id. Nothing else.
grant insert (id, topic, key, payload, headers, type, idempotency_key, priority, deliver_after) on outboxd.messages to {app};
grant select (id, seq, created_at) on outboxd.messages to {app};
grant usage on sequence outboxd.messages_seq to {app}, {agent}, {operator};

-- The daemons.
grant select, insert on outboxd.messages to {agent};
grant select on outboxd.migrations, outboxd.outbox to {agent}, {operator}, {reader};
grant select, update on outboxd.lanes to {agent};
grant select, insert, update, delete on outboxd.publications, outboxd.set_aside, outboxd.groups, outboxd.group_positions, outboxd.handled,
  outboxd.idempotency_keys, outboxd.agents, outboxd.agent_heartbeats, outboxd.failures, outboxd.held_keys, outboxd.attempts,
  outboxd.starts, outboxd.members to {agent};
grant select, insert, update, delete on outboxd.operations to {agent};
grant usage on sequence outboxd.claims_seq, outboxd.failures_place to {agent};
-- Leaves belong to the migrating role, and so do the functions that make, empty and drop them.
grant select, update on outboxd.insert_rate to {agent};
grant select, insert, update, delete on outboxd.jobs, outboxd.job_runs to {agent};
grant select on outboxd.leaves, outboxd.messages_default to {agent};
grant execute on function outboxd.make_leaf, outboxd.free_range, outboxd.reserve_range, outboxd.validate_range,
  outboxd.advance_sequence, outboxd.reclaim_leaf, outboxd.drop_leaf, outboxd.delete_published to {agent};
grant select on outboxd.evidence_leaves to {agent};
grant select, delete on outboxd.handled_default to {agent};
grant execute on function outboxd.make_evidence_leaf, outboxd.reclaim_evidence_leaf, outboxd.drop_evidence_leaf to {agent};
grant select on sequence outboxd.messages_seq to {agent}, {operator}, {reader};

-- Operators and readers.
grant select, insert on outboxd.messages to {operator};
grant select (id, priority, seq) on outboxd.messages to {reader};
grant select, update, delete on outboxd.set_aside to {operator};
grant select, insert, update on outboxd.operations to {operator};
grant select on outboxd.operations, outboxd.held_keys to {reader};
grant insert, update, delete on outboxd.groups, outboxd.group_positions to {operator};
grant delete on outboxd.handled, outboxd.idempotency_keys to {operator};
grant select, update, delete on outboxd.failures to {operator};
grant select, insert, update, delete on outboxd.held_keys to {operator};
grant update, delete on outboxd.agents to {operator};
grant update on outboxd.jobs to {operator};
grant delete on outboxd.agent_heartbeats, outboxd.members to {operator};
grant select on outboxd.lanes, outboxd.publications, outboxd.groups, outboxd.group_positions, outboxd.handled, outboxd.idempotency_keys,
  outboxd.agents, outboxd.agent_heartbeats, outboxd.attempts, outboxd.starts, outboxd.members, outboxd.jobs, outboxd.job_runs, outboxd.message_states, outboxd.message_states_in_outbox,
  outboxd.message_states_aside, outboxd.message_publications, outboxd.lane_status, outboxd.failure_states, outboxd.dead_letters to {agent}, {operator}, {reader};
